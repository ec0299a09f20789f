"""The choice of a kernel for every node, with its reason.

For each node the backends are asked in the order of the user's preference. The first kernel that fits op, device,
dtype, weight formats and its own ``supported`` predicate is taken, and why the ones before it were not is kept:
nothing falls back silently.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from llmcore import ops
from llmcore.errors import RegistryError, near
from llmcore.hookspecs import BackendInfo, KernelInfo
from llmcore.plugins import Plugins, resolve
from llmcore.registry.node import NodeView


@dataclass(frozen=True)
class Choice:
    """A kernel, whose it is, and why it was taken."""

    backend: str
    kernel: KernelInfo
    reason: str


@dataclass(frozen=True)
class Preference:
    """What the user asked for: backends in order, and single ops by name.

    Attributes:
        order: backend names, most wanted first.
        ops: op name → backend name, over the order.
        exact: only kernels that keep activations in float32.
        threads: what backends with threads of their own may use.
    """

    order: tuple[str, ...]
    ops: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    threads: int = 1


class Registry:
    """Kernels of all backends, chosen for one user's preference."""

    def __init__(self, plugins: Plugins, preference: Preference) -> None:
        """Checks every name first.

        Raises:
            RegistryError: an op that does not exist, or a group whose ops are asked from two backends.
            PluginError: a backend that does not exist.
        """
        for name in preference.ops:
            if name not in ops.OPS:
                raise RegistryError(f"backend.ops: there is no op {name!r}", remedy=near(name, ops.NAMES))
        self.backends = {name: plugins.backend(name) for name in (*preference.order, *preference.ops.values())}
        self.preference = preference
        self.group_backend = self._groups()
        self._prepared: set[str] = set()

    def _groups(self) -> dict[str, str]:
        """Group → backend, for the groups that an override touches."""
        asked: dict[str, dict[str, str]] = {}
        for op, backend in self.preference.ops.items():
            for kernel in self.backends[backend].kernels:
                if kernel.op == op and kernel.group:
                    asked.setdefault(kernel.group, {})[op] = backend
        for group, choices in asked.items():
            if len(set(choices.values())) > 1:
                listed = ", ".join(f"{op}={backend}" for op, backend in sorted(choices.items()))
                raise RegistryError(
                    f"{listed}: these ops share a private layout (group {group!r})", remedy="take both from one backend"
                )
        return {group: next(iter(choices.values())) for group, choices in asked.items()}

    def order(self, node: NodeView) -> Sequence[tuple[str, str]]:
        """Backends to ask for ``node``, each with the reason it would be taken for."""
        forced = self.preference.ops.get(node.op)
        if forced:
            return [(forced, f"backend.ops.{node.op}={forced}")]
        for name in self.backends:
            for kernel in self.backends[name].kernels:
                if kernel.op == node.op and kernel.group in self.group_backend:
                    owner = self.group_backend[kernel.group]
                    return [(owner, f"group {kernel.group!r} is bound to {owner}")]
        return [
            (name, f"choice {i + 1} of {len(self.preference.order)}") for i, name in enumerate(self.preference.order)
        ]

    def find(self, node: NodeView) -> tuple[Choice | None, list[str]]:
        """The kernel for ``node``, or None; and why each backend asked before it was passed over."""
        passed: list[str] = []
        for name, why in self.order(node):
            backend = self.backends[name]
            problem = _ready(backend)
            if problem:
                passed.append(f"{name}: {problem}")
                continue
            misfits = []
            for kernel in backend.kernels:
                if kernel.op == node.op:
                    misfit = _misfit(kernel, node, self.preference.exact) or self._partial(backend, kernel)
                    if misfit is None:
                        return Choice(name, kernel, "; ".join([why, *passed])), passed
                    misfits.append(misfit)
            passed.append(f"{name}: {' / '.join(dict.fromkeys(misfits)) or 'does not offer it'}")
        return None, passed

    def choose(self, node: NodeView) -> Choice:
        """The kernel for ``node``; raises :class:`RegistryError` saying what each backend lacks."""
        choice, passed = self.find(node)
        if choice is None:
            raise RegistryError(
                f"no kernel for op {node.op!r} at {node.path or 'the top'}: " + "; ".join(passed),
                remedy="`llmcore ops` lists what every installed backend offers",
            )
        return choice

    def prepare(self, backend: str) -> None:
        """Readies ``backend`` to run with the user's threads, once."""
        if backend not in self._prepared and self.backends[backend].prepare:
            resolve(self.backends[backend].prepare)(self.preference.threads)
        self._prepared.add(backend)

    def _partial(self, backend: BackendInfo, kernel: KernelInfo) -> str | None:
        """Why a kernel of a group cannot be bound: its backend lacks another op of the group."""
        if not kernel.group:
            return None
        members = {k.op for b in self.backends.values() for k in b.kernels if k.group == kernel.group}
        missing = sorted(op for op in members - {k.op for k in backend.kernels} if not ops.OPS[op].fused)
        return f"lacks {', '.join(missing)} of group {kernel.group!r}" if missing else None


@cache
def _ready(backend: BackendInfo) -> str | None:
    missing = [name for name in backend.requires if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)}, not installed"
    problem: str | None = resolve(backend.ready)() if backend.ready else None
    return problem


def _misfit(kernel: KernelInfo, node: NodeView, exact: bool) -> str | None:
    """Why ``kernel`` cannot run ``node``, or None."""
    if node.device not in kernel.devices:
        return f"not on {node.device}"
    if node.dtype not in kernel.dtypes:
        return f"not for {node.dtype}"
    if exact and not kernel.exact:
        return "not exact"
    for name, weight_format in node.formats.items():
        if weight_format not in kernel.formats:
            return f"does not read {weight_format} ({name})"
    verdict: str | None = resolve(kernel.supported)(node) if kernel.supported else None
    return verdict
