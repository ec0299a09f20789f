"""Makes Triton's interpreter right about what its kernels compute, where it is silently wrong (3.6 to 3.9).

The interpreter holds bfloat16 as the uint16 of its bits: sums, comparisons and products are those of the bits, casts
truncate, and constants of the type cannot be made. Here blocks of bfloat16 are numpy arrays of ``ml_dtypes.bfloat16``,
whose arithmetic rounds every operation to nearest, ties to even, as GPUs do; what adds up many terms (dot, sum,
cumulative sum) does it in float32. And ``tl.maximum`` and ``tl.minimum`` take the number where one operand is NaN,
as they do on a GPU unless told otherwise. And two that are for speed: sorting,
and calls of one kernel's function by another, are right without them, but take minutes.

:func:`repair` is called when :mod:`llmcore_triton.configs` is imported, thus before any kernel of this package runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)

Handle = Any  # interpreter.TensorHandle: a numpy array and Triton's name for its type


@cache
def repair() -> None:
    """Repairs the interpreter of this process, once."""
    interpreter._get_np_dtype = _numpy_types(interpreter._get_np_dtype)
    builder = interpreter.InterpreterBuilder
    builder.get_bf16 = _constant
    builder.create_masked_load = _load
    builder.create_masked_store = _store
    builder.cast_impl = _cast
    builder.create_fp_to_fp = _rounding_cast(builder.create_fp_to_fp)
    builder.create_fma = _fma
    builder.create_dot = _dot(builder.create_dot)
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)
    interpreter._patch_lang = _Patched(interpreter._patch_lang)
    interpreter.ReduceOps.sum = _summed
    interpreter.ReduceOps.apply_impl = _reduced(interpreter.ReduceOps.apply_impl)
    interpreter.ScanOps.cumsum = _cumulative


def _numpy_types(original: Callable[[Any], np.dtype[Any]]) -> Callable[[Any], np.dtype[Any]]:
    """Triton type → numpy type, with a true bfloat16. A pointer to bfloat16 is still an address."""

    def numpy_type(kind: Any) -> np.dtype[Any]:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return BFLOAT16 if element == tl.bfloat16 else original(kind)

    return numpy_type


def _constant(_builder: Any, value: float) -> Handle:
    return interpreter.TensorHandle(np.array([value], BFLOAT16), tl.bfloat16)


def _load(_builder: Any, pointers: Handle, mask: Handle, other: Handle | None, *_hints: Any) -> Handle:
    """Memory is read and written as the bits of bfloat16: some versions know the types of numpy alone there."""
    element = pointers.get_element_ty()
    kind = interpreter._get_np_dtype(element)
    default = np.zeros(pointers.data.shape, kind) if other is None else other.data
    loaded = interpreter._interpreter.load(pointers.data, mask.data, _bits(default), _bits(np.empty(0, kind)).dtype)
    return interpreter.TensorHandle(loaded.view(kind), element)


def _store(_builder: Any, pointers: Handle, value: Handle, mask: Handle, *_hints: Any) -> None:
    interpreter._interpreter.store(pointers.data, _bits(value.data), mask.data)


def _bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return values.view(np.uint16) if values.dtype == BFLOAT16 else values


def _cast(_builder: Any, source: Handle, kind: Any) -> Handle:
    """Every cast between number types: numpy's rounds to nearest even, and NaN stays NaN."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinity, and what a GPU leaves open as well
        return interpreter.TensorHandle(source.data.astype(interpreter._get_np_dtype(kind)), kind.scalar)


def _rounding_cast(original: Callable[..., Handle]) -> Callable[..., Handle]:
    """A cast of floats with an explicit rounding mode; 8-bit floats are left to the interpreter.

    But for float8e4nv made of float32: the interpreter forgets to carry into the exponent, so 127 becomes 64.
    """

    def create_fp_to_fp(self: Any, source: Handle, kind: Any, rounding: Any) -> Handle:
        if kind.scalar == tl.float8e4nv and source.data.dtype == FLOAT32:
            return interpreter.TensorHandle(source.data.astype(ml_dtypes.float8_e4m3fn).view(np.uint8), kind.scalar)
        if min(source.dtype.scalar.primitive_bitwidth, kind.scalar.primitive_bitwidth) == 8:
            return original(self, source, kind, rounding)
        if kind.scalar == tl.bfloat16 and rounding == interpreter._ir.ROUNDING_MODE.RTZ:
            return interpreter.TensorHandle(_towards_zero(source.data.astype(FLOAT32)), tl.bfloat16)
        return _cast(self, source, kind)

    return create_fp_to_fp


def _towards_zero(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 as bfloat16, truncated; a NaN whose upper mantissa bits are zero would turn infinite."""
    truncated = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(BFLOAT16)
    result: np.ndarray[Any, Any] = np.where(np.isnan(values), BFLOAT16.type(np.nan), truncated)
    return result


def _wide(handle: Handle) -> Handle:
    """bfloat16 as float32; everything else as it is."""
    if handle.data.dtype != BFLOAT16:
        return handle
    return interpreter.TensorHandle(handle.data.astype(FLOAT32), tl.float32)


def _fma(_builder: Any, x: Handle, y: Handle, z: Handle) -> Handle:
    """``x * y + z``; of bfloat16, whose products are exact in float32, without rounding the product."""
    total = _wide(x).data * _wide(y).data + _wide(z).data
    return interpreter.TensorHandle(total.astype(z.data.dtype), z.dtype.scalar)


def _dot(original: Callable[..., Handle]) -> Callable[..., Handle]:
    def create_dot(self: Any, a: Handle, b: Handle, *rest: Any) -> Handle:
        return original(self, _wide(a), _wide(b), *rest)

    return create_dot


def _summed(self: Any, block: Any) -> Any:
    total = np.sum(_wide(block.handle).data, axis=self.axis, keepdims=self.keep_dims)
    return self.to_tensor(total, block.dtype)


def _reduced(original: Callable[..., Any]) -> Callable[..., Any]:
    """Exclusive or, of which ``tl.sort`` and ``tl.topk`` make much use, is not left to a loop over all elements."""

    def apply_impl(self: Any, blocks: Any) -> Any:
        if self.combine_fn != tl.standard._xor_combine or self.axis is None:
            return original(self, blocks)
        block = blocks[0]
        total = np.bitwise_xor.reduce(block.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(total, block.dtype)

    return apply_impl


def _cumulative(self: Any, block: Any) -> list[Any]:
    return [self.to_tensor(np.cumsum(_wide(block.handle).data, axis=self.axis), dtype=block.dtype)]


class _Patched:
    """The language's functions are replaced once in a launch, not again by every function that a kernel calls."""

    def __init__(self, original: Callable[[Any], Any]) -> None:
        self.original = original
        self.done: set[frozenset[int]] = set()  # the modules that are patched, until the launch is over

    def __call__(self, function: Any) -> Any:
        modules = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if modules in self.done:
            return interpreter._LangPatchScope()
        outermost = not self.done
        scope = self.original(function)
        self.done.add(modules)
        return _Outermost(scope, self.done) if outermost else scope


class _Outermost:
    """The scope of a launch; what it restores is to be patched again by the next."""

    def __init__(self, scope: Any, done: set[frozenset[int]]) -> None:
        self.scope, self.done = scope, done

    def restore(self) -> None:
        """Ends the launch."""
        self.scope.restore()
        self.done.clear()
