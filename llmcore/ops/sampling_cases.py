"""Conformance cases of the sampling ops: off switches, ties, and edges that float32 represents exactly.

Random rows alone would hardly ever meet a tie or an edge, so these rows are written out: probabilities that are
multiples of 1/16 sum without rounding, and what is to be kept follows from the definition alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmcore.ops.base import Case
from llmcore.ops.cases import Inputs

if TYPE_CHECKING:
    import numpy as np

SHAPES = ((0, 50), (1, 1), (1, 1000), (3, 33), (7, 256))  # rows × vocabulary
SIXTEENTHS = (1, 4, 2, 4, 0, 3, 2, 0)  # ties for first, third and last place; tokens that are out already
BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1


def random_probs(dims: Mapping[str, int], rng: np.random.Generator) -> Any:
    """Rows as a model makes them: a few likely tokens and a long tail."""
    import numpy as np

    weights = np.exp(3 * rng.standard_normal((dims["R"], dims["V"])))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def _cycled(name: str, values: Sequence[float], dtype: str) -> Inputs:
    """Random rows; parameter ``name`` takes ``values`` in turn."""

    def make(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
        import numpy as np

        return {"probs": random_probs(dims, rng), name: np.resize(np.array(values, dtype), dims["R"])}

    return make


def _edges(name: str, values: Sequence[float], dtype: str) -> Case:
    """One row of :data:`SIXTEENTHS` for each of ``values``."""

    def make(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:  # noqa: ARG001  # nothing is random
        import numpy as np

        row = np.array(SIXTEENTHS, np.float32) / 16
        return {"probs": np.tile(row, (len(values), 1)), name: np.array(values, dtype)}

    return Case({"R": len(values), "V": len(SIXTEENTHS)}, inputs=make, note="ties and edges")


def _broken(name: str, values: Sequence[float], dtype: str) -> Case:
    """For each of ``values`` a row of zeros, one of NaN, and two in which some tokens can be chosen."""
    nan = float("nan")
    rows = ((0.0,) * 20, (nan,) * 20, (nan, 0.25, *(0.0,) * 16, 0.5, nan), (*(nan, -nan) * 9, 0.0, 0.75))

    def make(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:  # noqa: ARG001  # nothing is random
        import numpy as np

        return {
            "probs": np.tile(np.array(rows, np.float32), (len(values), 1)),
            name: np.repeat(np.array(values, dtype), len(rows)),
        }

    return Case({"R": len(rows) * len(values), "V": 20}, inputs=make, note="zeros and NaN")


def _filter_cases(
    name: str, typical: Sequence[float], edges: Sequence[float], dtype: str = "float32"
) -> Iterator[Case]:
    for rows, vocab in SHAPES:
        yield Case({"R": rows, "V": vocab}, inputs=_cycled(name, typical, dtype))
    yield _edges(name, edges, dtype)
    yield _broken(name, typical, dtype)


def top_k() -> Iterator[Case]:
    """Off (0, -1), one, ties at the k-th place, the whole vocabulary and more."""
    return _filter_cases("k", (5, 0, 1, 40, -1, 10**6), (0, -1, *range(1, len(SIXTEENTHS) + 3)), "int32")


def top_p() -> Iterator[Case]:
    """Nothing, less than the best token, sums that are reached exactly or just missed, off."""
    steps = (0.25, 0.5, 0.6875, 0.8125, 0.9375)
    return _filter_cases(
        "p", (0.9, 0.0, 0.5, 1.0, 0.01, BELOW_ONE), (0.0, 0.1, *steps, *(p + 2.0**-20 for p in steps), 1.0, 2.0)
    )


def min_p() -> Iterator[Case]:
    """Off, thresholds that a token meets exactly, only the best."""
    return _filter_cases("p", (0.05, 0.0, 1.0, 0.3, -1.0), (0.0, -1.0, 0.25, 0.5, 0.75, 0.75 + 2.0**-20, 1.0))


def sample() -> Iterator[Case]:
    """Both ends of [0, 1), the edges between tokens, and first and last tokens of probability zero."""
    edges = (0.0, 0.0625, 0.3125, 0.4375, 0.6875, 0.875)
    return _filter_cases("u", (0.5, 0.0, BELOW_ONE, 0.1, 0.99), (*edges, *(u + 2.0**-24 for u in edges), BELOW_ONE))


def _logits(dims: Mapping[str, int], rng: np.random.Generator) -> Any:
    return (10 * rng.standard_normal((dims["R"], dims["V"]))).astype("float32")


def _tied_logits(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Small integers, so that most rows have several maxima; banned tokens at minus infinity; one row all equal."""
    import numpy as np

    logits = rng.integers(-3, 3, (dims["R"], dims["V"])).astype(np.float32)
    logits[:, ::5] = -np.inf
    logits[-1] = -7
    return {"logits": logits}


def _broken_logits(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Rows of NaN, of minus infinity and of both, a row with NaN beside numbers, and one with infinities."""
    import numpy as np

    logits = _logits(dims, rng)
    logits[:3, ::2], logits[:3, 1::2] = ((np.nan,), (-np.inf,), (np.nan,)), ((np.nan,), (-np.inf,), (-np.inf,))
    logits[3, ::3] = np.nan
    logits[4, 5::7] = np.inf
    return {"logits": logits}


def argmax() -> Iterator[Case]:
    """Random rows, rows with several maxima, rows without one."""
    for rows, vocab in (*SHAPES, (2, 49152)):
        yield Case({"R": rows, "V": vocab})
    yield Case({"R": 9, "V": 41}, inputs=_tied_logits, note="ties")
    yield Case({"R": 5, "V": 41}, inputs=_broken_logits, note="NaN and infinities")


def _temperatures(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    import numpy as np

    return {
        "logits": _logits(dims, rng),
        "temperature": np.resize(np.array((1.0, 0.1, 2.0, 1e-3), np.float32), dims["R"]),
    }


def _extreme_logits(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Logits whose exponentials overflow, and banned tokens."""
    logits = 1e4 * _logits(dims, rng)
    logits[:, ::3] = -float("inf")
    return {"logits": logits, "temperature": (1 + rng.random(dims["R"])).astype("float32")}


def _broken_softmax(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    import numpy as np

    return {**_broken_logits(dims, rng), "temperature": np.ones(dims["R"], np.float32)}


def _tiny_temperatures(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """So small that a quotient of logits overflows; as many rows with ties for the first place as without."""
    import numpy as np

    logits = _logits(dims, rng)
    logits[::2] = np.round(logits[::2] / 10)
    return {"logits": logits, "temperature": np.resize(np.array((1e-30, 1e-38, 1e-44), np.float32), dims["R"])}


def softmax() -> Iterator[Case]:
    """Usual temperatures and near-greedy ones, logits or quotients that overflow, banned tokens, broken rows."""
    for rows, vocab in SHAPES:
        yield Case({"R": rows, "V": vocab}, inputs=_temperatures)
    yield Case({"R": 5, "V": 64}, inputs=_extreme_logits, note="extreme logits")
    yield Case({"R": 6, "V": 41}, inputs=_tiny_temperatures, note="tiny temperatures")
    yield Case({"R": 5, "V": 41}, inputs=_broken_softmax, note="NaN and infinities")


def exp_sum() -> Iterator[Case]:
    """Random rows, logits far apart, broken ones."""
    for rows, vocab in SHAPES:
        yield Case({"R": rows, "V": vocab}, inputs=lambda dims, rng: {"logits": _logits(dims, rng)})
    yield Case({"R": 5, "V": 64}, inputs=lambda dims, rng: {"logits": _extreme_logits(dims, rng)["logits"]})
    yield Case({"R": 5, "V": 41}, inputs=_broken_logits, note="NaN and infinities")


def _ascending(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    """Every value is larger than all before it."""
    import numpy as np

    return {"logits": np.sort(_logits(dims, rng), axis=-1)}


def largest() -> Iterator[Case]:
    """One, some, all; ties, rows in order, broken ones."""
    for rows, vocab in SHAPES:
        for count in sorted({1, min(5, vocab), min(20, vocab), min(vocab, 64)}):
            yield Case({"R": rows, "V": vocab, "N": count}, {"n": count})
    yield Case({"R": 2, "V": 49152, "N": 20}, {"n": 20})
    yield Case({"R": 9, "V": 41, "N": 20}, {"n": 20}, inputs=_tied_logits, note="ties")
    yield Case({"R": 3, "V": 1000, "N": 7}, {"n": 7}, inputs=_ascending, note="ascending")
    yield Case({"R": 5, "V": 41, "N": 30}, {"n": 30}, inputs=_broken_logits, note="NaN and infinities")
