"""The hooks that a plugin implements, and the records that they return.

A plugin is a module named by an entry point in the group ``llmcore``; it implements any of the hooks below with
``@hookimpl``. Records hold import strings (``"package.module:attribute"``), resolved only when the thing is used:
listing every plugin imports neither torch nor numba nor triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pluggy

GROUP = "llmcore"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)

Abi = Literal["call", "native"]


@dataclass(frozen=True)
class KernelInfo:
    """One kernel: an implementation of one op by one backend.

    Attributes:
        op: the op's name in :mod:`llmcore.ops`.
        target: import string. ``abi="call"``: a function ``f(*inputs, *weights, *outputs, **attrs)`` in the order of
            the op's signature that fills its outputs. ``abi="native"``: a function without arguments that returns the
            address of a ``void kernel(int64 operands, int64 thread, int64 threads)``; :mod:`llmcore.native.abi` says
            what ``operands`` holds.
        abi: how the program calls it.
        view: what a ``call`` kernel is given: ``"numpy"`` arrays or ``"torch"`` tensors, over the same memory.
        devices, dtypes: where it runs and the activation types it takes.
        formats: the weight formats it reads (``"F32"``, ``"Q4_1"`` …); empty where the op has no weight.
        supported: import string of ``f(node: NodeView) -> str | None``: why not, or None where it can run.
        pack: import string of ``f(tensor: Tensor) -> np.ndarray``: repacks a weight into the layout named by
            ``layout``.
        layout: name and version of the private layout that ``pack`` makes, e.g. ``("dense-f32", 1)``.
        keep: whether what ``pack`` makes is worth keeping on disk for the next start: not if it is far larger than what
            it is made of.
        before: import strings of native kernels that run first, in order, over the same operands: to quantize the
            activations once for all threads, say.
        workspace: import string of ``f(node: NodeView) -> int``: bytes that all stages share; their address is the last
            operand.
        exact: whether activations stay float32 inside; ``compute=exact`` takes no others.
        group: kernels of one group bind together from one backend (``"kv"``: ``kv_write`` and ``attention``).
        kv_dtypes: of a kernel in group ``kv``: the element types of the cache that it works on.
        captured: whether calls may be recorded and replayed (CUDA graphs): it only launches work, sized by the shapes
            of its operands, and never waits for the device or looks at what they hold.
    """

    op: str
    target: str
    abi: Abi = "call"
    view: Literal["numpy", "torch"] = "numpy"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    formats: tuple[str, ...] = ()
    supported: str = ""
    pack: str = ""
    layout: tuple[str, int] | None = None
    keep: bool = True
    before: tuple[str, ...] = ()
    workspace: str = ""
    exact: bool = True
    group: str = ""
    kv_dtypes: tuple[str, ...] = ("float32",)
    captured: bool = False


@dataclass(frozen=True)
class BackendInfo:
    """A set of kernels under one name.

    Attributes:
        name: what ``backend=`` takes.
        summary: one line for ``llmcore plugins``.
        kernels: what it offers; an op may appear more than once (formats, dtypes), the first that fits is taken.
        kv_layouts: element type of the cache → import string of the :class:`llmcore.cache.layout.KVLayout` of the pages
            that its ``kv`` group reads and writes.
        requires: import names that must be installed for it to run.
        ready: import string of ``f() -> str | None``: why the backend cannot run on this machine, or None.
        prepare: import string of ``f(threads: int) -> None``, called before the first of its kernels is bound.
    """

    name: str
    summary: str
    kernels: tuple[KernelInfo, ...]
    kv_layouts: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    ready: str = ""
    prepare: str = ""


@dataclass(frozen=True)
class FamilyInfo:
    """A model family: ``target`` turns a checkpoint's config dict into a ``ModelSpec``.

    Attributes:
        name: for messages and for the command that fits (``llama`` → ``llama_infer``).
        model_types: the ``model_type`` values in ``config.json`` that it takes.
        target: import string of ``f(config: dict) -> ModelSpec``.
        command: the demo command for models of this family.
    """

    name: str
    model_types: tuple[str, ...]
    target: str
    command: str = ""


@dataclass(frozen=True)
class FormatInfo:
    """A checkpoint format.

    Attributes:
        matches: import string of ``f(path: Path) -> bool``, by names and magic bytes only.
        open: import string of ``f(path: Path) -> Checkpoint``.
    """

    name: str
    summary: str
    matches: str
    open: str


@dataclass(frozen=True)
class TokenizerInfo:
    """A kind of tokenizer data: ``target`` is ``f(source: TokenizerSource) -> Tokenizer``."""

    kind: str
    summary: str
    target: str


@dataclass(frozen=True)
class SourceInfo:
    """Where models come from.

    Attributes:
        matches: import string of ``f(reference: str) -> bool``.
        fetch: import string of ``f(reference: str, options: FetchOptions) -> Path``: a directory or file on this
            machine.
        example: a reference of this kind, for messages.
        priority: sources are asked in ascending order.
    """

    name: str
    summary: str
    matches: str
    fetch: str
    example: str
    priority: int = 50


@dataclass(frozen=True)
class PolicyInfo:
    """An order of those that wait for the engine: ``target`` is ``f() -> llmcore.engine.policies.Policy``."""

    name: str
    summary: str
    target: str


@dataclass(frozen=True)
class CommandInfo:
    """A subcommand of ``llmcore``: ``target`` is ``f(argv: list[str]) -> int``."""

    name: str
    summary: str
    target: str
    order: int = field(default=50, compare=False)


@hookspec
def llmcore_backends() -> list[BackendInfo]:  # type: ignore[empty-body]
    """Backends that this plugin offers."""


@hookspec
def llmcore_families() -> list[FamilyInfo]:  # type: ignore[empty-body]
    """Model families that this plugin knows."""


@hookspec
def llmcore_formats() -> list[FormatInfo]:  # type: ignore[empty-body]
    """Checkpoint formats that this plugin reads."""


@hookspec
def llmcore_tokenizers() -> list[TokenizerInfo]:  # type: ignore[empty-body]
    """Tokenizer kinds that this plugin builds."""


@hookspec
def llmcore_sources() -> list[SourceInfo]:  # type: ignore[empty-body]
    """Model sources that this plugin fetches from."""


@hookspec
def llmcore_commands() -> list[CommandInfo]:  # type: ignore[empty-body]
    """Subcommands of ``llmcore`` that this plugin adds."""


@hookspec
def llmcore_policies() -> list[PolicyInfo]:  # type: ignore[empty-body]
    """Policies that this plugin offers for ``engine.policy``."""
