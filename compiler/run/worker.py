"""A worker process: answers calls one after the other over a socket, and ends when its parent does.

Started as `python -m javisc.compiler.run.worker FD PARENT MODULE…`, never forked, so it inherits no locks, threads or
codec state. The modules are imported before it says that it is ready: no file's time limit pays for them.
Messages are JSON: {"call": "module:function", "arguments": {…}} is answered by {"value": …} or {"error": …}; before that, a
call that lasts may say {"needs": seconds}.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from javisc.compiler.reasons import Rejected
from javisc.compiler.run.effort import LINE
from javisc.manifests.environment import UNWRITABLE, Unavailable, chain
from javisc.manifests.errors import UserError

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """End this process when its parent ends, even while it hangs in a codec (Linux: the kernel does it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def answer(message: bytes) -> dict[str, Any]:
    """Call what a message names. Every exception becomes an answer: the parent decides what it means."""
    request = json.loads(message)
    module, _, function = request["call"].partition(":")
    try:
        return {"value": getattr(importlib.import_module(module), function)(**request["arguments"])}
    except Unavailable as error:
        return {"error": "unavailable", "message": str(error), "waited": error.waited}
    except UserError as error:
        return {"error": "fatal", "message": str(error), "code": error.exit_code}
    except MemoryError as error:
        # As good as a crash: a fresh worker that does nothing else may have the memory.
        return {"error": "memory", "message": f"out of memory: {error}"}
    except Exception as error:  # noqa: BLE001 (a worker must outlive whatever a library throws at a hostile file)
        if full := _unwritable(error):
            return {"error": "unwritable", "errno": full.errno, "message": str(full), "path": full.filename}
        if isinstance(error, Rejected):
            return {"error": "rejected", "reason": error.reason, "message": error.message}
        traceback.print_exc()
        return {"error": "raised", "message": f"{type(error).__name__}: {error}"}


def _unwritable(error: BaseException | None) -> OSError | None:
    """The error of a full or read-only disk in a chain of causes, whatever it was wrapped into."""
    for each in chain(error):
        if isinstance(each, OSError) and each.errno in UNWRITABLE:
            return each
        code = getattr(each, "errno", None)
        if code in UNWRITABLE:
            return OSError(code, os.strerror(code))
    return None


def main(descriptor: int, parent: int, preload: list[str]) -> None:
    """Serve until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)
    connection = Connection(descriptor)
    for module in preload:
        importlib.import_module(module)
    gc.freeze()  # what is imported lives as long as the process: no collection looks at it again
    LINE.send = lambda seconds: connection.send_bytes(json.dumps({"needs": seconds}).encode())
    connection.send_bytes(b"{}")
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(json.dumps(answer(message)).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), [name for name in sys.argv[3:] if not name.startswith("-")])
