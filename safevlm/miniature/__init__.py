"""The complete small problem: a world, a small LLaVA with the disease, data in the real formats, an exact judge."""
