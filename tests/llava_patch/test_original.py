"""Original LLaVA-v1.5 folders: told by their contents; their names become llava-hf's, for the published sizes too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaConfig

from llava_patch import weights
from llava_patch.original import config as configs
from llava_patch.original import folder as folders
from llava_patch.original import names as naming
from tests import originals, tiny

WHERE = Path("somewhere")
SIZES = {"7b": (4096, 32, 32, 11008), "13b": (5120, 40, 40, 13824)}
TABLE = {
    "model_type": "llava",
    "hidden_act": "silu",
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "vocab_size": 32000,
}
"""What liuhaotian/llava-v1.5-*'s config.json say of importance; sizes apart."""


def _published(size: str) -> tuple[LlavaConfig, list[str]]:
    """Config and original names of a published LLaVA-v1.5 with its tower inside."""
    width, layers, heads, inner = SIZES[size]
    table = {**TABLE, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    table |= {"intermediate_size": inner, "num_key_value_heads": heads}
    vision = configs.known_tower(table)
    assert vision is not None
    config = configs.config_of(table, table, vision, WHERE)
    config.text_config.vocab_size = 32064
    attention = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
    rest = [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")]
    norms = ["input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.rotary_emb.inv_freq"]
    names = [f"model.layers.{n}.{name}" for n in range(layers) for name in (*attention, *rest, *norms)]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.mm_projector.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    both = ("weight", "bias")
    blocks = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1"]
    blocks += ["layer_norm2", "mlp.fc1", "mlp.fc2"]
    tower = [f"encoder.layers.{n}.{block}.{kind}" for n in range(24) for block in blocks for kind in both]
    tower += [f"{norm}.{kind}" for norm in ("pre_layrnorm", "post_layernorm") for kind in both]
    tower += ["embeddings.class_embedding", "embeddings.patch_embedding.weight", "embeddings.position_ids"]
    tower += ["embeddings.position_embedding.weight"]
    return config, names + [f"model.vision_tower.vision_tower.vision_model.{name}" for name in tower]


@pytest.mark.parametrize("size", SIZES)
def test_names_of_the_published_sizes_become_llava_hfs(size: str) -> None:
    """On the meta device: not a byte of them."""
    config, names = _published(size)
    wanted = naming.expected(config)
    assert set(naming.translate(names, WHERE)) == set(wanted)
    assert len(wanted) == {"7b": 686, "13b": 758}[size]


@pytest.mark.parametrize("size", SIZES)
def test_shapes_of_the_published_sizes(size: str) -> None:
    width, _, _, inner = SIZES[size]
    shapes = naming.expected(_published(size)[0])
    for name, shape in {
        "language_model.lm_head.weight": (32064, width),
        "language_model.model.embed_tokens.weight": (32064, width),
        "language_model.model.layers.0.mlp.down_proj.weight": (width, inner),
        "multi_modal_projector.linear_1.weight": (width, 1024),
        "multi_modal_projector.linear_2.weight": (width, width),
        "vision_tower.vision_model.embeddings.position_embedding.weight": (577, 1024),
        "vision_tower.vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_tower.vision_model.encoder.layers.23.mlp.fc1.weight": (4096, 1024),
    }.items():
        assert shapes[name] == shape


def test_known_towers_are_openais() -> None:
    large = configs.known_tower({"mm_vision_tower": "openai/clip-vit-large-patch14-336"})
    small = configs.known_tower({"mm_vision_tower": "/models/clip-vit-large-patch14"})
    assert large is not None and small is not None
    assert (large.image_size, large.patch_size, large.num_hidden_layers) == (336, 14, 24)
    assert large.hidden_act == "quick_gelu"
    assert (small.image_size, small.hidden_size) == (224, 1024)
    assert configs.known_tower({"mm_vision_tower": "somebody/tower"}) is None
    assert configs.known_tower({}) is None


@pytest.mark.parametrize(
    ("write", "kind"),
    [(originals.write_full, "full"), (originals.write_projector, "projector"), (originals.write_lora, "lora")],
)
def test_contents_tell_the_kind_not_the_name(tmp_path: Path, write: Callable[..., Path], kind: str) -> None:
    folder = write(tmp_path / "llava-lora-mpt-full-projector", originals.make())
    assert folders.kind_of(folder) == kind


def test_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    originals.write_json(tmp_path / "config.json", TABLE)
    with pytest.raises(ValueError, match="no weights here"):
        folders.kind_of(tmp_path)


@pytest.mark.parametrize(
    ("table", "answer"),
    [
        (TABLE, True),
        ({**TABLE, "model_type": "llava_llama"}, True),
        ({**TABLE, "text_config": {}}, False),
        ({**TABLE, "model_type": "llava_mpt"}, False),
        ({"model_type": "llava"}, False),
        ({"model_type": "llama"}, False),
        ({}, False),
    ],
)
def test_sections_tell_an_original_from_llava_hf(table: dict[str, Any], answer: bool) -> None:
    assert folders.is_original(table) is answer


def test_saved_stock_config_is_no_original() -> None:
    assert not folders.is_original(tiny.stock_config().to_dict())


def test_prefixes_of_peft_and_of_pretraining_are_known() -> None:
    names = ["base_model.model.model.mm_projector.0.weight", "mm_projector.2.bias", "base_model.model.lm_head.weight"]
    assert naming.translate(names, WHERE) == {
        "multi_modal_projector.linear_1.weight": names[0],
        "multi_modal_projector.linear_2.bias": names[1],
        "language_model.lm_head.weight": names[2],
    }


def test_only_buffers_may_be_left_over() -> None:
    kept = naming.translate(["model.norm.weight", "model.layers.3.self_attn.rotary_emb.inv_freq"], WHERE)
    assert kept == {"language_model.model.norm.weight": "model.norm.weight"}
    for name in ("model.layers_extra.weight", "model.mm_projector.4.weight", "visual.weight"):
        with pytest.raises(ValueError, match="unexpected"):
            naming.translate([name], WHERE)


def test_one_weight_under_two_names_is_an_error() -> None:
    with pytest.raises(ValueError, match="the same one"):
        naming.translate(["model.mm_projector.weight", "model.mm_projector.0.weight"], WHERE)


def test_clip_folder_gives_its_tower_alone() -> None:
    both = ["vision_model.post_layernorm.bias", "text_model.final_layer_norm.bias", "logit_scale"]
    both += ["visual_projection.weight", "text_projection.weight", "vision_model.embeddings.position_ids"]
    target = "vision_tower.vision_model.post_layernorm.bias"
    assert naming.translate_tower(both, WHERE) == {target: both[0]}
    assert naming.translate_tower(["post_layernorm.bias"], WHERE) == {target: "post_layernorm.bias"}


# Weights


def _noise(count: int) -> dict[str, Tensor]:
    return {f"w{n}": torch.full((10,), float(n)) for n in range(count)}


def test_shards_are_cut_before_they_overflow(tmp_path: Path) -> None:
    writer = weights.Writer(tmp_path, shard_bytes=100)
    for name, tensor in _noise(5).items():  # 40 bytes each
        writer.add(name, tensor)
    writer.close()
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)] + ["model.safetensors.index.json"]
    assert [len(load_file(tmp_path / name)) for name in files[:3]] == [2, 2, 1]
    read = weights.of_folder(tmp_path)
    assert all(torch.equal(read.read(name), tensor) for name, tensor in _noise(5).items())
    assert read.shape("w3") == (10,)


def test_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    writer = weights.Writer(tmp_path, shard_bytes=10)
    for name, tensor in _noise(2).items():
        writer.add(name, tensor)
    writer.close()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_scalars_and_odd_shapes_are_read(tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "table": torch.ones(2, 3)}
    originals.write_safetensors_shards(tmp_path, tensors, 1)
    read = weights.of_folder(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(read.read(name), tensor) and read.shape(name) == tuple(tensor.shape)


def test_index_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "outside.bin")
    (tmp_path / "in").mkdir()
    originals.write_json(tmp_path / "in" / "pytorch_model.bin.index.json", {"weight_map": {"w": "../outside.bin"}})
    with pytest.raises(ValueError, match=r"\.\./outside\.bin"):
        weights.of_folder(tmp_path / "in")


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_malformed_index_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="index.json"):
        weights.of_folder(tmp_path)


def test_same_weight_in_two_shards_is_an_error(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ValueError, match="'w' is in a.bin already"):
        weights.Weights([tmp_path / "a.bin", tmp_path / "b.bin"])
