"""The sampling ops, every row with its own parameters. Outputs may be the memory of the probabilities they filter."""

from __future__ import annotations

import torch


def argmax(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """The first index of each row's maximum."""
    ids.copy_(logits.argmax(-1))


def softmax(logits: torch.Tensor, temperature: torch.Tensor, probs: torch.Tensor) -> None:
    """Softmax of ``logits / temperature``."""
    torch.softmax(logits / temperature[:, None], -1, out=probs)


def top_k(probs: torch.Tensor, k: torch.Tensor, y: torch.Tensor) -> None:
    """Zeroes all below the k-th largest of a row; rows with ``k <= 0`` keep everything."""
    if not len(k):
        return
    k = k.long().clamp(max=probs.shape[1])
    ranked = probs.topk(max(1, int(k.max())), dim=-1).values
    kth = ranked.gather(1, (k - 1).clamp(min=0)[:, None])
    _keep(probs, torch.where((k > 0)[:, None], kth, 0), y)


def top_p(probs: torch.Tensor, p: torch.Tensor, y: torch.Tensor) -> None:
    """Zeroes all below the smallest of the best tokens whose sum reaches ``p``; ``p >= 1`` keeps all."""
    ranked = probs.sort(-1, descending=True).values
    reached = ranked.double().cumsum(-1) >= p.double()[:, None]  # [R, V]; float32 sums would move the edge
    last = probs.shape[1] - reached.sum(-1, keepdim=True)  # tokens whose sum is still short of p
    edge = ranked.gather(1, last.clamp(max=probs.shape[1] - 1))
    _keep(probs, torch.where((p < 1)[:, None], edge, 0), y)


def min_p(probs: torch.Tensor, p: torch.Tensor, y: torch.Tensor) -> None:
    """Zeroes all below ``p`` times the row's largest."""
    _keep(probs, p[:, None] * probs.amax(-1, keepdim=True), y)


def _keep(probs: torch.Tensor, threshold: torch.Tensor, y: torch.Tensor) -> None:
    """Keeps what is at least ``threshold`` [R, 1] and makes every row sum to one again."""
    kept = torch.where(probs >= threshold, probs, 0)
    torch.div(kept, kept.sum(-1, keepdim=True), out=y)


def sample(probs: torch.Tensor, u: torch.Tensor, ids: torch.Tensor) -> None:
    """The first index whose cumulative probability exceeds ``u``, in [0, 1)."""
    total = probs.double().cumsum(-1)
    target = u.double()[:, None] * total[:, -1:]
    ids.copy_(torch.searchsorted(total, target, right=True)[:, 0])
