"""The settings: every key that a config file or an override may have, with its type and default.

The dataclasses serve twice: OmegaConf holds YAML files and overrides against them at composition (unknown keys and
wrong types are refused there), and programs get them filled in. Ranges are checked in :mod:`llmcore.config.checks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum, StrEnum
from typing import Any

MISSING: Any = "???"  # OmegaConf's mark of a value that must be given


class Compute(Enum):
    """The precision of activations: the fastest that each kernel offers, or float32 everywhere."""

    auto = "auto"
    exact = "exact"


class KVDtype(StrEnum):
    """The element type of the KV cache; int8 has a scale for every 8 elements.

    ``auto`` is bfloat16 where activations are rounded in any case, else the type of activations.
    """

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


class Dtype(StrEnum):
    """The type of activations: ``auto`` is float32 on the CPU, elsewhere what the model was published in."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@dataclass
class ModelConfig:
    """Which model.

    Attributes:
        ref: a path, a hub id (``org/name:Q4_K_M``) or a ``pypi:`` reference.
        sha256: what the model file's digest must be, in hex; null where it is not pinned.
        ignore_config_keys: keys of the model's own configuration that may be there although we do not implement them.
    """

    ref: str = MISSING
    sha256: str | None = None
    ignore_config_keys: list[str] = field(default_factory=list)


@dataclass
class BackendConfig:
    """Which kernels.

    Attributes:
        name: what was asked for; ``auto`` leaves the choice to ``order`` and to what this machine can run.
        order: backends in order of preference; each op is taken from the first that offers it.
        ops: op → backend, over the order.
    """

    name: str = "auto"
    order: list[str] = field(default_factory=list)
    ops: dict[str, str] = field(default_factory=dict)


@dataclass
class SamplingConfig:
    """How tokens are chosen and what ends an answer; :class:`llmcore.SamplingParams` explains each."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    min_tokens: int = 0


@dataclass
class EngineConfig:
    """Sizes of the engine; 0 means "choose for me".

    Attributes:
        max_context: tokens of the longest sequence.
        max_batch_tokens: tokens in one step; a longer prompt is computed in chunks of this many.
        max_seqs: sequences in one step.
        max_rows: rows whose logits one step can return.
        page_size: tokens of a KV page.
        kv_pages: pages of the KV cache.
        buckets: step sizes in tokens that get a program of their own.
        kv_dtype: the element type of the KV cache.
        prefix_cache: share the pages of sequences that begin alike.
        preallocate: take the KV cache's memory when the model is loaded, in the background, and not as it is used.
        policy: who of those that wait is let in first; ``llmcore plugins`` names those that are installed.
        device: ``cpu``, ``cuda``, ``cuda:1`` …; ``auto`` takes a GPU where a backend is made for one.
        dtype: of activations.
        device_share: of the memory that an accelerator has left, what the KV cache may take.
    """

    max_context: int = 0
    max_batch_tokens: int = 512
    max_seqs: int = 8
    max_rows: int = 64
    page_size: int = 16
    kv_pages: int = 0
    buckets: list[int] = field(default_factory=lambda: [1, 8, 64])
    kv_dtype: KVDtype = KVDtype.auto
    prefix_cache: bool = True
    preallocate: bool = False
    policy: str = "fcfs"
    device: str = "auto"
    dtype: Dtype = Dtype.auto
    device_share: float = 0.9


@dataclass
class WeightsConfig:
    """How weights are read.

    Attributes:
        check_finite: look at every one for NaN and infinity first.
        cache_packed: keep what kernels repack in the cache directory, and that a file has been looked at.
    """

    check_finite: bool = True
    cache_packed: bool = True


@dataclass
class ServerConfig:
    """``llmcore serve``.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        model_name: what clients call the model; empty for its short name, or else its reference.
        api_key_env: the environment variable that has the key which clients must show.
        max_waiting: answers that are under way or wait, at most; further requests get 429.
        max_body_mb: of a request, in MiB.
        max_bodies_mb: of all requests that are being read, in MiB.
        max_connections: at once; further ones get 503.
        read_timeout_s: seconds that a request's header may take, and its body where it comes at less than 16 KiB/s.
        drain_s: seconds that answers under way have to end when the server is told to stop.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = ""
    api_key_env: str = "LLMCORE_API_KEY"
    max_waiting: int = 256
    max_body_mb: int = 16
    max_bodies_mb: int = 128
    max_connections: int = 768
    read_timeout_s: float = 20.0
    drain_s: float = 30.0


@dataclass
class Config:
    """All settings of a command.

    Attributes:
        threads: worker threads; 0 takes all that affinity and the cgroup's quota allow.
        max_new_tokens: the longest answer.
        seed: makes a random draw repeatable; null draws a seed.
        cache_dir: where downloads, compiled kernels and repacked weights are kept; null is the default place.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    compute: Compute = Compute.auto
    threads: int = 0
    max_new_tokens: int = 256
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    cache_dir: str | None = None


def make_schema(ops: Iterable[str]) -> type[Config]:
    """:class:`Config` with a declared key under ``backend.ops`` for each op: an unknown op is an unknown key."""
    ops_type = make_dataclass("OpsConfig", [(name, str | None, None) for name in ops])
    backend = make_dataclass(
        "BackendSchema", [("ops", ops_type, field(default_factory=ops_type))], bases=(BackendConfig,)
    )
    return make_dataclass("Schema", [("backend", backend, field(default_factory=backend))], bases=(Config,))


def plain(composed: Any) -> Config:
    """A filled-in schema as a :class:`Config`, whose ``backend.ops`` has only the ops that somebody asked for."""
    backend = composed.backend
    asked = {f.name: getattr(backend.ops, f.name) for f in fields(backend.ops)}
    ops = {name: value for name, value in asked.items() if value is not None}
    values = {f.name: getattr(composed, f.name) for f in fields(Config)}
    return Config(**{**values, "backend": BackendConfig(backend.name, list(backend.order), ops)})


def keys(schema: type) -> list[str]:
    """Every dotted key of a dataclass and of those inside it: ``model``, ``model.ref`` …"""
    found = []
    instance = schema()
    for f in fields(instance):
        found.append(f.name)
        inner = getattr(instance, f.name)
        if hasattr(inner, "__dataclass_fields__"):
            found += [f"{f.name}.{key}" for key in keys(type(inner))]
    return found
