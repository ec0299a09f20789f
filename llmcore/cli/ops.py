"""``llmcore ops``: the ops of the contract, and which backend offers each in what way."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmcore import ops
from llmcore.cli.console import table
from llmcore.cli.flags import parse
from llmcore.config.arguments import JSON
from llmcore.hookspecs import KernelInfo
from llmcore.ops.base import OpSpec
from llmcore.plugins import Plugins, plugins

USAGE = "usage: llmcore ops [OP] [--json]"


def main(argv: Sequence[str]) -> int:
    """Prints the table, or all about one op; returns the exit code."""
    given, names = parse(argv, (JSON,), USAGE, names=1)
    if given is None:
        return 0
    chosen = [ops.get(names[0])] if names else [ops.OPS[name] for name in ops.NAMES]
    installed = plugins()
    if "--json" in given:
        found = [describe(op, installed) for op in chosen]
        print(json.dumps(found[0] if names else {"ops": found}, ensure_ascii=False, indent=2))
    else:
        print(_page(chosen[0], installed) if names else _table(chosen, installed))
    return 0


def describe(op: OpSpec, installed: Plugins) -> dict[str, Any]:
    """One op and its kernels as plain data."""
    return {
        "name": op.name,
        "signature": op.signature(),
        "summary": op.summary,
        "fused": op.fused,
        "dims": list(op.dims),
        "operands": operands(op),
        "kernels": [
            {"backend": backend.name, **asdict(kernel)}
            for backend in installed.backends.values()
            for kernel in backend.kernels
            if kernel.op == op.name
        ],
    }


def operands(op: OpSpec) -> list[str]:
    """What a native kernel finds in its operand table after the header, in order."""
    return [
        *(str(param) for param in op.params),
        *(f"address of {dim}" for dim in op.dims),
        *(f"{attr} (attribute)" for attr in op.attrs),
    ]


def _table(chosen: Sequence[OpSpec], installed: Plugins) -> str:
    backends = list(installed.backends.values())
    rows = [
        (
            f"{op.name}{' (fused)' if op.fused else ''}",
            *(_cell([kernel for kernel in backend.kernels if kernel.op == op.name]) for backend in backends),
        )
        for op in chosen
    ]
    head = ("op", *(backend.name for backend in backends))
    note = "A fused op that no backend offers is run as the ops that it is made of. `llmcore ops OP` says more."
    return f"{table(head, rows)}\n\n{note}"


def _cell(kernels: Sequence[KernelInfo]) -> str:
    """How a backend offers an op: ABI, activation types, weight formats."""
    if not kernels:
        return "·"
    formats = _union(kernel.formats for kernel in kernels)
    parts = ["/".join(_union((kernel.abi,) for kernel in kernels)), "/".join(_union(k.dtypes for k in kernels))]
    if formats:
        parts.append(" ".join(formats) if len(formats) < 4 else f"{len(formats)} formats")
    return ", ".join(parts)


def _union(groups: Any) -> list[str]:
    return list(dict.fromkeys(item for group in groups for item in group))


def _page(op: OpSpec, installed: Plugins) -> str:
    paragraph = (inspect.getdoc(op.reference if not op.decompose else op.decompose) or op.summary).split("\n\n")[0]
    lines = [
        op.signature(),
        "",
        paragraph,
        "",
        f"dims: {', '.join(op.dims) or 'none'}",
        "operands of a native kernel, after its header:",
    ]
    lines += [f"  {i:>2}  {operand}" for i, operand in enumerate(operands(op))]
    rows = [
        (backend.name, kernel.abi, "/".join(kernel.devices), "/".join(kernel.dtypes), _reads(kernel), kernel.target)
        for backend in installed.backends.values()
        for kernel in backend.kernels
        if kernel.op == op.name
    ]
    head = ("backend", "abi", "devices", "dtypes", "weight formats", "kernel")
    return "\n".join([*lines, "", table(head, rows) if rows else "no installed backend offers it"])


def _reads(kernel: KernelInfo) -> str:
    return " ".join(kernel.formats) or "none"
