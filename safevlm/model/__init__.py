"""The safety modules and the LLaVA that carries them.

Shapes in this package: b rows (requests) · i images · p patches · v tower width · n image slots · q safety features
per image · t text positions · d LLM width.
"""
