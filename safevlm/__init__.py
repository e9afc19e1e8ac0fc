"""Safety modules and defenses for LLaVA-v1.5."""

__version__ = "0.1.0"
