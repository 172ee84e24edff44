"""How well offsets, or anything else, are told: both families' metrics over pooled logits (N,C) and targets (N,)."""

from __future__ import annotations

import logging
import math
from statistics import NormalDist

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


def _average_precision(scores: Tensor, positive: Tensor) -> float:
    """Σ (recall gained at a threshold) · (precision there), equal scores sharing a threshold."""
    hits, seen = _cumulative(scores, positive)
    recall = hits / hits[-1]
    return float((torch.diff(recall, prepend=recall.new_zeros(1)) * hits / seen).sum())


def _roc_auc(scores: Tensor, positive: Tensor) -> float:
    """The area under the ROC curve by trapezoids: ties count half."""
    hits, seen = _cumulative(scores, positive)
    false = seen - hits
    zero = hits.new_zeros(1)
    return float(torch.trapezoid(torch.cat((zero, hits)) / hits[-1], torch.cat((zero, false)) / false[-1]))


def _cumulative(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Positives and all rows at or above each distinct score, from the highest down, float64."""
    order = scores.argsort(descending=True, stable=True)
    scores, hits = scores[order], positive[order].double().cumsum(0)
    last = torch.cat((scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)))
    return hits[last], (torch.arange(len(scores), dtype=torch.float64) + 1)[last]


def sync_metrics(logits: Tensor, targets: Tensor, ks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """accuracy_k, accuracy_k_tol1 (a neighbouring class counts too), mAP, mROCAUC and dprime.

    k is capped at the number of classes. Of equal probabilities the higher class ranks first (scikit-learn's rule). Of two
    classes there is one accuracy, by a probability above a half; neighbours would say nothing. A class that never occurs makes
    mAP 0 and mROCAUC 0.5. Logits that are not all finite are replaced by chance, with a warning, as in the reference: a
    diverged model scores what it deserves.
    """
    logits, targets = logits.detach().float().cpu(), targets.detach().cpu()
    classes = logits.shape[1]
    if not logits.isfinite().all():
        _log.warning("the logits hold inf or nan: scored as random guesses")
        logits = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    result: dict[str, float] = {}
    probabilities = logits.softmax(1)
    if classes == 2:
        result["accuracy_1"] = float(((probabilities[:, 1] > 0.5) == targets).float().mean())
    else:
        most = sorted({min(k, classes) for k in ks})
        ranked = probabilities.sort(dim=1, stable=True).indices.flip(1)
        result |= {f"accuracy_{k}": float((ranked[:, :k] == targets[:, None]).any(1).float().mean()) for k in most}
        near = torch.stack([(targets + step).clamp(0, classes - 1) for step in (-1, 0, 1)], 1)
        ranked = logits.topk(most[-1], dim=1).indices
        for k in most:
            found = (ranked[:, :k, None] == near[:, None]).any(2).any(1)
            result[f"accuracy_{k}_tol1"] = float(found.float().mean())
    if len(torch.unique(targets)) < classes or classes < 2 or len(targets) == 0:
        result |= {"mAP": 0.0, "mROCAUC": 0.5}
    else:
        one_hot = targets[:, None] == torch.arange(classes)
        columns = [(probabilities[:, c], one_hot[:, c]) for c in range(classes)]
        result["mAP"] = math.fsum(_average_precision(*column) for column in columns) / classes
        result["mROCAUC"] = math.fsum(_roc_auc(*column) for column in columns) / classes
    # Φ⁻¹ has no value at the ends: a perfect ranking is told as the largest finite one.
    area = min(max(result["mROCAUC"], 1e-15), 1 - 1e-15)
    result["dprime"] = math.sqrt(2) * NormalDist().inv_cdf(area)
    return result
