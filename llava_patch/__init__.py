"""The only code that knows LLaVA's insides. It imports nothing of ours.

    classes      transformers' classes under our names      processor       slots for extra image tokens
    names        paths and prefixes of weights, LoRA        image_tokens    extra tokens behind the projector
    fields       what a config says                         virtual_tokens  learned vectors anywhere in the prompt
    parts        the modules of a model                     patch_basis     pixels ↔ the tower's patch vectors
    vision       one vision pass, projection, features      clip            CLIP's text space
    checkpoints  names on disk of a subclass                fingerprint     whether two towers are the same
    weights      tensors of a folder, shards                fresh           new models from sizes
    original     LLaVA-v1.5's own folders → transformers' layout

Functions take a whole LLaVA (`classes.Model`) or its config, never a part of it. Everything goes through documented
seams: a forward hook on the projector, `num_additional_image_tokens` of the processor, `mm_encoder_outputs` of the
model, and the checkpoint conversion mapping. No forward is copied.
"""
