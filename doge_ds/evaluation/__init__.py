"""WING 4, a model and a store to numbers."""
