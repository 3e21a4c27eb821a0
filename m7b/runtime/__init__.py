"""The model: configuration, forward pass, cache, sampling and checkpoints. Only here is torch imported."""

import logging
import os

# Threads that spin while they wait ruin decoding as soon as another program wants a core. It must be
# said before torch loads OpenMP, so here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# bitsandbytes warns at every start of a kernel that it would fetch from a hub; `m7b doctor` tells it once.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in str(record.msg)
)
