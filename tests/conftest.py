"""Every test runs with few threads (the suite shares two cores between its workers) and none is timed.

Without a CUDA device, Triton kernels run under its interpreter, which Triton must be told before it is first imported.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is not a bug: property tests have no deadline. In CI they try the same examples each time, so that what fails
# there is the change; elsewhere they keep looking for new ones.
settings.register_profile("javisc", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "javisc")


def pytest_configure(config: pytest.Config) -> None:
    """Every dataset that a test builds in its own process is judged when it is published."""
    from support.sane import watch

    watch()
