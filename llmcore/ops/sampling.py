"""From logits to a token: the pieces of the sampling program, each vectorised over rows with its own parameters.

Filters take and return probabilities that sum to one, in the order softmax → top_k → top_p → min_p → sample. A
parameter value that means "off" (``k <= 0``, ``p >= 1`` for top_p, ``p <= 0`` for min_p) leaves its row as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops import sampling_cases as cases
from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(inputs=["logits: f32[R, V]"], outputs=["ids: i32[R]"], cases=cases.argmax)
def argmax(logits: Tensor) -> Tensor:
    """The index of each row's largest value, the lowest index among equals."""
    import torch

    best = logits.amax(-1, keepdim=True)
    index = torch.arange(logits.shape[1], device=logits.device)
    return torch.where(logits == best, index, logits.shape[1]).amin(-1).to(torch.int32)


@op(
    inputs=["logits: f32[R, V]", "temperature: f32[R]"],
    outputs=["probs: f32[R, V]"],
    inplace={"probs": ("logits",)},
    cases=cases.softmax,
)
def softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of ``logits / temperature``; temperature must be positive."""
    return (logits.float() / temperature[:, None]).softmax(-1)


@op(
    inputs=["probs: f32[R, V]", "k: i32[R]"],
    outputs=["y: f32[R, V]"],
    inplace={"y": ("probs",)},
    cases=cases.top_k,
)
def top_k(probs: Tensor, k: Tensor) -> Tensor:
    """Keeps every row's ``k`` most probable tokens (all that tie with the k-th) and renormalises (Fan et al. 2018)."""
    vocab = probs.shape[1]
    count = k.long().clamp(max=vocab)
    ranked = probs.sort(-1, descending=True).values
    threshold = ranked.gather(1, (count - 1).clamp(min=0)[:, None])
    kept = probs * ((probs >= threshold) | (count <= 0)[:, None])
    return kept / kept.sum(-1, keepdim=True)


@op(
    inputs=["probs: f32[R, V]", "p: f32[R]"],
    outputs=["y: f32[R, V]"],
    inplace={"y": ("probs",)},
    cases=cases.top_p,
)
def top_p(probs: Tensor, p: Tensor) -> Tensor:
    """Keeps the fewest most probable tokens whose sum reaches ``p``, ties with the last included; renormalises.

    Nucleus sampling, Holtzman et al. 2019 (arXiv:1904.09751). At least one token stays.
    """
    ranked = probs.double().sort(-1, descending=True).values
    before = ranked.cumsum(-1) - ranked  # the mass of all tokens ranked above
    last = (before < p.double()[:, None]).sum(-1).clamp(min=1) - 1
    threshold = ranked.gather(1, last[:, None]).float()
    kept = probs * ((probs >= threshold) | (p >= 1)[:, None])
    return kept / kept.sum(-1, keepdim=True)


@op(
    inputs=["probs: f32[R, V]", "p: f32[R]"],
    outputs=["y: f32[R, V]"],
    inplace={"y": ("probs",)},
    cases=cases.min_p,
)
def min_p(probs: Tensor, p: Tensor) -> Tensor:
    """Keeps tokens at least ``p`` times as probable as the best one; renormalises.

    Nguyen et al. 2024 (arXiv:2407.01082).
    """
    kept = probs * (probs >= p[:, None] * probs.amax(-1, keepdim=True))
    return kept / kept.sum(-1, keepdim=True)


@op(inputs=["probs: f32[R, V]", "u: f32[R]"], outputs=["ids: i32[R]"], cases=cases.sample)
def sample(probs: Tensor, u: Tensor) -> Tensor:
    """Inverse-transform sampling: the first index whose cumulative probability exceeds ``u`` in [0, 1).

    A token of probability zero is never drawn.
    """
    import torch

    total = probs.double().cumsum(-1)
    reached = total > u.double()[:, None] * total[:, -1:]
    index = torch.arange(probs.shape[1], device=probs.device)
    return torch.where(reached & (probs > 0), index, probs.shape[1]).amin(-1).to(torch.int32)
