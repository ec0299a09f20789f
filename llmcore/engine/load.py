"""From a model's files to a runner: checkpoint, family, graph, strict claim of every tensor, kernels, memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore.cache.layout import KV_DTYPES
from llmcore.config.schema import ModelConfig
from llmcore.device import HOST, Place
from llmcore.engine.accelerated import AcceleratedRunner
from llmcore.engine.place import DTYPES, check_device
from llmcore.engine.policies import Policy
from llmcore.engine.runner import Runner
from llmcore.engine.sizes import Sizes
from llmcore.engine.step_graph import model_graph
from llmcore.errors import ConfigError, LlmcoreError, PluginError, UnsupportedModelError, near
from llmcore.graph.packing import PackedCache
from llmcore.graph.program import HERE
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import FamilyInfo
from llmcore.model_config import IGNORABLE
from llmcore.model_spec import ModelSpec
from llmcore.plugins import Plugins, resolve
from llmcore.registry.choose import Registry
from llmcore.weights.checkpoint import Checkpoint
from llmcore.weights.claims import claim
from llmcore.weights.ledger import Ledger

if TYPE_CHECKING:
    from llmcore.native.pool import WorkerPool

DEFAULT_CONTEXT = 8192  # tokens, where the model was made for more and nobody asked for more


@dataclass(frozen=True)
class EngineSettings:
    """Sizes of an engine; 0 means "choose for me".

    Attributes:
        max_context: tokens of the longest sequence; 0: what the model was made for, at most 8192.
        max_seqs: sequences in one step.
        max_batch_tokens: tokens in one step; a longer prompt is computed in chunks of this many.
        max_rows: rows whose logits one step can return.
        page_size: tokens of a KV page.
        kv_pages: KV pages; 0: enough for ``max_seqs`` full contexts within 2 GiB (on an accelerator: within what is
            left of its memory), and for one in any case.
        buckets: step sizes that get a program of their own.
        kv_dtype: the element type of the KV cache; int8 has a scale for every 8 elements. ``auto`` is bfloat16 where
            activations are rounded in any case, else that of activations.
        prefix_cache: share the pages of sequences that begin alike.
        preallocate: take the KV cache's memory when the model is loaded, in the background, and not as it is used.
        policy: who of those that wait is let in first.
        device: ``cpu``, ``cuda``, ``cuda:1`` …; ``auto`` takes a GPU where a backend is made for one.
        dtype: of activations; ``auto`` is float32 on the CPU, elsewhere what the model was published in.
        device_share: of the memory that an accelerator has left, what the KV cache may take.
    """

    max_context: int = 0
    max_seqs: int = 8
    max_batch_tokens: int = 512
    max_rows: int = 64
    page_size: int = 16
    kv_pages: int = 0
    buckets: tuple[int, ...] = (1, 8, 64)
    kv_dtype: str = "auto"
    prefix_cache: bool = True
    preallocate: bool = False
    policy: str = "fcfs"
    device: str = "auto"
    dtype: str = "auto"
    device_share: float = 0.9

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` for a size that cannot be."""
        for name in ("max_seqs", "max_batch_tokens", "max_rows", "page_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name} is {getattr(self, name)}", remedy="it must be at least 1")
        for name in ("max_context", "kv_pages"):
            if getattr(self, name) < 0:
                raise ConfigError(f"engine.{name} is {getattr(self, name)}", remedy="0 chooses a size, or give one")
        known = ("auto", *KV_DTYPES)
        if self.kv_dtype not in known:
            raise ConfigError(f"engine.kv_dtype is {self.kv_dtype!r}", remedy=near(str(self.kv_dtype), known))
        for name in ("prefix_cache", "preallocate"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"engine.{name} is {getattr(self, name)!r}", remedy="it must be true or false")
        if not isinstance(self.policy, str):
            raise ConfigError(f"engine.policy is {self.policy!r}", remedy="give a policy's name")
        share = self.device_share
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
            raise ConfigError(f"engine.device_share is {share!r}", remedy="give a share above 0, up to 1")
        check_device(self.device)
        if self.dtype not in ("auto", *DTYPES):
            raise ConfigError(f"engine.dtype is {self.dtype!r}", remedy=near(str(self.dtype), ("auto", *DTYPES)))
        if any(bucket < 1 for bucket in self.buckets):
            raise ConfigError(f"engine.buckets is {list(self.buckets)}", remedy="give step sizes of at least one token")

    def sizes(self, spec: ModelSpec) -> Sizes:
        """The sizes for a model."""
        context = self.max_context or min(spec.max_positions, DEFAULT_CONTEXT)
        if context > spec.max_positions:
            raise ConfigError(
                f"engine.max_context is {context}, but the model was made for {spec.max_positions} tokens",
                remedy=f"ask for at most {spec.max_positions}",
            )
        rows = max(self.max_rows, self.max_seqs)
        tokens = max(self.max_batch_tokens, self.max_seqs)
        pages, share = self.kv_pages, self.device_share
        return Sizes(tokens, self.max_seqs, rows, context, self.page_size, pages, self.buckets, device_share=share)


def usable_threads(wanted: int = 0) -> int:
    """Worker threads: ``wanted``, or as many as affinity and the cgroup's CPU quota allow.

    Raises:
        ConfigError: a negative number, or more than the machine could have use for.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(wanted, int) or not 0 <= wanted <= 1024:
        raise ConfigError(f"threads is {wanted!r}", remedy=f"0 takes all that this process may use ({allowed})")
    return wanted or max(min(allowed, _quota()), 1)


def _quota() -> int:
    """Processors that the cgroup (v2) grants, rounded up; a large number where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return 1 << 16 if quota == "max" else -(-int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 16  # no cgroup v2 here, or one that we cannot read: affinity alone decides


def family_of(config: dict[str, Any], plugins: Plugins) -> FamilyInfo:
    """The family that takes the config's ``model_type``; raises :class:`UnsupportedModelError` listing the others."""
    model_type = config.get("model_type")
    types = {name: family for family in plugins.families.values() for name in family.model_types}
    if not isinstance(model_type, str) or model_type not in types:
        raise UnsupportedModelError(
            f"model_type {model_type!r} belongs to no installed family",
            key="model_type",
            remedy=near(str(model_type), types),
        )
    return types[model_type]


def described(
    checkpoint: Checkpoint, model: ModelConfig, path: Path, plugins: Plugins, *, wanted: str = ""
) -> tuple[FamilyInfo, ModelSpec]:
    """A checkpoint's family, and what that makes of its config.

    Args:
        model: the reference that was opened, and keys of its config to be left alone.
        path: where it was found.
        wanted: the only family to take; empty for any.

    Raises:
        UnsupportedModelError: no family takes it, another one than ``wanted`` does, or it is one that cannot be run.
    """
    family = family_of(checkpoint.config, plugins)
    if wanted and family.name != wanted:
        raise UnsupportedModelError(
            f"{model.ref} is a {family.name} model, not a {wanted} model",
            key="model_type",
            remedy=f"{family.command or '`llmcore chat`'} runs it",
        )
    try:
        return family, resolve(family.target)(checkpoint.config, ignore=tuple(model.ignore_config_keys))
    except LlmcoreError as error:  # a family sees a dictionary; its user wants to know of which file
        error.message = f"{path}: {error.message}"
        raise


def make_policy(name: str, plugins: Plugins) -> Policy:
    """The policy ``name``; raises :class:`PluginError` where there is none, or it cannot be made."""
    target = plugins.policy(name).target
    make = resolve(target)
    try:
        policy: Policy = make()
    except Exception as error:  # third-party code
        raise PluginError(
            f"engine.policy={name}: {target} failed with {type(error).__name__}: {error}",
            remedy="choose another policy",
        ) from error
    return policy


def make_runner(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    sizes: Sizes,
    registry: Registry,
    pool: Callable[[], WorkerPool],
    place: Place = HERE,
    *,
    finite: bool = True,
    cache: PackedCache | None = None,
    taps: bool = False,
    ignorable: Sequence[str] = IGNORABLE,
) -> Runner:
    """Binds a model.

    Args:
        place: where it runs, and the type of its activations.
        finite: look at every weight for NaN and infinity first, unless ``cache`` knows that somebody has.
        cache: keeps what kernels repack for the next start; None keeps nothing.
        taps: keep each block's result, for :mod:`llmcore.verify`.
        ignorable: regular expressions of surplus tensors that are no error.

    Raises:
        CheckpointError: a tensor is missing, surplus, mis-shaped, in an unknown format or not finite.
        RegistryError: an op that no backend has a kernel for.
    """
    graph = model_graph(spec, sizes, taps=taps)
    tied = (r"lm_head\.weight",) if spec.tied else ()
    tensors = claim(checkpoint, graph.weights, (*ignorable, *tied))
    if finite:
        (cache.ledger if cache else Ledger(None)).check_finite(tensors.values())
    weights = WeightStore(tensors, cache=cache, threads=registry.preference.threads, device=place.device)
    kind = Runner if place.device is HOST else AcceleratedRunner
    try:
        with place.device.scope():
            return kind(graph, sizes, spec.vocab_size, weights, registry, pool, place)
    except MemoryError as error:
        raise too_little_memory(place, error) from error


def too_little_memory(place: Place, error: MemoryError) -> ConfigError:
    """What a user is told where an engine does not fit."""
    return ConfigError(
        f"the engine does not fit the memory of {place.device.name}: {error}",
        remedy="ask for less: engine.kv_pages, engine.max_context, engine.max_batch_tokens, engine.max_rows",
    )
