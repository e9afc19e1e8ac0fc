"""Two stages by one table, on transformers' Trainer."""
