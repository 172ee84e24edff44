"""A worker's memory neither grows with the number of clips nor follows what a header claims."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from support.media import Spec, write
from support.peak import peak

SMALL = PRESETS["jav"].replace(encoder_preset="ultrafast", allow_silent=True)


def resident() -> int:
    """Resident memory of this process now, KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compile_often(source: str, scratch: str) -> None:
    """Run in a process of its own: print the memory after 20 and after 80 clips."""
    for count in range(80):
        transcode(Path(source), SMALL, Path(scratch))
        if count in (19, 79):
            print(resident())


def claim(path: str, scratch: str) -> None:
    """Run in a process of its own: print the reason and the memory that the attempt took at its peak, KiB."""
    before = peak()
    try:
        transcode(Path(path), SMALL, Path(scratch))
        print("ok")
    except Rejected as rejected:
        print(rejected.reason)
    print(peak() - before)


def alone(call: str, *arguments: Path) -> list[str]:
    places = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    code = f"import sys; sys.path[:0] = {places!r}\nimport test_memory; test_memory.{call}(*{[str(a) for a in arguments]!r})"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.split()


def test_memory_stays_flat_over_many_clips(tmp_path: Path) -> None:
    source = write(Spec(fps="30", seconds=0.6, video_options=(("bf", "2"),)), tmp_path / "source.mp4")
    early, late = map(int, alone("compile_often", source, tmp_path))
    assert late - early < 6 * 1024, f"{late - early} KiB more after 60 more clips"


def test_a_header_cannot_claim_memory(tmp_path: Path) -> None:
    """A small file that promises pictures of 30000 x 30000."""
    source = tmp_path / "huge.avi"
    write(Spec("avi", "mpeg4", "pcm_s16le", seconds=0.6), source)
    content = bytearray(source.read_bytes())
    at = content.index(b"strf") + 8
    content[at + 4 : at + 12] = (30000).to_bytes(4, "little") * 2
    source.write_bytes(content)
    flat = tmp_path / "huge.mp4"
    flat.write_bytes(b"YUV4MPEG2 W30000 H30000 F24:1 C420jpeg\n" + b"FRAME\n" + bytes(10_000))
    for path, reasons in (
        (source, ("ok",)),
        (flat, ("too_large", "corrupt", "not_media")),
    ):  # the AVI's stream tells the truth
        reason, peak = alone("claim", path, tmp_path)
        assert reason in reasons, reason
        assert int(peak) < 200 * 1024, f"{path.name}: {peak} KiB"
