"""Vectors for texts: the hidden states that the classifier would read, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmcore.engine.request import checked_ids
from llmcore.errors import RequestError

if TYPE_CHECKING:
    from llmcore.engine.engine import Engine

Array = np.ndarray[Any, Any]
Pooling = Literal["mean", "last"]
POOLINGS = ("mean", "last")


class Embedding:
    """One text's vector, computed a chunk at a time, so that the engine's steps can go on in between.

    Attributes:
        vector: float32 ``[hidden]`` of length 1, once it is there.
    """

    def __init__(self, engine: Engine, prompt_ids: Sequence[int], pooling: Pooling = "mean") -> None:
        """Nothing is computed yet.

        Raises:
            RequestError: wrong tokens, more than the context holds, or an unknown pooling.
        """
        most = engine.scheduler.max_context
        if pooling not in POOLINGS:
            raise RequestError(f"pooling is {pooling!r}", field="pooling", remedy=f"it may be {' or '.join(POOLINGS)}")
        self.ids = checked_ids(prompt_ids, engine.runner.vocab)
        if len(self.ids) > most:
            raise RequestError(
                f"the text has {len(self.ids)} tokens, and the context {most}",
                field="input",
                remedy="shorten it, or raise engine.max_context",
            )
        self.vector: Array | None = None
        self._engine = engine
        self._pooling = pooling
        self._pages: list[int] = []
        self._done = 0
        self._sum = np.zeros(0, np.float64)

    def advance(self) -> bool:
        """Computes the next chunk, if the pages are there; whether that was the last."""
        engine = self._engine
        with engine.lock, engine.runner.place.device.scope():
            pool, sizes = engine.scheduler.pool, engine.runner.sizes
            needed = -(-len(self.ids) // sizes.page_size) - len(self._pages)
            if not pool.can_allocate(needed):
                return False
            self._pages += pool.allocate(needed)
            part = self.ids[self._done : self._done + min(sizes.rows, sizes.tokens)]
            last = self._done + len(part) == len(self.ids)
            rows = range(len(part)) if self._pooling == "mean" else (len(part) - 1,) if last else ()
            states = engine.runner.fetch([(part, self._done, self._pages, rows)], "hidden").astype(np.float64)
        self._done += len(part)
        self._sum = states.sum(0) + (self._sum if self._sum.size else 0.0)
        if last:
            length = float(np.linalg.norm(self._sum))
            self.vector = (self._sum / (length or 1.0)).astype(np.float32)
            self.close()
        return last

    def close(self) -> None:
        """Gives the pages back."""
        with self._engine.lock:
            self._engine.scheduler.pool.release(self._pages)
            self._pages = []
