"""What a careful author writes in ten lines to compile sounds, a whole program: python ten_lines.py RAW OUT.tar WORKERS"""

import io
import multiprocessing
import sys
import tarfile
from pathlib import Path

import soundfile
import soxr


def one(path: Path) -> tuple[str, bytes]:
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    content = io.BytesIO()
    soundfile.write(content, soxr.resample(sound.mean(axis=1), rate, 16000, "VHQ"), 16000, "PCM_16", format="FLAC")
    return path.stem, content.getvalue()


if __name__ == "__main__":
    raw, out, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with multiprocessing.get_context("spawn").Pool(workers) as pool, tarfile.open(out, "w") as tar:
        for key, content in pool.imap(one, sorted(raw.iterdir()), 8):
            info = tarfile.TarInfo(f"{key}.flac")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        pool.close()
        pool.join()  # so that what its processes used is counted
