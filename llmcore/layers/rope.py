"""RoPE tables: cosine and sine of every position's angles, for each scaling variant by its own formula.

Sources: default, Su et al. 2021 (arXiv:2104.09864); linear, Chen et al. 2023 (arXiv:2306.15595); dynamic, the NTK-aware
scaling of Peng et al. 2023 (arXiv:2309.00071, appendix B); llama3, the Llama 3.1 reference; yarn, arXiv:2309.00071.

Angles are float32 products of position and inverse frequency, as the models were trained with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.layers.base import Const, GraphBuilder
from llmcore.model_spec import RopeSpec

Floats = np.ndarray[Any, np.dtype[np.float32]]


def _powers(spec: RopeSpec, theta: float | Floats) -> Floats:
    """``theta ** (-2 f / dim)`` for ``f`` in ``0 … dim/2``; one row per theta where it is a column."""
    exponents = np.arange(0, spec.dim, 2, dtype=np.float32) / np.float32(spec.dim)
    powers: Floats = (1.0 / np.power(np.asarray(theta, np.float32), exponents)).astype(np.float32)
    return powers


def _llama3(spec: RopeSpec) -> Floats:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between blended."""
    base = _powers(spec, spec.theta)
    wavelengths = 2 * math.pi / base
    low, high = spec.low_freq_factor, spec.high_freq_factor
    blend = (spec.original_positions / wavelengths - low) / (high - low)
    mixed = (1 - blend) * base / spec.factor + blend * base
    stretched = np.where(wavelengths > spec.original_positions / low, base / spec.factor, mixed)
    return np.where(wavelengths < spec.original_positions / high, base, stretched).astype(np.float32)


def _yarn(spec: RopeSpec) -> Floats:
    """Between two rotation counts, a linear ramp from extrapolation to interpolation by ``factor``."""

    def index_of(rotations: float) -> float:  # the pair that turns `rotations` times within the original context
        turns = spec.original_positions / (rotations * 2 * math.pi)
        return spec.dim * math.log(turns) / (2 * math.log(spec.theta))

    low, high = index_of(spec.beta_fast), index_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    span = max(high - low, 0.001)  # equal ends would divide by zero
    ramp = np.clip((np.arange(spec.dim // 2, dtype=np.float32) - low) / span, 0, 1)
    base = _powers(spec, spec.theta)
    blended: Floats = (base / spec.factor * ramp + base * (1 - ramp)).astype(np.float32)
    return blended


def _dynamic(spec: RopeSpec, positions: int) -> Floats:
    """A frequency row for every position: from ``original_positions`` on, theta grows with the length so far.

    The base depends on the position alone, so that a token's key does not depend on how the prompt was cut into
    chunks: what token-by-token generation of the original does. (Given a longer prompt at once, transformers turns all
    of it by the base of the whole length, so its logits depend on how the tokens were fed.)
    """
    lengths = np.maximum(np.arange(1, positions + 1, dtype=np.float64), spec.original_positions)
    growth = spec.factor * lengths / spec.original_positions - (spec.factor - 1)
    thetas = spec.theta * growth ** (spec.dim / (spec.dim - 2))
    return _powers(spec, thetas[:, None].astype(np.float32))


def inverse_frequencies(spec: RopeSpec, positions: int) -> Floats:
    """Radians per position of every pair: ``[dim / 2]``, or ``[positions, dim / 2]`` for ``dynamic``."""
    if spec.kind == "linear":
        frequencies = _powers(spec, spec.theta) / np.float32(spec.factor)
    elif spec.kind == "dynamic":
        frequencies = _dynamic(spec, positions)
    elif spec.kind == "llama3":
        frequencies = _llama3(spec)
    elif spec.kind == "yarn":
        frequencies = _yarn(spec)
    else:
        frequencies = _powers(spec, spec.theta)
    if spec.freq_factors:
        frequencies = (frequencies / np.asarray(spec.freq_factors, np.float32)).astype(np.float32)
    return frequencies


def tables(spec: RopeSpec, positions: int) -> tuple[Floats, Floats]:
    """Cosines and sines, ``[positions, dim / 2]`` each, times yarn's attention factor."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(spec, positions)
    factor = np.float32(spec.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


@dataclass(frozen=True, eq=False)
class RoPE:
    """Rotates query or key heads, ``[T, heads * head_dim]``; one pair of tables serves the whole model."""

    spec: RopeSpec
    head_dim: int
    cos: Const
    sin: Const

    @classmethod
    def of(cls, spec: RopeSpec, head_dim: int, positions: int) -> RoPE:
        """RoPE for contexts of up to ``positions`` tokens."""
        cos, sin = tables(spec, positions)
        return cls(spec, head_dim, Const("rope.cos", cos), Const("rope.sin", sin))

    def __call__(self, g: GraphBuilder, x: Any) -> Any:
        return g.op(
            "rope",
            x=x,
            positions=g.input("positions"),
            cos=self.cos,
            sin=self.sin,
            head_dim=self.head_dim,
            interleaved=self.spec.interleaved,
        )
