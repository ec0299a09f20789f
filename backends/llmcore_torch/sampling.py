"""The sampling ops, every row with its own parameters. Outputs may be the memory of the probabilities they filter.

What NaN means, and a row in which no token can be chosen, is in :mod:`llmcore.ops.sampling`.
"""

from __future__ import annotations

import torch

INFINITY = float("inf")
FINITE = torch.finfo(torch.float32)


def argmax(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """The first index of each row's maximum, which is a NaN where there is one: -1 then."""
    best = logits.argmax(-1, keepdim=True)
    ids.copy_(best.masked_fill_(logits.gather(-1, best).isnan(), -1)[:, 0])


def softmax(logits: torch.Tensor, temperature: torch.Tensor, probs: torch.Tensor) -> None:
    """Softmax of ``logits / temperature``; the largest is taken off first, since a quotient may overflow."""
    below = logits.nan_to_num(nan=-INFINITY, posinf=FINITE.max, neginf=-INFINITY)
    below -= below.amax(-1, keepdim=True).clamp_(min=FINITE.min)
    torch.softmax(below.div_(temperature[:, None]), -1, out=probs)
    probs.nan_to_num_(nan=0.0)  # a row of minus infinity


def top_k(probs: torch.Tensor, k: torch.Tensor, y: torch.Tensor) -> None:
    """Zeroes all below the k-th largest of a row; rows with ``k <= 0`` keep everything."""
    if not len(k):
        return
    probs = _choosable(probs)
    k = k.long().clamp(max=probs.shape[1])
    ranked = probs.topk(max(1, int(k.max())), dim=-1).values
    kth = ranked.gather(1, (k - 1).clamp(min=0)[:, None])
    _keep(probs, torch.where((k > 0)[:, None], kth, 0), y)


def top_p(probs: torch.Tensor, p: torch.Tensor, y: torch.Tensor) -> None:
    """Zeroes all below the smallest of the best tokens whose sum reaches ``p``; ``p >= 1`` keeps all."""
    probs = _choosable(probs)
    ranked = probs.sort(-1, descending=True).values
    reached = ranked.double().cumsum(-1) >= p.double()[:, None]  # [R, V]; float32 sums would move the edge
    last = probs.shape[1] - reached.sum(-1, keepdim=True)  # tokens whose sum is still short of p
    edge = ranked.gather(1, last.clamp(max=probs.shape[1] - 1))
    _keep(probs, torch.where((p < 1)[:, None], edge, 0), y)


def min_p(probs: torch.Tensor, p: torch.Tensor, y: torch.Tensor) -> None:
    """Zeroes all below ``p`` times the row's largest."""
    probs = _choosable(probs)
    _keep(probs, p[:, None] * probs.amax(-1, keepdim=True), y)


def _choosable(probs: torch.Tensor) -> torch.Tensor:
    """``probs`` with zero for NaN."""
    return torch.where(probs > 0, probs, 0.0)


def _keep(probs: torch.Tensor, threshold: torch.Tensor, y: torch.Tensor) -> None:
    """Keeps what is at least ``threshold`` [R, 1] and makes every row sum to one again, but for rows of zeros."""
    kept = torch.where(probs >= threshold, probs, 0)
    total = kept.sum(-1, keepdim=True)
    torch.div(kept, torch.where(total > 0, total, 1.0), out=y)


def sample(probs: torch.Tensor, u: torch.Tensor, ids: torch.Tensor) -> None:
    """The first index whose cumulative probability exceeds ``u``, in [0, 1); 0 where all is zero."""
    total = _choosable(probs).double().cumsum(-1)
    target = u.double()[:, None] * total[:, -1:]
    first = torch.searchsorted(total, target, right=True)[:, 0]
    ids.copy_(torch.where(first < probs.shape[1], first, 0))


def exp_sum(logits: torch.Tensor, high: torch.Tensor, total: torch.Tensor) -> None:
    """Each row's largest logit, and the sum of the exponentials of all below it."""
    known = logits.nan_to_num(nan=-INFINITY, posinf=FINITE.max, neginf=-INFINITY)
    high.copy_(known.amax(-1).clamp_(min=FINITE.min))
    known -= high[:, None]
    torch.sum(known.exp_(), -1, out=total)


def largest(logits: torch.Tensor, ids: torch.Tensor, *, n: int) -> None:
    """The ``n`` largest; a stable sort, as ``topk`` leaves the order of equals open."""
    known = torch.where(logits.isnan(), -INFINITY, logits)
    ids.copy_(known.sort(dim=-1, descending=True, stable=True).indices[:, :n])
