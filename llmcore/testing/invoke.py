"""Calling a kernel, of either ABI, on guarded operands."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore import ops
from llmcore.device import HOST, Device
from llmcore.device.base import numpy_dtype
from llmcore.device.host import as_torch
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.native import COUNTERS
from llmcore.native.code import loader
from llmcore.ops import OpSpec, Param
from llmcore.plugins import Plugins, resolve
from llmcore.registry.choose import Preference, Registry
from llmcore.registry.node import NodeView
from llmcore.testing.buffers import Array, Guarded, KernelMismatch, KernelRaised, Scratch
from llmcore.testing.fences import Fence
from llmcore.testing.operands import Values
from llmcore.weights.tensor import Tensor

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool


RENUMBERED = "llmcore.testing.renumber:renumbered"


class Machine:
    """The worker pools and the scratch memory that native kernels run with; made when the first one does.

    ``fenced``: the scratch memory lies between forbidden pages.
    """

    def __init__(self, *, fenced: bool = False) -> None:
        self.fenced = fenced
        self._pools: dict[int, tuple[WorkerPool, Scratch]] = {}

    def run(self, function: int, operands: np.ndarray[Any, Any], threads: int, *, late: bool = False) -> None:
        """Runs the kernel at address ``function`` as a program of one row; ``operands[1]`` is filled in here.

        ``late``: only thread 0 comes, the others never do. A busy machine does this, and a kernel that divides its work
        by the number of threads is then not done.
        """
        if threads not in self._pools:
            from llmcore.native.pool import WorkerPool

            self._pools[threads] = WorkerPool(threads), Scratch(threads, fenced=self.fenced)
        pool, scratch = self._pools[threads]
        operands[1] = scratch.address
        if late:
            call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(function)
            call(operands.ctypes.data, 0, scratch.threads)
        else:
            counters = np.zeros(COUNTERS, np.int64)  # of the row; the kernel's own are zero as they are
            row = np.array([counters.ctypes.data, function, operands.ctypes.data, scratch.STEP], np.int64)
            pool.run(np.array([[loader().address(RENUMBERED), row.ctypes.data]], np.int64))
        scratch.check()


@dataclass(frozen=True)
class Setting:
    """Under what circumstances a kernel runs.

    Attributes:
        dtype: of the activations.
        kv_dtype: of the KV cache.
        threads, late: of a native kernel; ``late``: only the first of them comes.
        skewed: operands begin one element past a 64-byte boundary.
        inplace: (output, input) that share memory.
        wide: outputs of type ``act`` are float32, whatever activations are.
        fence: the side of every buffer on which a forbidden page begins; ``only``: of this one buffer.
        device: where the operands of kernels that take torch tensors lie.
    """

    machine: Machine
    dtype: str = "float32"
    kv_dtype: str = "float32"
    threads: int = 1
    late: bool = False
    skewed: bool = False
    inplace: tuple[str, str] | None = None
    wide: bool = False
    fence: Fence = ""
    only: str = ""
    device: Device = HOST

    def fence_of(self, name: str) -> Fence:
        """The side of buffer ``name`` on which there is a forbidden page."""
        return self.fence if self.only in ("", name) else ""

    def __str__(self) -> str:
        parts = [self.dtype, *([f"a KV cache of {self.kv_dtype}"] if self.kv_dtype != "float32" else [])]
        parts += [f"{self.threads} thread{'s' * (self.threads > 1)}"]
        if self.late:
            parts.append("of which only the first came")
        if self.skewed:
            parts.append("operands not aligned to 64 bytes")
        if self.inplace:
            parts.append("{} in the memory of {}".format(*self.inplace))
        if self.wide:
            parts.append("outputs in float32")
        if self.device is not HOST:
            parts.append(f"on {self.device.name}")
        if self.fence:
            parts.append(f"a forbidden page right {self.fence} {self.only or 'every buffer'}")
        return ", ".join(parts)


def why_not(
    backend: BackendInfo, kernels: tuple[KernelInfo, ...], node: NodeView, kv_dtype: str = "float32"
) -> tuple[KernelInfo | None, str]:
    """Which of the backend's ``kernels`` the registry would bind to ``node``, or None and why not."""
    offer = BackendInfo(backend.name, "", kernels, requires=backend.requires, ready=backend.ready)
    registry = Registry(Plugins(backends={backend.name: offer}), Preference((backend.name,), kv_dtype=kv_dtype))
    choice, passed = registry.find(node)
    return (choice.kernel, "") if choice else (None, "; ".join(passed))


def execute(
    kernel: KernelInfo,
    values: Values,
    dims: Mapping[str, int],
    attrs: Mapping[str, Any],
    setting: Setting,
    state: Guarded | None = None,
) -> dict[str, Array]:
    """Runs ``kernel`` once and returns its outputs.

    Raises:
        KernelMismatch: it raised, or wrote where it must not.
    """
    spec = ops.get(kernel.op)
    attrs = spec.coerce(attrs)
    operands = _place(spec, kernel, values, dims, setting)
    operands.update({param.name: state for param in spec.of("state") if state is not None})
    try:
        if kernel.abi == "native":
            space = _workspace(kernel, values, dims, attrs, setting)
            for stage in (*kernel.before, kernel.target):
                table, _keep = _operand_table(spec, operands, dims, attrs, space)
                setting.machine.run(loader().address(stage), table, setting.threads, late=setting.late)
            if space is not None:
                space.check()
        else:
            _call(kernel, [operands.get(param.name) for param in spec.params], attrs, setting.device)
    except KernelMismatch:
        raise
    except Exception as error:
        raise KernelRaised(f"raised {type(error).__name__}: {error}") from error
    for operand in operands.values():
        operand.check()
    return {param.name: operands[param.name].array for param in spec.outputs}


def _place(
    spec: OpSpec, kernel: KernelInfo, values: Values, dims: Mapping[str, int], setting: Setting
) -> dict[str, Guarded]:
    """Guarded memory for every operand that the call has."""
    skewed, fence = setting.skewed, setting.fence_of
    placed = {
        name: Guarded.holding(name, array, skewed=skewed, fence=fence(name)) for name, array in values.arrays.items()
    }
    for name, tensor in values.stored.items():
        weight = _weight(kernel, tensor)
        unaligned = weight.ctypes.data % 64 != 0 if kernel.pack else skewed  # a packed weight stays as aligned as it is
        placed[name] = Guarded.holding(name, weight, skewed=unaligned, fence=fence(name))
    for param in spec.outputs:
        if setting.inplace and setting.inplace[0] == param.name:
            placed[param.name] = placed[setting.inplace[1]].release()
            continue
        act = "float32" if setting.wide else setting.dtype
        dtype = numpy_dtype({"act": act, "f32": "float32", "i32": "int32"}[param.type])
        shape = tuple(dims[letter] for letter in param.dims)
        placed[param.name] = Guarded.output(param.name, shape, dtype, skewed=skewed, fence=fence(param.name))
    return placed


def _weight(kernel: KernelInfo, tensor: Tensor) -> Array:
    """A weight as ``kernel`` reads it: packed, or as stored (quantized: uint8 [rows, bytes of a row])."""
    if kernel.pack:
        packed = resolve(kernel.pack)(tensor)
        if not isinstance(packed, np.ndarray) or not packed.flags.c_contiguous:
            raise KernelMismatch(f"{kernel.pack} must return a C-contiguous numpy array")
        return packed
    if tensor.format.plain:
        return tensor.numpy()
    return tensor.raw().reshape(tensor.shape[0], -1)


def _workspace(
    kernel: KernelInfo, values: Values, dims: Mapping[str, int], attrs: Mapping[str, Any], setting: Setting
) -> Guarded | None:
    """What ``kernel`` asks for to work in, and not a byte more."""
    if not kernel.workspace:
        return None
    formats = {name: tensor.format.name for name, tensor in values.stored.items()}
    present = frozenset(values.arrays) | frozenset(values.stored)
    node = NodeView(
        kernel.op, "", setting.device.kind, setting.dtype, dims=dims, formats=formats, attrs=attrs, present=present
    )
    size = resolve(kernel.workspace)(node)
    fence = setting.fence_of("workspace")
    return Guarded.output("workspace", (size,), np.dtype(np.int8), skewed=setting.skewed, fence=fence)


def _call(kernel: KernelInfo, operands: Sequence[Guarded | None], attrs: Mapping[str, Any], device: Device) -> None:
    """Calls a Python kernel on operands where ``device`` has them; memory that two share there too is one."""
    lent = {operand: operand.lend(device) for operand in operands if operand is not None and device is not HOST}

    def view(operand: Guarded | None) -> Any:
        if operand is None:
            return None
        if operand in lent:
            return lent[operand][0]
        return as_torch(operand.array) if kernel.view == "torch" else operand.array

    resolve(kernel.target)(*map(view, operands), **attrs)
    for _, back in lent.values():
        back()


def _operand_table(
    spec: OpSpec,
    operands: Mapping[str, Guarded],
    dims: Mapping[str, int],
    attrs: Mapping[str, Any],
    workspace: Guarded | None,
) -> tuple[np.ndarray[Any, Any], object]:
    """The table that :mod:`llmcore.native` describes, without the scratch address; and what must outlive it."""

    def address(param: Param) -> int:
        return operands[param.name].address if param.name in operands else 0

    counter = np.zeros(COUNTERS, np.int64)  # a cache line of its own
    sizes = np.array([dims.get(letter, 0) for letter in spec.dims], np.int64)
    table = [counter.ctypes.data, 0, *map(address, spec.params)]
    table += [sizes.ctypes.data + 8 * index for index in range(len(sizes))]
    table += [_attribute(attrs[name]) for name in spec.attrs]
    table += [workspace.address] if workspace is not None else []
    return np.array(table, np.int64), (counter, sizes)


def _attribute(value: bool | int | float) -> int:
    """An attribute as it stands in an operand table."""
    return int(np.float64(value).view(np.int64)) if isinstance(value, float) else int(value)
