"""The inputs of a step: one set of arrays at fixed addresses, which every program reads and the runner fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcore.device import HOST, Device
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


DTYPES = {"f32": "float32", "i32": "int32"}
RARELY = frozenset({"block_tables"})  # what is large, and changes in few steps


class StepInputs:
    """The arrays that a step reads, and the step block that holds its ``T``, ``S`` and ``R``.

    Attributes:
        arrays: what the host writes.
        there: the same as kernels see them.
        rare: whether the large ones have changed since they were sent; the writer says so.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[Shape, str]],
        sizes: Mapping[str, int],
        elsewhere: Mapping[str, Any] | None = None,
        device: Device = HOST,
    ) -> None:
        """Allocates every input at its largest size, but for those that lie ``elsewhere`` on the device."""
        self.block = np.zeros(len(STEP_DIMS), np.int64)
        self._words = self.block.data
        self.rare = False
        own = {
            name: (concrete(shape, sizes), DTYPES[dtype])
            for name, (shape, dtype) in shapes.items()
            if name not in (elsewhere or {})
        }
        self._often = device.mirror({name: each for name, each in own.items() if name not in RARELY})
        self._rarely = device.mirror({name: each for name, each in own.items() if name in RARELY})
        self.arrays: dict[str, Array] = {**self._often.host, **self._rarely.host}
        self.there: dict[str, Any] = {**self._often.there, **self._rarely.there, **(elsewhere or {})}

    def set_sizes(self, tokens: int, seqs: int, rows: int) -> None:
        """What the next run of a program covers."""
        words = self._words
        words[0], words[1], words[2] = tokens, seqs, rows

    def settle(self) -> None:
        """Waits until the arrays may be written again."""
        self._often.settle()
        self._rarely.settle()

    def send(self) -> None:
        """Brings the arrays to where kernels read them."""
        self._often.send()
        if self.rare:
            self._rarely.send()
            self.rare = False

    def address_of(self, dim: str) -> int:
        """Where the current value of a step dimension lies."""
        slot = [sym.name for sym in STEP_DIMS].index(dim)
        return int(self.block.ctypes.data) + 8 * slot
