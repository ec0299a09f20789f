"""Which device a model runs on, and what its activations are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmcore.device import HOST
from llmcore.engine import place
from llmcore.engine.load import EngineSettings
from llmcore.engine.place import device_of, dtype_of
from llmcore.errors import ConfigError
from llmcore.hookspecs import BackendInfo, KernelInfo

CPU = BackendInfo("cpu", "", (KernelInfo("add", "a:b"),))
EITHER = BackendInfo("either", "", (KernelInfo("add", "a:b", devices=("cpu", "cuda")),))
GPU = BackendInfo("gpu", "", (KernelInfo("add", "a:b", devices=("cuda",)),))
DEVICE: Any = SimpleNamespace(kind="cuda", narrow="bfloat16")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as far as choosing one goes."""
    monkeypatch.setattr(place, "may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("llmcore.device.accelerator.Accelerator", lambda name: SimpleNamespace(name=name))


@pytest.mark.parametrize(
    ("wanted", "backends", "name"),
    [
        ("auto", (CPU, GPU, EITHER), "cuda"),
        ("auto", (CPU, EITHER), "cpu"),  # neither is made for one
        ("auto", (EITHER,), "cpu"),
        ("cpu", (GPU,), "cpu"),
        ("cuda", (EITHER,), "cuda"),
        ("cuda:1", (CPU, GPU), "cuda:1"),
    ],
)
def test_device(gpus: None, wanted: str, backends: tuple[BackendInfo, ...], name: str) -> None:
    assert device_of(wanted, backends).name == name


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "may_have_gpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of("auto", (GPU,)) is HOST
    with pytest.raises(ConfigError, match=r"engine\.device is cuda, but torch sees no GPU"):
        device_of("cuda", (GPU,))


def test_an_index_too_many(gpus: None) -> None:
    with pytest.raises(ConfigError, match=r"engine\.device is cuda:2, but torch sees 2 of them"):
        device_of("cuda:2", (GPU,))


@pytest.mark.parametrize(
    ("wanted", "config", "found"),
    [
        ("auto", {"dtype": "bfloat16"}, "bfloat16"),
        ("auto", {"torch_dtype": "float16"}, "float16"),
        ("auto", {"torch_dtype": "torch.float16"}, "float16"),
        ("auto", {"text_config": {"dtype": "float16"}}, "float16"),
        ("auto", {"dtype": "float32"}, "bfloat16"),
        ("auto", {}, "bfloat16"),
        ("float32", {"dtype": "bfloat16"}, "float32"),
    ],
)
def test_dtype(wanted: str, config: dict[str, Any], found: str) -> None:
    assert dtype_of(wanted, DEVICE, config) == found
    assert dtype_of("auto", HOST, config) == "float32"
    assert dtype_of("auto", DEVICE, config, exact=True) == "float32"


def test_a_gpu_without_bfloat16() -> None:
    older: Any = SimpleNamespace(kind="cuda", narrow="float16")
    assert dtype_of("auto", older, {"dtype": "bfloat16"}) == "float16"


def test_exact_is_float32() -> None:
    with pytest.raises(ConfigError, match=r"compute=exact keeps activations in float32, and engine\.dtype is bfloat16"):
        dtype_of("bfloat16", HOST, {}, exact=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device": "gpu"}, r"engine\.device is 'gpu'"),
        ({"device": "cuda:01"}, r"engine\.device is 'cuda:01'"),
        ({"device": None}, r"engine\.device is None"),
        ({"dtype": "half"}, r"engine\.dtype is 'half'"),
        ({"dtype": None}, r"engine\.dtype is None"),
        ({"device_share": 0}, r"engine\.device_share is 0"),
        ({"device_share": 1.5}, r"engine\.device_share is 1\.5"),
        ({"device_share": True}, r"engine\.device_share is True"),
        ({"device_share": "x"}, r"engine\.device_share is 'x'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(EngineSettings(), **settings)
