"""A run: its folder with `run.json`, `replies.jsonl` and `scores.jsonl`, how it is filled and how it is read."""
