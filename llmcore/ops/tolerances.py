"""How far a kernel's result may lie from its reference, by the type that the values pass through.

The bound for each element is ``relative * (|want| + rms(want))``: rounding errors of a sum scale with the size of its
terms, which the root mean square of the result stands for, and not with a result that happened to cancel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

RELATIVE: dict[str, float] = {
    "float32": 2e-5,  # ~ sqrt(K) roundings of 2**-24 for sums of some thousand terms, in any order
    "float16": 4e-3,  # 2**-11, a few roundings
    "bfloat16": 3e-2,  # 2**-8, a few roundings
}

QUANTIZED = 6e-2  # 8-bit activations: steps of max / 127 in each group, a few hundred of which average out in a sum

EXACT_ZEROS = frozenset({"top_k", "top_p", "min_p"})  # what these remove must be zero, not small


def relative(*dtypes: str, exact: bool = True) -> float:
    """The bound's factor where values pass through all of ``dtypes``: that of the coarsest.

    ``exact``: the kernel keeps its activations in these types, see :class:`llmcore.hookspecs.KernelInfo`.
    """
    return max([RELATIVE[dtype] for dtype in dtypes] + [0.0 if exact else QUANTIZED])


def allowed(want: npt.NDArray[Any], factor: float) -> npt.NDArray[np.float64]:
    """The bound for every element of ``want``, for a ``factor`` from :func:`relative`."""
    exact = np.abs(want.astype(np.float64))
    finite = exact[np.isfinite(exact)]
    scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    bound: npt.NDArray[np.float64] = factor * (np.where(np.isfinite(exact), exact, 0.0) + scale)
    return bound
