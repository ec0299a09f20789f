"""What the conformance cases of several ops share: shapes at the edges, indices, and ragged batches over a paged cache.

A case is data: every array is made from the dims and a seeded generator when the case runs. numpy is imported by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmcore.ops.base import Case

if TYPE_CHECKING:
    import numpy as np

Inputs = Callable[[Mapping[str, int], "np.random.Generator"], dict[str, Any]]

ROW_SHAPES = ((0, 64), (1, 1), (1, 576), (2, 7), (3, 33), (7, 100), (33, 256))  # rows × width of element-wise ops


def row_cases(rows: str, width: str, inputs: Inputs | None = None) -> Iterator[Case]:
    """One case for each of :data:`ROW_SHAPES`."""
    for count, size in ROW_SHAPES:
        yield Case({rows: count, width: size}, inputs=inputs)


def indices(name: str, count: str, below: str) -> Inputs:
    """Makes parameter ``name``: ``[count]`` int32 below dim ``below``, both ends and repeats among them."""

    def make(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
        import numpy as np

        drawn = rng.integers(0, max(1, dims[below]), dims[count])
        drawn[:1], drawn[1:2] = dims[below] - 1, 0
        return {name: drawn.astype(np.int32)}

    return make


def normed(case: Case, width: str, groups: int, eps: float) -> Case:
    """``case`` of an op that begins with a norm of its ``width``, in ``groups``; the norm's weights are near 1."""

    def inputs(dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
        made = case.inputs(dims, rng) if case.inputs else {}
        return {**made, "norm": 1 + 0.2 * rng.standard_normal(dims["E"])}

    dims = {**case.dims, "E": case.dims[width] // groups}
    return replace(case, dims=dims, attrs={**case.attrs, "norm_eps": eps}, inputs=inputs)


@dataclass(frozen=True)
class Ragged:
    """A batch of sequences, each with ``kv_lens`` tokens in a paged cache, of which the last ``query_lens`` are new.

    Attributes:
        shared: leading pages that all sequences have in common (a shared prefix).
        spare: entries of the longest sequence's table that it does not use.
    """

    query_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    page_size: int
    shared: int = 0
    spare: int = 1

    @property
    def table_width(self) -> int:
        """Pages of the longest sequence, and entries that no sequence uses."""
        return max((-(-length // self.page_size) for length in self.kv_lens), default=0) + self.spare

    def __call__(self, dims: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
        """The index parameters of ``attention``: pages in random order, unused entries 0."""
        import numpy as np

        lens = np.array(self.query_lens, np.int32).reshape(-1)
        starts = (np.cumsum(lens) - lens).astype(np.int32)
        tables = np.zeros((dims["S"], dims["B"]), np.int32)
        pages = 1 + rng.permutation(tables.size)  # page 0 belongs to nobody: an unused entry must not be read
        for row, length in enumerate(self.kv_lens):
            used = -(-length // self.page_size)
            own = pages[row * self.table_width :][:used]
            common = min(self.shared, used)
            tables[row, :used] = np.concatenate((pages[:common], own[common:]))
        return {
            "query_starts": starts,
            "query_lens": lens,
            "kv_lens": np.array(self.kv_lens, np.int32).reshape(-1),
            "block_tables": tables,
        }


RAGGED: Sequence[tuple[str, Ragged]] = (
    ("no sequences", Ragged((), (), 16)),
    ("one token, nothing before it", Ragged((1,), (1,), 16)),
    ("prefill", Ragged((37,), (37,), 16)),
    ("prefill that fills its pages", Ragged((32,), (32,), 16)),
    ("decode at the page's edge", Ragged((1, 1, 1), (16, 17, 15), 16)),
    ("decode far in", Ragged((1,), (301,), 16)),
    ("chunked prefill", Ragged((13,), (50,), 16)),
    ("mixed, one sequence idle", Ragged((5, 0, 1, 1, 9), (5, 8, 40, 1, 20), 16)),
    ("pages of one token", Ragged((1, 4, 3), (9, 4, 6), 1)),
    ("shared prefix", Ragged((1, 3, 1), (40, 35, 33), 16, shared=2)),
)


SIDE_BY_SIDE = "decode side by side", Ragged((1, 1, 1, 1), (40, 7, 33, 1), 16)


def paged_slots(count: int, page_size: int, rng: np.random.Generator) -> Any:
    """``[count]`` int32 slots that fill pages from their beginning, in random order, page 0 left alone."""
    import numpy as np

    pages = 1 + rng.permutation(-(-count // page_size) + 2)
    token = np.arange(count)
    slots = pages[token // page_size] * page_size + token % page_size
    return rng.permutation(slots).astype(np.int32)
