"""What a checkpoint's config says beyond its family's: safety modules, taxonomy, policy, and where the base lies."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Self

from safevlm.config import SafetyConfig
from safevlm.taxonomy import DEFAULT, Taxonomy

NO_SAFETY = SafetyConfig(projector="none", lm_tokens=0, head_tokens=0)
FAMILYS_OWN = ("model_type", "architectures")
"""Keys by which a config names its class."""


class SafetySection:
    """In front of a family's config class, which declares the three fields."""

    model_type: ClassVar[str]
    safety: dict[str, Any] | None
    """`SafetyConfig` as a dict; none: a model without safety modules."""
    policy: dict[str, Any] | None
    """What to do per category and level, as in a policy file; none: SafeVLM's rule."""
    base_checkpoint: str | None
    """Folder of the weights that this checkpoint does not hold itself (`safevlm.model.loading`)."""

    @property
    def safety_config(self) -> SafetyConfig:
        """The safety section, typed."""
        return SafetyConfig(**self.safety) if self.safety else NO_SAFETY

    @property
    def taxonomy(self) -> Taxonomy:
        """Categories and levels that the head was trained on; without any in the config, the default ones."""
        table = self.safety_config.taxonomy
        return Taxonomy.from_dict(table) if table else DEFAULT

    @classmethod
    def from_stock(cls, config: Any, safety: SafetyConfig) -> Self:
        """A stock config with a safety section; the stock config is not touched."""
        if safety.taxonomy is None and safety.projector != "none":
            safety = SafetyConfig(**{**asdict(safety), "taxonomy": DEFAULT.to_dict()})
        if isinstance(config, SafetySection):
            raise TypeError("this config has a safety section already")
        table = {key: value for key, value in config.to_dict().items() if key not in FAMILYS_OWN}
        return cls(**table, safety=asdict(safety))  # type: ignore[call-arg]  # the family's config takes its fields
