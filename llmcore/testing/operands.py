"""From a case to values: random inputs, random but valid weights of every format, and what the reference says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.device.base import numpy_dtype
from llmcore.device.host import as_torch
from llmcore.ops import Apart, Case, Eager, OpSpec
from llmcore.testing.buffers import Array
from llmcore.weights.formats import TensorFormat, tensor_format
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor


@dataclass
class Values:
    """The inputs and weights of one call by parameter name; an optional parameter that is absent is in neither.

    Attributes:
        arrays: inputs and float32 weights.
        stored: weights as a checkpoint holds them.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)


class _Memory(MappedFile):
    """Bytes in the place of a mapped file."""

    def __init__(self, data: Array) -> None:
        self.path = Path("random weights")
        self.size = data.size
        self._map = None
        self._bytes = data

    def unchanged(self) -> bool:
        return True

    def forget(self, start: int, nbytes: int) -> None:
        """There is nothing that it could be read from again."""


def random_weight(name: str, shape: tuple[int, ...], form: TensorFormat, rng: np.random.Generator) -> Tensor:
    """A weight of random bytes whose floating-point fields hold moderate numbers of either sign: all blocks valid."""
    count = int(np.prod(shape))
    if form.plain:
        assert form.encode is not None, f"{form.name} is for storage only"
        data = form.encode(rng.standard_normal((count, 1)).astype(np.float32)).reshape(-1)
    else:
        blocks = rng.integers(0, 256, (count // form.block, form.block_bytes), dtype=np.uint8)
        for at, _ in form.floats:  # float16 in every quantized format that there is
            scales = rng.uniform(0.5, 1.5, len(blocks)) * rng.choice((-1, 1), len(blocks)) / 64
            blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
        data = blocks
    return stored(name, shape, form, data)


def stored(name: str, shape: tuple[int, ...], form: TensorFormat, data: Array) -> Tensor:
    """A weight of the given bytes."""
    data = np.ascontiguousarray(data).reshape(-1)
    data.flags.writeable = False
    return Tensor(name, shape, form, _Memory(data), 0)


def fits(spec: OpSpec, case: Case, formats: Mapping[str, str]) -> bool:
    """Whether weights of ``formats`` can have the case's shapes: rows must be whole blocks."""
    return all(
        case.dims[param.dims[-1]] % tensor_format(formats[param.name]).block == 0
        for param in spec.of("weight")
        if param.name in formats
    )


def make_values(spec: OpSpec, case: Case, formats: Mapping[str, str], dtype: str, seed: int) -> Values:
    """The values of ``case``: what it makes itself, and normal random numbers for the rest."""
    rng = np.random.default_rng(seed)
    values = Values()
    made = case.inputs(case.dims, rng) if case.inputs else {}
    for param in spec.of("input", "weight"):
        if param.optional and param.name not in case.present:
            continue
        shape = tuple(case.dims[letter] for letter in param.dims)
        if param.type == "any":
            values.stored[param.name] = random_weight(param.name, shape, tensor_format(formats[param.name]), rng)
            continue
        assert param.name in made or param.type != "i32", f"op {spec.name}: case {case} makes no {param.name}"
        array = made[param.name] if param.name in made else rng.standard_normal(shape)
        assert array.shape == shape, f"op {spec.name}: case {case} makes {param.name} {array.shape}, not {shape}"
        kind = {"act": dtype, "f32": "float32", "i32": "int32"}[param.type]
        values.arrays[param.name] = np.ascontiguousarray(array.astype(numpy_dtype(kind)))
    return values


def _tensors(values: Values) -> dict[str, Any]:
    """What the reference takes: torch tensors, floats in float32."""
    arrays = {name: a if a.dtype.kind == "i" else a.astype(np.float32) for name, a in values.arrays.items()}
    arrays.update((name, tensor.dequantize()) for name, tensor in values.stored.items())
    return {name: as_torch(array) for name, array in arrays.items()}


def expected(spec: OpSpec, values: Values, attrs: Mapping[str, Any]) -> dict[str, Array]:
    """The outputs of a stateless op, by its reference, in float32 or int32."""
    return _outputs(spec, spec.reference(**_tensors(values), **attrs))


def expected_writes(spec: OpSpec, values: Values, attrs: Mapping[str, Any]) -> tuple[dict[str, Array], Array, Array]:
    """The outputs of an op that writes keys and values, and the ``[T, G]`` keys and values that it writes."""
    recorder = _Recorder()
    result = Apart(recorder).op(spec.name, **_tensors(values), **attrs)
    return _outputs(spec, result) if spec.outputs else {}, *recorder.written


class _Recorder(Eager):
    """Runs references, but keeps what would be written to the cache."""

    written: tuple[Array, Array]

    def op(self, name: str, /, **arguments: Any) -> Any:
        """Runs the reference of ``name``, or records the arguments of ``kv_write``."""
        if name == "kv_write":
            self.written = arguments["k"].numpy(), arguments["v"].numpy()
            return None
        return super().op(name, **arguments)


def _outputs(spec: OpSpec, result: Any) -> dict[str, Array]:
    results = result if isinstance(result, tuple) else (result,)
    return {param.name: each.numpy() for param, each in zip(spec.outputs, results, strict=True)}
