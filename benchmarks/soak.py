"""Many short clips through one build: does memory, the count of open files or the rate drift, on either engine?

    python -P benchmarks/soak.py --clips 20000 --engine local
    python -P benchmarks/soak.py --clips 20000 --engine ray
    python -P benchmarks/soak.py --clips 150 --shard-samples 50 --clip FILE [--engine ray]   # a real clip

Prints, for each quarter of the clips, clips a second, CPU milliseconds a clip, and the most memory and open files of all
processes together. Before that the rate over all of them, and how long a shard (on Ray a unit) takes. The clips are hard links
to one of 0.5 s. Rates count from the first clip that is done, so that a cluster's start is left out. CPU time
tells a drift from a busy machine: it counts processes that run and those they have waited for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run.engine import Event
from javisc.compiler.run.progress import Reporter
from support.raw import write_clip


def _family() -> list[int]:
    """This process and all below it; on Ray the nodes' processes are among them where the cluster is `local`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, edge = [], [os.getpid()]
    while edge:
        found += edge
        edge = [pid for pid, parent in parents.items() if parent in edge]
    return found


def _usage(pids: list[int]) -> tuple[float, int, float]:
    """Proportional memory (GB), open files and CPU seconds (with those of children that ended) of some processes."""
    memory, files, ticks = 0, 0, 0
    for pid in pids:
        try:
            rolled = Path(f"/proc/{pid}/smaps_rollup").read_text()
            memory += int(next(line for line in rolled.splitlines() if line.startswith("Pss:")).split()[1])
            files += len(os.listdir(f"/proc/{pid}/fd"))
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        except (OSError, StopIteration):
            continue
    return memory / 1e6, files, ticks / os.sysconf("SC_CLK_TCK")


class Watch(Reporter):
    """Notes when each clip is done."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.work = 0.0

    def event(self, event: Event) -> None:
        self.times.append(time.monotonic())
        self.work += event.work_seconds
        super().event(event)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--clip", type=Path, help="take this file instead of the small one of 0.5 s")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--address", default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-samples", type=int, default=250)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        raw = Path(folder, "raw")
        recipe = PRESETS["jav"]
        if arguments.clip is not None:
            raw.mkdir()
            shutil.copyfile(arguments.clip, raw / "0.mp4")
        else:
            write_clip(raw / "0.mp4", seconds=0.5)
            recipe = recipe.replace(short_side=64, encoder_preset="ultrafast", min_frames=3)
        for number in range(1, arguments.clips):
            place = raw / f"{number // 1000:04d}" / f"{number:06d}.mp4"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(raw / "0.mp4")
        watch, seen, over = Watch(), list[tuple[float, float, int, float]](), threading.Event()

        def look() -> None:
            while not over.wait(2.0):
                seen.append((time.monotonic(), *_usage(_family())))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        options = BuildOptions(
            workers=arguments.workers,
            engine=arguments.engine,
            address=arguments.address if arguments.engine == "ray" else None,
            shard_samples=arguments.shard_samples,
        )
        result = build(from_raw([str(raw)]), recipe, Path(folder, "ds"), options, reporter=watch)
        over.set()
        thread.join()
        print(
            f"{arguments.engine}: {result.samples} samples, {sum(result.rejected.values())} rejected, {result.seconds:.0f} s; "
            f"from the first clip to the last {(len(watch.times) - 1) / (watch.times[-1] - watch.times[0]):.2f} a second; "
            f"{watch.work / result.shards:.0f} s of work a shard, {watch.work / result.shards / arguments.workers:.0f} s with "
            f"{arguments.workers} workers"
        )
        print(
            "| quarter | clips a second | CPU ms a clip | most memory, GB | most open files |\n|---:|---:|---:|---:|---:|"
        )
        edges = [watch.times[min(len(watch.times) - 1, len(watch.times) * part // 4)] for part in range(5)]
        for part in range(4):
            low, high = edges[part], edges[part + 1]
            inside = [each for each in seen if low <= each[0] <= high] or seen[-1:]
            # Processes that end unseen take their time with them: the most that was seen counts.
            most = max(inside, key=lambda each: each[3])
            spent = 1000 * (most[3] - inside[0][3]) / max(1e-9, most[0] - inside[0][0])
            rate = len(watch.times) / 4 / max(1e-9, high - low)
            memory, files = max(each[1] for each in inside), max(each[2] for each in inside)
            print(f"| {part + 1} | {rate:.1f} | {spent / rate:.1f} | {memory:.2f} | {files} |")


if __name__ == "__main__":
    main()
