"""WING 2, text to batches. No DeepSpeed."""
