"""A chat page beside the API: the same guard, limits and counters, for people."""
