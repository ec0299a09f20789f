"""The inputs of a step: one set of arrays at fixed addresses, which every program reads and the runner fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.dims import STEP_DIMS, Dim, R, S, Shape, T, concrete

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Limits:
    """The largest step that a program may be asked to run.

    Attributes:
        tokens, seqs, rows: upper bounds of ``T``, ``S`` and ``R``.
        blocks: pages of the longest sequence.
    """

    tokens: int
    seqs: int
    rows: int
    blocks: int

    @property
    def sizes(self) -> dict[str, int]:
        """The bounds by the names of the step dimensions."""
        return {"T": self.tokens, "S": self.seqs, "R": self.rows}


def input_shapes(blocks: int) -> dict[str, tuple[Shape, str]]:
    """Every step input: shape and dtype.

    ``token_ids``, ``positions`` and ``slots`` (where each token's key and value go) run over tokens; ``query_starts``,
    ``query_lens``, ``kv_lens`` and ``block_tables`` over sequences; ``rows`` names the tokens whose logits are wanted.
    """
    table: tuple[Dim, ...] = (S, blocks)
    return {
        "token_ids": ((T,), "i32"),
        "positions": ((T,), "i32"),
        "slots": ((T,), "i32"),
        "query_starts": ((S,), "i32"),
        "query_lens": ((S,), "i32"),
        "kv_lens": ((S,), "i32"),
        "block_tables": (table, "i32"),
        "rows": ((R,), "i32"),
    }


NUMPY = {"f32": "float32", "i32": "int32"}


class StepInputs:
    """The arrays, and the step block that holds the current ``T``, ``S`` and ``R``."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[Shape, str]],
        sizes: Mapping[str, int],
        elsewhere: Mapping[str, Array] | None = None,
    ) -> None:
        """Allocates every input at its largest size, but for those that lie ``elsewhere``."""
        self.block = np.zeros(len(STEP_DIMS), np.int64)
        self._words = self.block.data
        self.arrays: dict[str, Array] = {
            name: np.zeros(concrete(shape, sizes), NUMPY[dtype])
            for name, (shape, dtype) in shapes.items()
            if name not in (elsewhere or {})
        }
        self.arrays.update(elsewhere or {})

    def set_sizes(self, tokens: int, seqs: int, rows: int) -> None:
        """What the next run of a program covers."""
        words = self._words
        words[0], words[1], words[2] = tokens, seqs, rows

    def address_of(self, dim: str) -> int:
        """Where the current value of a step dimension lies."""
        slot = [sym.name for sym in STEP_DIMS].index(dim)
        return int(self.block.ctypes.data) + 8 * slot
