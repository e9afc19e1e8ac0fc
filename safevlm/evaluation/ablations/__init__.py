"""Ablations: a table of overrides of recipes → the runs to train and ask, and the results beside each other."""
