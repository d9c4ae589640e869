"""WING 1, the paper's mathematics: tensors in, tensors out."""
