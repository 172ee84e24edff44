"""Every test runs with few threads: the suite shares two cores between its workers. Without a CUDA device, Triton kernels run
under its interpreter, which Triton must be told before it is first imported."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
