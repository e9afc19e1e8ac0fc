"""What a model sees: figures and tables about it, made without asking it anything."""
