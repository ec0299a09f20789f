"""What all layers share: the weights that they name, and the builder that they put their ops into."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmcore.ops import Builder


@dataclass(frozen=True)
class Weight:
    """A tensor that a layer wants from the checkpoint, by its Hugging Face name and with its shape."""

    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Const:
    """A table that a layer computes once (RoPE's cosines); read-only afterwards."""

    name: str
    array: np.ndarray[Any, Any]


@dataclass(frozen=True)
class State:
    """Memory of one layer that outlives the step: its part of the KV cache."""

    layer: int
    kv_heads: int
    head_dim: int


class GraphBuilder(Builder, Protocol):
    """A builder that also hands out the inputs of a step and remembers where in the model it is."""

    def input(self, name: str) -> Any:
        """The step input ``name`` (:mod:`llmcore.graph.inputs` lists them)."""

    def scope(self, path: str) -> AbstractContextManager[None]:
        """Ops added inside belong to the module ``path``."""
