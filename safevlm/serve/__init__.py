"""Faces of the engine."""
