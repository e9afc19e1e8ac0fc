"""What a defense in front of a checkpoint may be built from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from llava_patch.fingerprint import fingerprint
from safevlm.backbones import config_facts
from safevlm.data.pixels import read_singly
from safevlm.defenses import FOLDER, DefenseContext, ModelFacts
from safevlm.defenses.context import LM_TOKENS
from safevlm.defenses.policy import Policy
from safevlm.model import loading
from safevlm.types import Verdict


def setting_of(
    loaded: loading.Loaded, policy: Policy, truths: Mapping[str, Verdict], device: torch.device
) -> DefenseContext:
    """The facts about a checkpoint that its defense may know. `truths`: verdicts by request id, for the oracle."""
    return DefenseContext(
        policy=policy,
        has_head=loaded.safe_llava.safety_head is not None,
        truths=truths,
        facts=facts_of(loaded, device),
        folders=tuple(dict.fromkeys((loaded.path / FOLDER, loaded.base / FOLDER))),
    )


def facts_of(loaded: loading.Loaded, device: torch.device) -> ModelFacts:
    """What a defense's file must fit."""
    model = loaded.safe_llava
    tokens = model.safety_lm_tokens
    return ModelFacts(
        hidden_size=config_facts.hidden_size(model.config),
        pixel_shape=model.pixel_shape,
        image_token_id=config_facts.image_token_id(model.config),
        image_std=tuple(loaded.processor.image_processor.image_std),
        device=device,
        tower=model.tower_state,
        read=partial(read_singly, loaded.processor),
        side=config_facts.image_side(model.config),
        text_side=model.text_side,
        clip_features=model.clip_features,
        base=loaded.base_fingerprints,
        lm_layers=len(model.lm_layers) if loaded.has_lm else 0,
        lm_tokens={} if tokens is None else {LM_TOKENS: fingerprint(tokens.state_dict())},
    )
