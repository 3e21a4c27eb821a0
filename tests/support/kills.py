"""How often the tests of downloads kill them: `M7B_TEST_KILLS`, for each kind of download."""

import os

N_KILLS = int(os.environ.get("M7B_TEST_KILLS", "10"))
