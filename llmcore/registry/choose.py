"""The choice of a kernel for every node, with its reason.

For each node the backends are asked in the order of the user's preference. The first kernel that fits op, device,
dtype, weight formats and its own ``supported`` predicate is taken, and why the ones before it were not is kept:
nothing falls back silently.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmcore import ops
from llmcore.errors import PluginError, RegistryError, near
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
        kv_dtype: the element type of the KV cache; ``auto``: see :meth:`Registry.bind_groups`.
    """

    order: tuple[str, ...]
    ops: Mapping[str, str] = field(default_factory=dict)
    exact: bool = False
    threads: int = 1
    kv_dtype: str = "float32"


class Registry:
    """Kernels of all backends, chosen for one user's preference.

    Attributes:
        kv_dtype: the element type of the KV cache.
    """

    def __init__(self, plugins: Plugins, preference: Preference) -> None:
        """Checks every name first.

        Raises:
            RegistryError: an op that does not exist or that the named backend does not offer, or a group whose ops are
                asked from two backends.
            PluginError: a backend that does not exist, or that declares a kernel for an op that does not.
        """
        for name in preference.ops:
            if name not in ops.OPS:
                raise RegistryError(f"backend.ops: there is no op {name!r}", remedy=near(name, ops.NAMES))
        self.backends = {name: plugins.backend(name) for name in (*preference.order, *preference.ops.values())}
        for backend in self.backends.values():
            _check_declared(backend)
        for op, name in preference.ops.items():
            if all(kernel.op != op for kernel in self.backends[name].kernels):
                offer = [b.name for b in plugins.backends.values() if any(k.op == op for k in b.kernels)]
                raise RegistryError(
                    f"backend.ops.{op}={name}: {name} does not offer {op}",
                    remedy=f"offered by: {', '.join(offer) or 'no installed backend'}",
                )
        self.preference = preference
        self.kv_dtype = "float32" if preference.kv_dtype == "auto" else preference.kv_dtype
        self.plugins = plugins
        self._groups_by_op = self._grouped()
        self._problems: dict[str, str | None] = {}
        self.group_backend = self._groups()
        self._group_reason = {
            group: f"group {group!r} is bound to {backend}" for group, backend in self.group_backend.items()
        }
        self._prepared: set[str] = set()
        self._smaller_cache: tuple[str, ...] = ()  # why the last backend asked cannot have one

    def _grouped(self) -> dict[str, set[str]]:
        """Op → the groups that any backend has it in."""
        found: dict[str, set[str]] = {}
        for kernel in (kernel for backend in self.backends.values() for kernel in backend.kernels):
            found.setdefault(kernel.op, set()).update((kernel.group,) if kernel.group else ())
        return found

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
        for group in self._groups_by_op.get(node.op, set()) & self.group_backend.keys():
            return [(self.group_backend[group], self._group_reason[group])]
        return [
            (name, f"choice {i + 1} of {len(self.preference.order)}") for i, name in enumerate(self.preference.order)
        ]

    def find(self, node: NodeView) -> tuple[Choice | None, list[str]]:
        """The kernel for ``node``, or None; and why each backend asked before it was passed over."""
        passed: list[str] = []
        for name, why in self.order(node):
            backend = self.backends[name]
            problem = self._problem(backend)
            if problem:
                passed.append(f"{name}: {problem}")
                continue
            kernel, misfits = self._kernel(backend, node)
            if kernel is not None:
                return Choice(name, kernel, "; ".join([why, *passed])), passed
            passed.append(f"{name}: {misfits}")
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

    def bind_groups(self, nodes: Iterable[NodeView], *, rounded: bool = False) -> None:
        """Gives each group, whose ops share a private layout, to the first backend that can run all of its nodes.

        Where the cache's element type was left open it becomes bfloat16, if the backend has that and ``rounded`` is
        true; else that of activations.

        Args:
            nodes: every node of a model, at every size that it will be bound for.
            rounded: kernels of other nodes round activations.

        Raises:
            RegistryError: no backend can run all nodes of a group, naming what each lacks.
        """
        members: dict[str, list[NodeView]] = {}
        for node in nodes:
            for group in self._groups_by_op.get(node.op, ()):
                members.setdefault(group, []).append(node)
        for group, views in members.items():
            asked = self.group_backend.get(group)
            passed: list[str] = []
            for i, name in enumerate((asked,) if asked else self.preference.order):
                lacks = self._group_lacks(group, self.backends[name], views, rounded)
                if lacks is None:
                    self.group_backend[group] = name
                    why = f"choice {i + 1} of {len(self.preference.order)} for group {group!r}"
                    self._group_reason.setdefault(group, "; ".join([why, *passed, *self._smaller_cache]))
                    break
                passed.append(f"{name}: {lacks}")
            else:
                raise RegistryError(
                    f"no backend can run all ops of group {group!r}: " + "; ".join(passed), remedy=self._ways_out(group)
                )

    def _group_lacks(self, group: str, backend: BackendInfo, views: Sequence[NodeView], rounded: bool) -> str | None:
        """Why ``backend`` cannot run a group, or None; sets the cache's element type where it was left open."""
        self._smaller_cache = ()
        if group == "kv" and self.preference.kv_dtype == "auto":
            self.kv_dtype = own = views[0].dtype
            if own != "float32" or not rounded or self.preference.exact:
                return self._lacks(backend, views)
            self.kv_dtype = "bfloat16"
            lacks = self._lacks(backend, views)
            if lacks is None:
                return None
            self.kv_dtype = own
            self._smaller_cache = (f"bfloat16: {lacks}",)
        return self._lacks(backend, views)

    def _ways_out(self, group: str) -> str:
        """What to do where nobody can run a group: to ask those for the cache that have it as it is asked for."""
        asked, here = self.kv_dtype, [backend for backend in self.backends.values() if backend.kv_layouts]
        if group != "kv" or any(asked in backend.kv_layouts for backend in here):
            return "`llmcore ops` lists what every installed backend offers"
        offers = ", ".join(name for name, backend in self.plugins.backends.items() if asked in backend.kv_layouts)
        instead = "; ".join(f"{backend.name} offers {', '.join(backend.kv_layouts)}" for backend in here)
        return f"engine.kv_dtype={asked} is offered by: {offers or 'no installed backend'}" + (
            instead and f"; {instead}"
        )

    def _problem(self, backend: BackendInfo) -> str | None:
        """Why ``backend`` cannot run here, or None; asked once."""
        if backend.name not in self._problems:
            self._problems[backend.name] = _ready(backend)
        return self._problems[backend.name]

    def _lacks(self, backend: BackendInfo, views: Iterable[NodeView]) -> str | None:
        """Why ``backend`` cannot run all of ``views``, or None."""
        problem = self._problem(backend)
        if problem:
            return problem
        for view in views:
            kernel, misfits = self._kernel(backend, view)
            if kernel is None:
                return f"{view.op}: {misfits}"
        return None

    def _kernel(self, backend: BackendInfo, node: NodeView) -> tuple[KernelInfo | None, str]:
        """The first kernel of ``backend`` that fits ``node``, or why none does."""
        misfits = []
        for kernel in backend.kernels:
            if kernel.op == node.op:
                misfit = _misfit(backend.name, kernel, node, exact=self.preference.exact, kv_dtype=self.kv_dtype)
                if misfit is None:
                    return kernel, ""
                misfits.append(misfit)
        return None, " / ".join(dict.fromkeys(misfits)) or "does not offer it"


def _check_declared(backend: BackendInfo) -> None:
    """Raises :class:`PluginError` for a kernel of an op that does not exist."""
    for kernel in backend.kernels:
        if kernel.op not in ops.OPS:
            raise PluginError(
                f"backend {backend.name!r} declares a kernel for op {kernel.op!r}, which does not exist",
                remedy=near(kernel.op, ops.NAMES),
            )


def _ready(backend: BackendInfo) -> str | None:
    missing = [name for name in backend.requires if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {', '.join(missing)}, not installed"
    problem: str | None = resolve(backend.ready)() if backend.ready else None
    return problem


def _misfit(backend: str, kernel: KernelInfo, node: NodeView, *, exact: bool, kv_dtype: str) -> str | None:
    """Why ``kernel`` cannot run ``node``, or None."""
    if node.device not in kernel.devices:
        return f"not on {node.device}"
    if node.dtype not in kernel.dtypes:
        return f"not for {node.dtype}"
    if exact and not kernel.exact:
        return "not exact"
    if kernel.group == "kv" and kv_dtype not in kernel.kv_dtypes:
        return f"not for a KV cache of {kv_dtype}"
    for name, weight_format in node.formats.items():
        if weight_format not in kernel.formats:
            return f"does not read {weight_format} ({name})"
    if not kernel.supported:
        return None
    predicate = resolve(kernel.supported)
    try:
        verdict: str | None = predicate(node)
    except Exception as error:  # third-party code: whatever it raises is told with its name
        raise PluginError(
            f"backend {backend!r}: {kernel.supported} failed on op {node.op}: {type(error).__name__}: {error}"
        ) from error
    return verdict
