"""The pictograms' base, in the order of the papers: a CLIP; an LLM made safe in words alone; then it learns to see."""
