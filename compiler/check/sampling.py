"""A seeded share of a dataset, and what a check of it may have missed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from javisc.compiler.plan.keys import draw

CONFIDENCE = 0.95


def drawn(keys: Iterable[str], share: float, seed: int) -> set[str]:
    """The keys of the draw: each by its own number from seed and key, so that parts of a dataset draw the same as the whole.

    At least one, where there is any.
    """
    edge, least, found = share * 2.0**64, None, set()
    for key in keys:
        number = draw(seed, key)
        least = (number, key) if least is None else min(least, (number, key))
        if number < edge:
            found.add(key)
    return found or (set() if least is None else {least[1]})


def at_most(bad: int, seen: int) -> float:
    """The share that is bad at most, with CONFIDENCE, where `bad` of `seen` drawn ones were (Clopper and Pearson 1934).

    It is the p at which so few as `bad` would be drawn with a chance of 1 − CONFIDENCE: Σ_{i ≤ bad} C(n,i) pⁱ (1−p)ⁿ⁻ⁱ = 0.05.
    """
    if bad >= seen:
        return 1.0
    low, high = bad / seen, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _few(bad, seen, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _few(bad: int, seen: int, share: float) -> float:
    """The chance of at most `bad` among `seen`."""
    if not 0 < share < 1:
        return float(share <= 0)
    whole = math.lgamma(seen + 1)
    return sum(
        math.exp(
            whole
            - math.lgamma(i + 1)
            - math.lgamma(seen - i + 1)
            + i * math.log(share)
            + (seen - i) * math.log1p(-share)
        )
        for i in range(bad + 1)
    )
