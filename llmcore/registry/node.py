"""What a kernel may look at before it says that it can run a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NodeView:
    """One call of an op in a graph, as the selection of its kernel sees it.

    Attributes:
        op: the op's name.
        path: where in the model, e.g. ``model.layers.3.mlp.gate_proj``.
        device, dtype: where activations live and their type.
        dims: every dim letter of the signature; step dimensions have the bucket's largest value.
        formats: weight parameter → format name, for the parameters declared ``any``.
        attrs: the op's attributes.
        present: the optional parameters that the call has.
        one_each: whether every sequence of a step has one new token, token ``t`` that of sequence ``t``.
    """

    op: str
    path: str
    device: str = "cpu"
    dtype: str = "float32"
    dims: Mapping[str, int] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    present: frozenset[str] = frozenset()
    one_each: bool = False
