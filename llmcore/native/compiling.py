"""Compiling native kernels and functions with Numba, into object code that :mod:`llmcore.native.code` keeps and links.

Importing this imports Numba.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba

from llmcore.native.code import MachineCode, loader, target_machine
from llmcore.native.machine import machine

Function = Callable[..., Any]
KERNEL_TYPE = "void(int64, int64, int64)"

if machine().forced:  # Numba's optimizer must not count on more than the processor that is asked for has
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = machine().cpu, machine().flags

inlined = numba.njit(forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorates a helper of kernels: compiled as a part of whatever calls it, and not callable from Python."""


class NativeFunction:
    """A function that is compiled when its address is first asked for, unless an earlier process has.

    Args:
        function: in the subset of Python that Numba compiles.
        signature: its Numba type, over integers and floats.
    """

    def __init__(self, function: Function, signature: str) -> None:
        self.function = function
        self.signature = signature
        self.__name__ = function.__qualname__
        self.__doc__ = function.__doc__

    def compile(self) -> MachineCode:
        """Object code for :func:`llmcore.native.machine.machine`."""
        compiled = numba.cfunc(self.signature, error_model="numpy")(self.function)
        module = llvm.parse_assembly(compiled.inspect_llvm())
        target = target_machine()
        _drop_unreachable(module, target)
        external = [function.name for function in module.functions if function.is_declaration]
        runtime = tuple(name for name in external if name.startswith(("numba_", "NRT_")))
        return MachineCode(compiled.native_name, target.emit_object(module), runtime)

    def __call__(self) -> int:
        """The address of the machine code, for the life of this process."""
        return loader().own(f"{self.function.__module__}:{self.function.__qualname__}", self)


def _drop_unreachable(module: Any, target: Any) -> None:
    """Removes what Numba does when a function raises from those that cannot: it would need Numba's runtime."""
    passes = llvm.create_new_module_pass_manager()
    passes.add_ipsccp_pass()  # a function that always returns "no error" …
    passes.add_simplify_cfg_pass()  # … has callers that need not look
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2)))


def native_kernel(function: Function) -> NativeFunction:
    """Makes ``f(operands, thread, threads)`` a native kernel, the target of a ``KernelInfo``."""
    return NativeFunction(function, KERNEL_TYPE)


def native_function(signature: str) -> Callable[[Function], NativeFunction]:
    """Makes a function of any ``signature`` (``"int64(int64, int64)"``) one that is found by its address."""
    return lambda function: NativeFunction(function, signature)


def specialised(function: Function, name: str, **constants: Any) -> Function:
    """A copy of ``function`` named ``name`` whose global names in ``constants`` mean these values.

    Numba takes globals for constants and compiles calls of them inline, so one kernel written over a global ``unpack``
    becomes one kernel for each weight format.
    """
    copy = python_types.FunctionType(function.__code__, {**function.__globals__, **constants}, name)
    copy.__qualname__ = name
    copy.__module__ = function.__module__
    copy.__doc__ = function.__doc__
    return copy
