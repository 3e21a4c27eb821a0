"""The model: configuration, forward pass, cache, sampling and checkpoints. Only here is torch imported."""
