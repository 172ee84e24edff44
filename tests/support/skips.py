"""Which tests a machine may leave out, and why. Any other skip is a failure: what nobody expects to be left out is not tested."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.shared import PARITY, SHARED


@dataclass(frozen=True)
class Skip:
    """A skip whose reason `words` matches, allowed where `here` is true. why: what a person reads at the end of a run."""

    words: str
    here: Callable[[], bool]
    why: str


_LIBRARY = Path(sys.prefix, "lib/python3.11/site-packages")


def _no_gpu() -> bool:
    return not Path("/dev/nvidiactl").exists()


def _lacks(*programs: str) -> Callable[[], bool]:
    return lambda: not any(shutil.which(program) for program in programs)


#: Everything that may be left out. A test that must skip for another reason adds its row here.
EXPECTED = (
    Skip("no CUDA device on this machine", _no_gpu, "needs a GPU"),
    Skip(
        "a GPU is here|with a device the real operator is tested",
        lambda: not _no_gpu(),
        "is for machines without a GPU",
    ),
    Skip("^(xformers|triton): ", _no_gpu, "needs a GPU's kernels"),
    Skip(
        f"^{re.escape(str(SHARED))}.* is not here",
        lambda: not SHARED.exists(),
        "needs the shared folder (JAVISC_SHARED)",
    ),
    Skip("set JAVISC_PARITY", lambda: not PARITY.exists(), "needs the reference's fixtures (JAVISC_PARITY)"),
    Skip("^the file has no ", lambda: True, "asks more than this fixture of the reference holds"),
    Skip("JAVISC_CLIP_TOKENIZER", lambda: "JAVISC_CLIP_TOKENIZER" not in os.environ, "needs a CLIP tokenizer's file"),
    Skip("the system has no ffmpeg", _lacks("ffmpeg"), "needs the system's ffmpeg"),
    Skip("no Chromium", _lacks("chromium", "chromium-browser", "google-chrome"), "needs a browser"),
    Skip("two nodes need", lambda: os.geteuid() != 0 or _lacks("ip")(), "needs root and iproute2"),
    Skip("needs a C\\+\\+ compiler", _lacks("g++", "clang++"), "needs a C++ compiler"),
    Skip("root reads everything|may read everything", lambda: os.geteuid() == 0, "is for users that are not root"),
    Skip(
        "not one of .ci/env's",
        lambda: not (_LIBRARY / "deps.pth").exists(),
        "looks at the environments that .ci/env makes",
    ),
    Skip("set JAVISC_KILLS", lambda: "JAVISC_KILLS" not in os.environ, "takes half a minute"),
    Skip(
        "^a (node|folder) with little",
        lambda: os.geteuid() != 0 or not os.access("/sys/fs/cgroup/memory", os.W_OK),
        "needs root, mounts and memory cgroups of version 1",
    ),
    Skip("nvidia.dali|wds2idx", lambda: platform.machine() != "x86_64", "needs DALI, which is made for x86_64"),
)


def expected(reason: str) -> Skip | None:
    """The row that allows a skip with this reason on this machine, or None."""
    return next((row for row in EXPECTED if re.search(row.words, reason) and row.here()), None)
