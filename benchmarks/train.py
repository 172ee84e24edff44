"""A training step of javisc's models beside plain implementations of the same maths.

    python -P benchmarks/train.py --model sync --out benchmarks/results/train-sync.md
    python -P benchmarks/train.py --model dit  --out benchmarks/results/train-dit.md          (or: javisc bench train -- …)

Results are compared first: loss and every gradient. On a CUDA machine the same commands measure the real sizes in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))


def main() -> int:
    """Measure, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sync", "dit"), required=True)
    parser.add_argument("--repeats", type=int, default=3, help="rounds in which every contestant runs once")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--rows", type=int, default=2, help="clips in a batch")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contestants alone")
    parser.add_argument(
        "--recompute", action="store_true", help="activation checkpointing of every block, for everyone"
    )
    parser.add_argument("--tiny", action="store_true", help="a model of toy size, to see that the program works")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    dit = parser.add_argument_group("--model dit")
    dit.add_argument("--buckets", nargs="+", metavar="NAME", help="144p-2s … 720p-4s")
    dit.add_argument("--depth", type=int, default=1, help="layers; XL/2 has 28")
    dit.add_argument("--given", action="store_true", help="give a quarter of the frames, so that masks apply")
    sync = parser.add_argument_group("--model sync")
    sync.add_argument("--seconds", type=float, default=5.0, help="clip length of the whole step")
    sync.add_argument(
        "--lengths", type=float, nargs="+", default=[5, 10, 20, 30, 60], help="clip lengths for the exponents"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model == "dit":
        from train_dit import report
    else:
        from train_sync import report
    text = "\n".join(report(options, torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
