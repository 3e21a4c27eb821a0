"""How long tests are: `make check` sets `M7B_TEST_LONG`, and they take all of their texts and more kills.

`M7B_TEST_KILLS` is how often those of downloads kill them, for each kind of download.
"""

import os

IS_LONG = os.environ.get("M7B_TEST_LONG", "0") != "0"
N_KILLS = int(os.environ.get("M7B_TEST_KILLS", "10" if IS_LONG else "4"))
