"""Memory by address, for code that Numba compiles: loads, stores, atomics, array views, calls of an address.

Addresses are int64. Nothing here counts references or checks bounds: whoever wrote the operand table keeps the memory
alive. Data out of a checkpoint may lie on any byte; int64 words lie on their natural boundary.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from llmcore.native.machine import has_half_conversion

WORD = ir.IntType(64)
Emit = Callable[..., Any]


def emits(result: Any, *parameters: Any) -> Callable[[Emit], Emit]:
    """Makes ``f(builder, *values) -> value`` a function for compiled code, of Numba types ``parameters`` → ``result``.

    ``f`` runs at compile time: it emits LLVM instructions with ``builder``. It may return None where ``result`` is
    void.
    """

    def decorate(emit: Emit) -> Emit:
        def operation(_context: Any, *_arguments: Any) -> Any:
            def generate(target: Any, builder: Any, _signature: Any, values: Any) -> Any:
                value = emit(builder, *values)
                return target.get_dummy_value() if value is None else value

            return result(*parameters), generate

        operation.__name__ = emit.__name__
        operation.__doc__ = emit.__doc__
        names = ["context", *(f"argument{i}" for i in range(len(parameters)))]
        positional = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        operation.__signature__ = inspect.Signature(positional)  # type: ignore[attr-defined]  # Numba counts by it
        return intrinsic(operation)  # type: ignore[no-any-return]

    return decorate


def pointer(builder: Any, address: Any, element: Any) -> Any:
    """The address as an LLVM pointer to ``element``."""
    return builder.inttoptr(address, element.as_pointer())


def _loader(kind: Any, element: Any, align: int = 1) -> Emit:
    return emits(kind, types.int64)(lambda b, address: b.load(pointer(b, address, element), align=align))


def _storer(kind: Any, element: Any, align: int = 1) -> Emit:
    def store(builder: Any, address: Any, value: Any) -> None:
        builder.store(value, pointer(builder, address, element), align=align)

    return emits(types.void, types.int64, kind)(store)


load_i64: Callable[[int], int] = _loader(types.int64, WORD, 8)
load_i32 = _loader(types.int32, ir.IntType(32))
load_i8 = _loader(types.int8, ir.IntType(8))
load_u8 = _loader(types.uint8, ir.IntType(8))
load_u16 = _loader(types.uint16, ir.IntType(16))
load_u32 = _loader(types.uint32, ir.IntType(32))
load_f32 = _loader(types.float32, ir.FloatType())
load_f64: Callable[[int], float] = _loader(types.float64, ir.DoubleType())
store_i64 = _storer(types.int64, WORD, 8)
store_i32 = _storer(types.int32, ir.IntType(32))
store_f32 = _storer(types.float32, ir.FloatType())
store_f64 = _storer(types.float64, ir.DoubleType())


def emit_half(builder: Any, bits: Any, like: Callable[[Any], Any]) -> Any:
    """float32 of the IEEE halves in the int16 ``bits``; ``like`` makes a vector type of an element's, or leaves it."""
    word, single = like(ir.IntType(32)), like(ir.FloatType())
    if has_half_conversion():
        return builder.fpext(builder.bitcast(bits, like(ir.HalfType())), single)

    def number(value: float, kind: Any) -> Any:
        return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)

    wide = builder.zext(bits, word)
    sign = builder.shl(builder.and_(wide, number(0x8000, word)), number(16, word))
    size = builder.shl(builder.and_(wide, number(0x7FFF, word)), number(13, word))
    finite = builder.fmul(builder.bitcast(size, single), number(2.0**112, single))  # the exponents' difference
    special = builder.or_(size, number(0x7F800000, word))  # infinity, NaN
    is_special = builder.icmp_unsigned(">=", size, number(0x7C00 << 13, word))
    value = builder.select(is_special, special, builder.bitcast(finite, word))
    return builder.bitcast(builder.or_(value, sign), single)


@emits(types.float32, types.int64)
def load_f16(builder: Any, address: Any) -> Any:
    """The IEEE half at an address, as float32."""
    bits = builder.load(pointer(builder, address, ir.IntType(16)), align=1)
    return emit_half(builder, bits, lambda element: element)


@emits(types.float64, types.int64)
def f64_from_bits(builder: Any, bits: Any) -> Any:
    """The float64 whose bits are an int64: how an operand table holds a floating-point attribute."""
    return builder.bitcast(bits, ir.DoubleType())


@emits(types.float32, types.int32)
def f32_from_bits(builder: Any, bits: Any) -> Any:
    """The float32 whose bits are an int32."""
    return builder.bitcast(bits, ir.FloatType())


@emits(types.voidptr, types.int64)
def _as_pointer(builder: Any, address: Any) -> Any:
    return pointer(builder, address, ir.IntType(8))


@njit(forceinline=True)  # type: ignore[untyped-decorator]
def array(address: int, shape: Any, dtype: Any) -> Any:
    """The C-contiguous array of ``shape`` (an int or a tuple) and ``dtype`` (``np.float32`` …) at ``address``."""
    return carray(_as_pointer(address), shape, dtype)


# --- atomics on int64 words, sequentially consistent unless named otherwise ---


@emits(types.int64, types.int64, types.int64)
def fetch_add(builder: Any, address: Any, value: Any) -> Any:
    """Adds to the word at an address; returns what it held before."""
    return builder.atomic_rmw("add", pointer(builder, address, WORD), value, "seq_cst")


@emits(types.int64, types.int64, types.int64)
def exchange(builder: Any, address: Any, value: Any) -> Any:
    """Replaces the word at an address; returns what it held before."""
    return builder.atomic_rmw("xchg", pointer(builder, address, WORD), value, "seq_cst")


@emits(types.int64, types.int64)
def load_acquire(builder: Any, address: Any) -> Any:
    """Loads a word, and with it sees every store made before the :func:`store_release` that it reads from."""
    return builder.load_atomic(pointer(builder, address, WORD), "acquire", 8)


@emits(types.int64, types.int64)
def load_ordered(builder: Any, address: Any) -> Any:
    """Loads a word, not before any earlier atomic operation of this thread has taken place."""
    return builder.load_atomic(pointer(builder, address, WORD), "seq_cst", 8)


@emits(types.void, types.int64, types.int64)
def store_release(builder: Any, address: Any, value: Any) -> None:
    """Stores a word so that whoever loads it (:func:`load_acquire`) sees every store made before it."""
    builder.store_atomic(value, pointer(builder, address, WORD), "release", 8)


# --- control ---

_PAUSE: dict[str, tuple[str, tuple[int, ...]]] = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "amd64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.hint", (1,)),
    "arm64": ("llvm.aarch64.hint", (1,)),
}


@emits(types.void)
def pause(builder: Any) -> None:
    """Tells the processor that this is a spin loop; nothing where it has no such instruction."""
    name, numbers = _PAUSE.get(platform.machine().lower(), ("", ()))
    if name:
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [word] * len(numbers))
        builder.call(builder.module.declare_intrinsic(name, (), kind), [word(number) for number in numbers])


@emits(types.void, types.int64, types.int64, types.int64, types.int64)
def call_kernel(builder: Any, function: Any, operands: Any, thread: Any, threads: Any) -> None:
    """Calls the ``void kernel(int64 operands, int64 thread, int64 threads)`` at an address."""
    kind = ir.FunctionType(ir.VoidType(), [WORD, WORD, WORD])
    builder.call(builder.inttoptr(function, kind.as_pointer()), [operands, thread, threads])
