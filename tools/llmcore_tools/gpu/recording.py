"""Launches of Triton kernels, recorded in place of being run, as if on a device that need not exist.

The launchers are the backend's own, called with tensors without memory (torch's ``meta`` device), so that what is
compiled afterwards is what a GPU would run: the same tile sizes, the same specialization on alignment and on ones.
Works only in a process where Triton's interpreter is off.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from llmcore.errors import LlmcoreError
from llmcore.plugins import resolve
from llmcore_tools.gpu import machine_code
from llmcore_tools.gpu.machine_code import Reading
from llmcore_tools.gpu.workload import Argument, Call
from llmcore_triton import device

TABLES = {"attention": (), "embedding": ("weight",), "gather": ("x",)}
"""Op → operands of which it reads a few rows, at places that others tell it; of ops not listed, :data:`BY_ROWS`."""

BY_ROWS = "kv", "cos", "sin"
GRID_LIMITS = 2**31 - 1, 65535, 65535  # CUDA's, which are no wider than HIP's


class LaunchError(LlmcoreError):
    """A launcher failed, or asked for something that no GPU would run."""


def gpu_target(name: str) -> GPUTarget:
    """Triton's description of ``sm_90`` or ``gfx942``."""
    known = device.KNOWN[name]
    return GPUTarget("cuda", known.capability, 32) if known.cuda else GPUTarget("hip", name, known.warp)


class _Driver:
    """What Triton asks a GPU's driver before it compiles, answered for a GPU that is not there."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@dataclass
class Variant:
    """One kernel with one specialization: what becomes one binary.

    Attributes:
        kernel: module and name of the ``@triton.jit`` function.
        types: of its other parameters, as Triton calls them.
        constants: its constexpr parameters, and parameters that are always 1 or absent.
        options: how it is launched (warps, stages).
        grid: of the launch with the largest tensors.
        tensors: of this launch: argument (by its number, constants left out) → memory (a number that arguments over
            the same memory share) and its bytes. Tables that the op reads a few rows of are left out.
        ops: that launch it.
        places: where in the workload.
    """

    kernel: str
    types: list[str]
    constants: dict[str, str]
    options: dict[str, Any]
    source: ASTSource
    grid: tuple[int, ...] = ()
    tensors: dict[int, tuple[int, int]] = field(default_factory=dict)
    ops: set[str] = field(default_factory=set)
    places: list[str] = field(default_factory=list)

    def compiled(self, target: GPUTarget) -> Reading:
        """Compiles it (or takes it from Triton's cache) and reads the result."""
        kernel = triton.compile(self.source, target=target, options=self.options)
        shared, ttir = kernel.metadata.shared, kernel.asm["ttir"]
        if target.backend == "cuda":
            return machine_code.nvidia(kernel.asm["cubin"], shared, ttir, kernel.asm["llir"])
        return machine_code.amd(kernel.asm["amdgcn"], shared, ttir, kernel.asm["llir"])


class Recorder:
    """Calls launchers and keeps what they launch.

    Attributes:
        variants: by kernel and specialization.
        problems: ``(call, what went wrong)``.
    """

    def __init__(self) -> None:
        self.variants: dict[tuple[str, str], Variant] = {}
        self.problems: list[tuple[str, str]] = []
        self._launch: tuple[tuple[int, ...], dict[str, torch.Tensor], dict[str, Any]] = ((), {}, {})
        self._op = ""
        self._places: Sequence[str] = ()
        self._tables: set[int] = set()  # memory that the op reads a few rows of

    def call(self, call: Call, places: Sequence[str]) -> None:
        """Calls one kernel's launcher with tensors without memory; ``places`` say where this happens."""
        tensors = [None if argument is None else tensor(argument) for argument in call.arguments]
        self._op, self._places = call.kernel.op, places
        tables = TABLES.get(call.kernel.op, BY_ROWS)
        named = zip(call.arguments, tensors, strict=True)
        self._tables = {_memory(each) for argument, each in named if argument and argument.name in tables}
        try:
            resolve(call.kernel.target)(*tensors, **dict(call.attrs))
        except Exception as error:  # a launcher's bug, or what meta tensors cannot do: told with its place
            frames = traceback.extract_tb(error.__traceback__)
            own = [
                frame for frame in frames[1:] if "site-packages" not in frame.filename and frame.filename != __file__
            ]
            where = " ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in own[-1:])
            self.problems.append((f"{call.kernel.target} in {places[0]}", f"{type(error).__name__}: {error} ({where})"))

    def launched(self, function: JITFunction[Any], args: Sequence[Any], grid: Any, options: Mapping[str, Any]) -> None:
        """Notes one launch, before Triton is asked for its binary."""
        bound = dict(zip(function.arg_names, args, strict=False)) | dict(options)
        sizes = tuple(grid(bound) if callable(grid) else grid)
        fits = all(type(n) is int and 0 < n <= limit for n, limit in zip(sizes, GRID_LIMITS, strict=False))
        if not fits:
            raise LaunchError(f"{function.__name__}: a grid of {sizes}")
        tensors = {key: value for key, value in bound.items() if isinstance(value, torch.Tensor)}
        self._launch = sizes, tensors, {key: each for key, each in options.items() if key not in function.arg_names}

    def compiling(self, *, key: str, fn: Any, compile: dict[str, Any], **_rest: Any) -> bool:
        """Triton's hook before it compiles: keeps what would be compiled, and says that it is taken care of."""
        grid, given, options = self._launch
        function = fn.jit_function
        name = f"{function.module}:{function.__name__}"
        variant = self.variants.get((name, key))
        if variant is None:
            names, constants = function.arg_names, compile["constants"]
            shown = {names[path[0]]: _shown(value) for path, value in constants.items() if len(path) == 1}
            types = [text for text in compile["signature"].values() if text != "constexpr"]
            source = ASTSource(function, compile["signature"], constants, compile["configs"][0])
            variant = self.variants[name, key] = Variant(name, types, shown, options, source)
        arguments = [name for name, text in compile["signature"].items() if text != "constexpr"]
        tensors = {
            i: (_memory(given[name]), _nbytes(given[name]))
            for i, name in enumerate(arguments)
            if name in given and _memory(given[name]) not in self._tables
        }
        if not variant.grid or _sum(tensors) > _sum(variant.tensors):
            variant.grid, variant.tensors = grid, tensors
        variant.ops.add(self._op)
        variant.places += [place for place in self._places if place not in variant.places]
        return True


def _shown(value: Any) -> str:
    return getattr(value, "__name__", None) or str(getattr(value, "value", value))


def tensor(argument: Argument, where: str = "meta") -> torch.Tensor:
    """A tensor of the argument's shape and type."""
    return torch.empty(argument.shape, dtype=getattr(torch, argument.dtype), device=where)


def _sum(tensors: Mapping[int, tuple[int, int]]) -> int:
    return sum(nbytes for _, nbytes in tensors.values())


def _memory(each: torch.Tensor) -> int:
    """What tells tensors over the same memory from others."""
    return int(each.untyped_storage()._cdata)


def _nbytes(each: torch.Tensor) -> int:
    return int(each.numel() * each.element_size())


@contextmanager
def recording(target: str) -> Iterator[Recorder]:
    """While open, launches are recorded as on ``target``, and nothing is compiled or run.

    Raises:
        LaunchError: this process interprets kernels.
    """
    from triton import knobs
    from triton.runtime import driver

    if device.INTERPRETING:
        raise LaunchError("kernels are interpreted here, not compiled", remedy="unset TRITON_INTERPRET")
    recorder = Recorder()
    run: Callable[..., Any] = JITFunction.run

    def record(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        assert not warmup, "launchers launch"
        recorder.launched(self, args, grid, options)
        return run(self, *args, grid=grid, warmup=True, **options)

    before = driver._active
    driver.set_active(_Driver(gpu_target(target)))
    knobs.runtime.jit_cache_hook = recorder.compiling
    JITFunction.run = record
    try:
        with device.pretend(target):
            yield recorder
    finally:
        JITFunction.run = run
        knobs.runtime.jit_cache_hook = None
        driver._active = before
