"""Sources → a mix → records on disk → batches for the model."""
