"""From logits to a token: the pieces of the sampling program, each vectorised over rows with its own parameters.

Filters take and return probabilities that sum to one, in the order softmax → top_k → top_p → min_p → sample. A
parameter value that means "off" (``k <= 0``, ``p >= 1`` for top_p, ``p <= 0`` for min_p) leaves its row as it is.

The greedy token of a row of logits that holds NaN is -1: a broken model is seen where nobody reads its logits. The
other ops yield a token for every row, whatever a broken model or a ban of all tokens makes of it. NaN is what cannot be
chosen: minus infinity as a logit, zero as a probability. A row in which nothing can be chosen is all zeros for the
filters, which leave it so, and its token is 0.

Log-probabilities of the model's own distribution are made of ``exp_sum`` and, for those of the most probable tokens,
``largest``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcore.ops import sampling_cases as cases
from llmcore.ops.base import op

if TYPE_CHECKING:
    from torch import Tensor


@op(inputs=["logits: f32[R, V]"], outputs=["ids: i32[R]"], cases=cases.argmax)
def argmax(logits: Tensor) -> Tensor:
    """The index of each row's largest value, the lowest index among equals; -1 for a row that holds NaN."""
    import torch

    best = logits.amax(-1, keepdim=True)  # NaN where there is one
    index = torch.arange(logits.shape[1], device=logits.device)
    found = torch.where(logits == best, index, logits.shape[1]).amin(-1)
    return torch.where(best[:, 0].isnan(), -1, found).to(torch.int32)


@op(
    inputs=["logits: f32[R, V]", "temperature: f32[R]"],
    outputs=["probs: f32[R, V]"],
    inplace={"probs": ("logits",)},
    cases=cases.softmax,
)
def softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """Softmax of ``logits / temperature``; temperature must be positive, and may be as small as a float32 can be.

    Infinite logits share all of the probability.
    """
    import torch

    finite = torch.finfo(torch.float32)
    logits = logits.float().nan_to_num(nan=float("-inf"), posinf=finite.max, neginf=float("-inf"))
    below = logits - logits.amax(-1, keepdim=True).clamp(min=finite.min)  # before it is divided: that may overflow
    return _normalised((below / temperature[:, None]).exp())


@op(
    inputs=["probs: f32[R, V]", "k: i32[R]"],
    outputs=["y: f32[R, V]"],
    inplace={"y": ("probs",)},
    cases=cases.top_k,
)
def top_k(probs: Tensor, k: Tensor) -> Tensor:
    """Keeps every row's ``k`` most probable tokens (all that tie with the k-th) and renormalises (Fan et al. 2018)."""
    probs, vocab = _choosable(probs), probs.shape[1]
    count = k.long().clamp(max=vocab)
    ranked = probs.sort(-1, descending=True).values
    threshold = ranked.gather(1, (count - 1).clamp(min=0)[:, None])
    kept = probs * ((probs >= threshold) | (count <= 0)[:, None])
    return _normalised(kept)


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
    probs = _choosable(probs)
    ranked = probs.double().sort(-1, descending=True).values
    before = ranked.cumsum(-1) - ranked  # the mass of all tokens ranked above
    last = (before < p.double()[:, None]).sum(-1).clamp(min=1) - 1
    threshold = ranked.gather(1, last[:, None]).float()
    kept = probs * ((probs >= threshold) | (p >= 1)[:, None])
    return _normalised(kept)


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
    probs = _choosable(probs)
    kept = probs * (probs >= p[:, None] * probs.amax(-1, keepdim=True))
    return _normalised(kept)


@op(inputs=["probs: f32[R, V]", "u: f32[R]"], outputs=["ids: i32[R]"], cases=cases.sample)
def sample(probs: Tensor, u: Tensor) -> Tensor:
    """Inverse-transform sampling: the first index whose cumulative probability exceeds ``u`` in [0, 1).

    A token of probability zero is never drawn, but for token 0 where all are.
    """
    import torch

    probs, vocab = _choosable(probs), probs.shape[1]
    total = probs.double().cumsum(-1)
    reached = total > u.double()[:, None] * total[:, -1:]
    index = torch.arange(vocab, device=probs.device)
    first = torch.where(reached & (probs > 0), index, vocab).amin(-1)
    return torch.where(first < vocab, first, 0).to(torch.int32)


@op(
    inputs=["logits: f32[R, V]"],
    outputs=["high: f32[R]", "total: f32[R]"],
    cases=cases.exp_sum,
)
def exp_sum(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest logit, and the sum of ``exp(logit - it)``: the logarithm of that plus it is log-sum-exp.

    The two numbers of Milakov & Gimelshein 2018 (arXiv:1805.02867). Infinite logits count as the largest number.
    """
    import torch

    finite = torch.finfo(torch.float32)
    logits = logits.float().nan_to_num(nan=float("-inf"), posinf=finite.max, neginf=float("-inf"))
    high = logits.amax(-1).clamp(min=finite.min)
    return high, (logits - high[:, None]).double().exp().sum(-1).float()


@op(inputs=["logits: f32[R, V]"], outputs=["ids: i32[R, N]"], cases=cases.largest)
def largest(logits: Tensor, *, n: int) -> Tensor:
    """The indices of each row's ``n`` largest values, the largest first, the lowest index first among equals.

    ``n`` is at most ``V``; NaN count as minus infinity.
    """
    import torch

    known = torch.where(logits.isnan(), float("-inf"), logits)
    return known.sort(dim=-1, descending=True, stable=True).indices[:, :n].to(torch.int32)


def _choosable(probs: Tensor) -> Tensor:
    """``probs`` with zero for NaN."""
    import torch

    return torch.where(probs > 0, probs, 0.0)


def _normalised(weights: Tensor) -> Tensor:
    """Rows that sum to one; a row of zeros stays."""
    import torch

    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)
