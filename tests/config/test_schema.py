"""The schema: which keys there are, and which values they may have."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmcore.cache.layout import KV_DTYPES
from llmcore.config.checks import RANGES, check
from llmcore.config.schema import (
    BackendConfig,
    Compute,
    Config,
    EngineConfig,
    KVDtype,
    ModelConfig,
    keys,
    make_schema,
    plain,
)
from llmcore.engine.load import EngineSettings
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError, RequestError

OPS = ("linear", "rope")


def config(**overrides: Any) -> Config:
    """A filled-in config with dotted overrides, ``__`` for the dot."""
    schema = OmegaConf.structured(make_schema(OPS))
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in {"model.ref": "a/b", "backend.order": ["torch"], **dotted}.items():
        OmegaConf.update(schema, key, value)
    return plain(OmegaConf.to_object(schema))


def test_every_key_is_listed() -> None:
    found = keys(make_schema(OPS))
    assert {"model", "model.ref", "backend.ops", "backend.ops.rope", "sampling.top_p", "seed"} <= set(found)
    assert len(found) == len(set(found))
    top = {key for key in found if "." not in key}
    assert top == {f.name for f in fields(Config)}


def test_plain_keeps_only_the_ops_asked_for() -> None:
    found = config(backend__ops__rope="numba", compute="exact")
    assert found.backend == BackendConfig("auto", ["torch"], {"rope": "numba"})
    assert found.compute is Compute.exact
    assert type(found) is Config


@pytest.mark.parametrize(
    ("key", "value"), [("threads", "many"), ("compute", "fast"), ("seed", 1.5), ("sampling.stop", 3)]
)
def test_wrong_types_are_refused(key: str, value: Any) -> None:
    with pytest.raises(OmegaConfBaseException, match=key):
        OmegaConf.update(OmegaConf.structured(make_schema(OPS)), key, value)


def test_defaults_are_in_range() -> None:
    check(config())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampling.temperature", -0.1),
        ("sampling.temperature", float("nan")),
        ("sampling.temperature", float("inf")),
        ("sampling.top_p", 0.0),
        ("sampling.top_p", 1.01),
        ("sampling.min_p", -0.01),
        ("sampling.top_k", -1),
        ("sampling.repetition_penalty", 0.0),
        ("sampling.presence_penalty", 101.0),
        ("sampling.frequency_penalty", -101.0),
        ("sampling.logprobs", -1),
        ("sampling.stop_token_ids", [3, -3]),
        ("sampling.stop", ["a", ""]),
        ("seed", -1),
        ("seed", 2**63),
        ("threads", -1),
        ("max_new_tokens", 0),
        ("engine.page_size", 0),
        ("engine.max_context", -1),
        ("engine.kv_pages", -1),
        ("engine.buckets", [1, 0]),
        ("engine.buckets", [1, 65537]),
        ("engine.max_context", 2**24 + 1),
        ("engine.max_batch_tokens", 65537),
        ("engine.max_seqs", 4097),
        ("engine.max_rows", 65537),
        ("engine.page_size", 4097),
        ("engine.kv_pages", 2**24 + 1),
        ("model.sha256", "abc"),
        ("model.ref", ""),
        ("cache_dir", ""),
        ("backend.order", []),
    ],
)
def test_out_of_range_is_refused_by_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")) as caught:
        check(config(**{key.replace(".", "__"): value}))
    assert caught.value.remedy


def test_a_bound_is_written_in_full() -> None:
    assert str(RANGES["engine.max_context"]) == "at least 0 and at most 16777216"


def test_every_range_is_of_a_key() -> None:
    assert set(RANGES) <= set(keys(Config))


def test_types_of_the_cache() -> None:
    assert [each.value for each in KVDtype] == ["auto", *KV_DTYPES]
    with pytest.raises(ConfigError, match=r"engine\.kv_dtype is 'int4'"):
        EngineSettings(kv_dtype="int4")
    with pytest.raises(ConfigError, match=r"engine\.kv_dtype is 8"):
        EngineSettings(kv_dtype=8)  # type: ignore[arg-type]


def test_engine_has_the_keys_and_defaults_of_its_settings() -> None:
    ours = {f.name: f for f in fields(EngineConfig)}
    assert set(ours) == {f.name for f in fields(EngineSettings)}
    defaults, settings = EngineConfig(), EngineSettings()
    for name in ours:
        value = getattr(defaults, name)
        assert (tuple(value) if isinstance(value, list) else value) == getattr(settings, name)


@pytest.mark.parametrize("key", [key for key in RANGES if key.startswith("sampling.")])
def test_sampling_ranges_are_those_of_the_parameters(key: str) -> None:
    name, allowed = key.partition(".")[2], RANGES[key]
    edges: list[Any] = [allowed.low, allowed.low - 1, allowed.high]
    for value in (edge for edge in edges if abs(edge) != float("inf")):
        typed = value if "penalty" in name or name in ("temperature", "top_p", "min_p") else int(value)
        try:
            SamplingParams(**{name: (typed,) if name == "stop_token_ids" else typed})
            taken = True
        except RequestError:
            taken = False
        assert taken == allowed.holds(value), f"{name}={value}"


def test_digest_in_any_case() -> None:
    check(replace(config(), model=ModelConfig("a/b", "Ab" * 32)))
