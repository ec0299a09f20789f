"""Compiling native kernels and functions with Numba, into object code that :mod:`llmcore.native.code` keeps and links.

Importing this imports Numba.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba._dynfunc import make_function
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

from llmcore.native.code import MachineCode, loader, target_machine
from llmcore.native.machine import machine

Function = Callable[..., Any]
KERNEL_TYPE = "void(int64, int64, int64)"

if machine().forced:  # Numba's optimizer must not count on more than the processor that is asked for has
    numba.config.CPU_NAME, numba.config.CPU_FEATURES = machine().cpu, machine().flags


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """A function's optimized LLVM code, of which no machine code is made for this process.

    That would cost time, and LLVM's last passes before it change the code that a helper's callers are then given: its
    loops are no more what the optimizer knows, and an address may become an offset from null, stores to which it takes
    for unreachable and drops.
    """

    def _finalize_final_module(self) -> None:
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):  # type: ignore[misc]
    """Lowers a function into a :class:`_Library`."""

    _name = "lowering_to_llvm"

    def run_pass(self, state: Any) -> bool:
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        found = state["cr"]
        module, name = found.fndesc.lookup_module(), found.fndesc.qualname.rpartition(".")[2]
        key = make_function(module, name, "", 0, found.env, (state.library,))  # what callers know it by
        state.targetctx.insert_user_function(key, found.fndesc, [state.library])
        state["cr"] = found._replace(cfunc=key)
        return True


class _Compiler(CompilerBase):  # type: ignore[misc]
    """Compiles kernels and their helpers."""

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [(_Lowering, text) if each is NativeLowering else (each, text) for each, text in passes.passes]
        passes.finalize()
        return [passes]


inlined = numba.njit(
    forceinline=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_Compiler
)
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
        compiled = numba.cfunc(self.signature, error_model="numpy", pipeline_class=_Compiler)(self.function)
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
