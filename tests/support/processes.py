"""Starting processes that load or train, and looking at the processes of a running build."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from pathlib import Path

from support.forked import servers

#: What processes of tests import in the end. PyTorch imports its compiler when an optimizer takes its first step.
_PRELOADED = [
    "javisc.trainer.engine.loop",
    "javisc.trainer.data.bytes.loader",
    "javisc.trainer.models.dit",
    "javisc.trainer.models.sync.model",
    "javisc.trainer.tasks.prior",
    "javisc.trainer.tasks.jav",
    "javisc.trainer.use.encode_part",
    "javisc.trainer.use.score_worker",
    "javisc.trainer.use.previews",
    "torch._dynamo",
    # The tiny encoders of the recipes bring these, which cost a process as much as torch itself.
    "diffusers.models.autoencoders",
    "transformers.models.t5.modeling_t5",
    "transformers.models.speecht5.modeling_speecht5",
    "transformers.models.clip.tokenization_clip",
    "xformers.ops",
    "javisc.trainer.tasks.audio",
    "javisc.trainer.tasks.sync_audio",
    "javisc.trainer.tasks.synchformer",
]


def forkserver() -> ForkServerContext:
    """Processes that have torch and DALI imported when they start: seconds of this machine each.

    Python 3.11's server knows nothing of our sys.path, and passes over silently what it cannot import: installed modules only.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def workers_of(parent: int) -> list[tuple[int, bool]]:
    """The worker processes of a build: (process, whether it only retries one file, which no fork is seen to do)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if above == parent and b"run.worker" in command and int(entry.name) not in servers():
                found.append((int(entry.name), b"--retry" in command))
    return found


def alive(pid: int) -> bool:
    """True unless the process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def before_others(folder: Path) -> str:
    """PYTHONPATH for a child that looks in `folder` first, then where this process looks: at a copy with a fault in it."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
