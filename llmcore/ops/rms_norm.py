"""Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmcore.ops.base import Case, op

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SHAPES = (  # M, D, C
    *((0, 64, 64), (1, 1, 1), (1, 576, 576), (2, 7, 7), (3, 33, 33), (33, 256, 256)),
    *((1, 64, 16), (7, 96, 32), (2, 50, 5)),  # heads
)


def _quiet(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Values whose mean square is about ``eps``: a kernel that misplaces it, or takes another, is off by far."""
    return {"x": (rng.standard_normal((dims["M"], dims["D"])) * 2e-3).astype("float32")}


def _loud(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Values of very different size from row to row, as hidden states have them."""
    scales = 10.0 ** rng.uniform(-2, 4, (dims["M"], 1))
    return {"x": (rng.standard_normal((dims["M"], dims["D"])) * scales).astype("float32")}


def rms_norm_cases() -> Iterator[Case]:
    """Whole rows, heads, and values at both ends of the scale."""
    for rows, width, group in SHAPES:
        yield Case({"M": rows, "D": width, "C": group}, {"eps": 1e-5})
    yield Case({"M": 3, "D": 64, "C": 64}, {"eps": 1e-6}, inputs=_quiet, note="quiet")
    yield Case({"M": 7, "D": 64, "C": 64}, {"eps": 1e-5}, inputs=_loud, note="loud")


@op(
    inputs=["x: act[M, D]"],
    weights=["weight: f32[C]"],
    outputs=["y: act[M, D]"],
    inplace={"y": ("x",)},
    cases=rms_norm_cases,
)
def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Each group of ``C`` consecutive elements divided by its RMS, times ``weight``.

    ``C == D`` normalises a hidden state; ``C`` = head size normalises every query or key head by itself (Qwen3).
    """
    width = weight.shape[0]
    groups = x.float().view(x.shape[0], x.shape[1] // width, width)  # [M, D / C, C]
    scale = (groups.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (groups * scale * weight).view_as(x)
