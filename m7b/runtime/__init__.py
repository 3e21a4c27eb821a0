"""The model: configuration, forward pass, cache, sampling and checkpoints. Only here is torch imported."""

import os

# Threads that spin while they wait ruin decoding as soon as another program wants a core. It must be
# said before torch loads OpenMP, so here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
