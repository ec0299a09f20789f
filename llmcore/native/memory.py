"""Memory by address, for code that Numba compiles: loads, stores, atomics, array views, calls of an address.

Addresses are int64. Nothing here counts references or checks bounds: whoever wrote the operand table keeps the memory
alive.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

WORD = ir.IntType(64)


def _pointer(builder: Any, address: Any, element: Any) -> Any:
    return builder.inttoptr(address, element.as_pointer())


def _loader(kind: Any, element: Any) -> Callable[[int], Any]:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(_context: Any, _address: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load(_pointer(builder, arguments[0], element), align=element_align(element))

        return kind(types.int64), generate

    return load  # type: ignore[no-any-return]


def _storer(kind: Any, element: Any) -> Callable[[int, Any], None]:
    @intrinsic  # type: ignore[untyped-decorator]
    def store(_context: Any, _address: Any, _value: Any) -> Any:
        def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            builder.store(arguments[1], _pointer(builder, arguments[0], element), align=element_align(element))
            return target.get_dummy_value()

        return types.void(types.int64, kind), generate

    return store  # type: ignore[no-any-return]


def element_align(element: Any) -> int:
    """What a load of ``element`` may assume of its address: words are aligned, data out of a checkpoint is not."""
    return 8 if element == WORD else 1


load_i64: Callable[[int], int] = _loader(types.int64, WORD)
load_i32: Callable[[int], int] = _loader(types.int32, ir.IntType(32))
load_i8: Callable[[int], int] = _loader(types.int8, ir.IntType(8))
load_u8: Callable[[int], int] = _loader(types.uint8, ir.IntType(8))
load_u16: Callable[[int], int] = _loader(types.uint16, ir.IntType(16))
load_u32: Callable[[int], int] = _loader(types.uint32, ir.IntType(32))
load_f32: Callable[[int], float] = _loader(types.float32, ir.FloatType())
load_f64: Callable[[int], float] = _loader(types.float64, ir.DoubleType())
store_i64: Callable[[int, int], None] = _storer(types.int64, WORD)
store_i32: Callable[[int, int], None] = _storer(types.int32, ir.IntType(32))
store_f32: Callable[[int, float], None] = _storer(types.float32, ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def load_f16(_context: Any, _address: Any) -> Any:
    """The IEEE half at an address, as float32."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        half = builder.load(_pointer(builder, arguments[0], ir.HalfType()), align=1)
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def f64_from_bits(_context: Any, _bits: Any) -> Any:
    """The float64 whose bits are an int64: how an operand table holds a floating-point attribute."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_of_f32(_context: Any, _value: Any) -> Any:
    """The int32 with the bits of a float32."""

    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


# --- arrays over an address ---


@intrinsic  # type: ignore[untyped-decorator]
def _as_pointer(_context: Any, _address: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@njit(forceinline=True)  # type: ignore[untyped-decorator]
def array(address: int, shape: Any, dtype: Any) -> Any:
    """The C-contiguous array of ``shape`` (an int or a tuple) and ``dtype`` (``np.float32`` …) at ``address``."""
    return carray(_as_pointer(address), shape, dtype)


# --- atomics, sequentially consistent unless named otherwise ---


def _atomic(operation: str) -> Callable[[int, int], int]:
    @intrinsic  # type: ignore[untyped-decorator]
    def atomic(_context: Any, _address: Any, _value: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.atomic_rmw(operation, _pointer(builder, arguments[0], WORD), arguments[1], "seq_cst")

        return types.int64(types.int64, types.int64), generate

    return atomic  # type: ignore[no-any-return]


fetch_add: Callable[[int, int], int] = _atomic("add")  # adds to the word at an address; returns what it held before
exchange: Callable[[int, int], int] = _atomic("xchg")  # replaces the word; returns what it held before


def _atomic_load(ordering: str) -> Callable[[int], int]:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(_context: Any, _address: Any) -> Any:
        def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load_atomic(_pointer(builder, arguments[0], WORD), ordering, 8)

        return types.int64(types.int64), generate

    return load  # type: ignore[no-any-return]


load_acquire: Callable[[int], int] = _atomic_load("acquire")
load_ordered: Callable[[int], int] = _atomic_load("seq_cst")


@intrinsic  # type: ignore[untyped-decorator]
def store_release(_context: Any, _address: Any, _value: Any) -> Any:
    """Stores a word so that whoever loads it (acquire) sees every store made before it."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[1], _pointer(builder, arguments[0], WORD), "release", 8)
        return target.get_dummy_value()

    return types.void(types.int64, types.int64), generate


# --- control ---

_PAUSE: dict[str, tuple[str, tuple[int, ...]]] = {
    "x86_64": ("llvm.x86.sse2.pause", ()),
    "amd64": ("llvm.x86.sse2.pause", ()),
    "aarch64": ("llvm.aarch64.hint", (1,)),
    "arm64": ("llvm.aarch64.hint", (1,)),
}


@intrinsic  # type: ignore[untyped-decorator]
def pause(_context: Any) -> Any:
    """Tells the processor that this is a spin loop; nothing where it has no such instruction."""

    def generate(target: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        found = _PAUSE.get(platform.machine().lower())
        if found:
            name, numbers = found
            word = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [word] * len(numbers))
            builder.call(builder.module.declare_intrinsic(name, (), kind), [word(number) for number in numbers])
        return target.get_dummy_value()

    return types.void(), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_kernel(_context: Any, _function: Any, _operands: Any, _thread: Any, _threads: Any) -> Any:
    """Calls the ``void kernel(int64 operands, int64 thread, int64 threads)`` at an address."""

    def generate(target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [WORD, WORD, WORD])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return target.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate
