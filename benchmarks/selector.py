"""How time and peak memory grow with the number of keys: the selector's two forms beside full attention.

    python -P benchmarks/selector.py --out benchmarks/results/selector.md        (or: javisc bench selector)

SparseSync's sizes: 16 queries, context width 512, 8 heads of 64, one clip, float32, forward and backward with gradients of
the context and of all projections. Every measurement runs in a process of its own; memory is that process's peak resident
set less what it held before the first call. The exponent is the slope of a straight line through log(time) and log(memory)
over log(keys): 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.attention
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from measure import exponent

WIDTH, HEADS, QUERIES = 512, 8, 16
FORMS = {
    "projected": "selector, projected keys and values",
    "full": "full self-attention over all tokens, projected (PyTorch's fused kernel)",
    "stored": "full self-attention with its probabilities stored, as SparseSync's baseline computes it",
}


def step(form: str, keys: int) -> Callable[[], object]:
    """Return one forward and backward over `keys` context tokens."""
    from javisc.kernels.selector_attention import selector_attention

    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return (torch.randn(*size, generator=generator) / size[-1] ** 0.5).requires_grad_()

    context, queries = draw(1, keys, WIDTH), draw(1, QUERIES, HEADS, WIDTH // HEADS)
    w_q, w_k, w_v = draw(WIDTH, WIDTH), draw(WIDTH, WIDTH), draw(WIDTH, WIDTH)
    bias = torch.zeros(WIDTH, requires_grad=True)

    def heads(weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(context, weight, bias).unflatten(-1, (HEADS, -1))

    def run() -> object:
        if form == "projected":
            out, leaves = selector_attention(queries, heads(w_k), heads(w_v)), (context, w_k, w_v, queries)
        else:
            q, k, v = (heads(w).transpose(1, 2) for w in (w_q, w_k, w_v))
            fused = torch.nn.attention.SDPBackend.FLASH_ATTENTION
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH if form == "stored" else fused):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            leaves = (context, w_q, w_k, w_v)
        return torch.autograd.grad(out.sum(), leaves)

    return run


def peak() -> int:
    """Peak resident set of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(form: str, keys: int, repeats: int) -> dict[str, float]:
    """Return the fastest of `repeats` times and the growth of peak memory, in this process."""
    torch.set_num_threads(1)
    step(form, 64)()  # libraries load and allocate their own before the count starts
    before = peak()
    run, times = step(form, keys), []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return {"seconds": min(times), "bytes": peak() - before}


def table(rows: dict[str, dict[int, dict[str, float]]], command: str) -> str:
    """Return the report."""
    keys = sorted({n for row in rows.values() for n in row})
    out = [
        "# Growth with the number of keys",
        "",
        f"`{command}` on {platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, float32.",
        "16 queries over a context of width 512, 8 heads of 64, one clip, forward and backward. CPU seconds of the fastest",
        "repetition; memory is the growth of the process's peak. Exponents are fitted slopes of logarithms: 1 is linear, 2",
        "quadratic; below 1 where a fixed part still counts.",
        "Five seconds of video are about 1 000 tokens, a minute about 11 600.",
        "",
    ]
    for measure_, unit, scale in (("seconds", "CPU seconds", 1.0), ("bytes", "peak MB", 1e-6)):
        out += [f"| {unit} | " + " | ".join(f"{n // 1024}k" for n in keys) + " | exponent |"]
        out += ["|---|" + "---:|" * (len(keys) + 1)]
        for form, row in rows.items():
            cells = [f"{row[n][measure_] * scale:.3g}" if n in row else "—" for n in keys]
            slope = exponent([(n, row[n][measure_]) for n in row])
            out.append(f"| {FORMS[form]} | " + " | ".join(cells) + f" | {slope:.2f} |")
        out.append("")
    return "\n".join(out)


def main() -> int:
    """Measure, print or write the table; exit 1 if a selector's exponent passes 1.05."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[1024 * 2**i for i in range(7)], help="1k … 64k")
    parser.add_argument(
        "--full-up-to", type=int, default=8192, help="full attention stops here: its time grows fourfold per step"
    )
    parser.add_argument(
        "--stored-up-to", type=int, default=4096, help="and with stored probabilities here, as memory does, too"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FORM", "KEYS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.repeats)))
        return 0
    rows: dict[str, dict[int, dict[str, float]]] = {form: {} for form in FORMS}
    for form in FORMS:
        for keys in options.keys:
            if keys > {"full": options.full_up_to, "stored": options.stored_up_to}.get(form, keys):
                continue
            command = [sys.executable, "-P", __file__, "--one", form, str(keys), "--repeats", str(options.repeats)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[form][keys] = json.loads(done.stdout)
            print(form, keys, rows[form][keys], file=sys.stderr)
    text = table(rows, "python -P benchmarks/selector.py " + " ".join(sys.argv[1:]))
    if options.out:
        options.out.write_text(text)
    else:
        print(text)
    slopes = [exponent([(n, r[m]) for n, r in rows[f].items()]) for f in ("projected",) for m in ("seconds", "bytes")]
    return int(max(slopes) > 1.05)


if __name__ == "__main__":
    sys.exit(main())
