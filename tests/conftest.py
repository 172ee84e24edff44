"""Every test runs with few threads: the suite shares two cores between its workers."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
