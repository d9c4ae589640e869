"""WING 3, model and DeepSpeed engine; the only wing that imports deepspeed."""
