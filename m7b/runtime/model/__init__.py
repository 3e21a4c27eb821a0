"""The forward pass: arithmetic over a batch and a cache that it is given, and nothing else."""
