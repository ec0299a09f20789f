"""The numbers of an op's operands, by its signature: tensors, then dims, then attributes."""

from __future__ import annotations

from llmcore import ops


def operands_of(op: str) -> range:
    """One number for every tensor, dim and attribute of ``op``, to unpack into names that kernels use."""
    spec = ops.get(op)
    return range(len(spec.params) + len(spec.dims) + len(spec.attrs))


def workspace_of(op: str) -> int:
    """The number of the workspace's address, for kernels of ``op`` that ask for one."""
    return len(operands_of(op))


def names_of(op: str) -> dict[str, int]:
    """The same numbers by name in capitals, with ``WORKSPACE``: for kernels that are made for several ops."""
    spec = ops.get(op)
    names = [*(param.name.upper() for param in spec.params), *spec.dims, *(name.upper() for name in spec.attrs)]
    return {**dict(zip(names, operands_of(op), strict=True)), "WORKSPACE": workspace_of(op)}
