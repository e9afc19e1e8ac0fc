"""Original LLaVA-v1.5 folders (`liuhaotian/llava-v1.5-*` and what its training code writes) → transformers' layout.

    folder      what a folder is              sources   where every weight comes from
    config      its fields in transformers    names     its weights in transformers
    vocabulary  sentencepiece → tokenizers    lora      an adapter, folded one weight at a time
    processor   images, slots, generation     assembly  checked, folded, grown, written in shards

| kind        | told by                                                   | what is missing from the folder            |
|-------------|-----------------------------------------------------------|--------------------------------------------|
| `full`      | an LLM's weights                                          | the vision tower, unless it was tuned      |
| `projector` | `mm_projector.bin`, no LLM                                | LLM and tower                              |
| `lora`      | `adapter_config.json`                                     | LLM (an adapter on it is here) and tower   |

The trap: `config.json` says `model_type: llava`, as transformers' own folders do; only the sections differ.
"""
