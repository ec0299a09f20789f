"""Weights stay mapped unless a kernel asks for something else, which is made once."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import KernelInfo
from llmcore.weights.formats import FORMATS
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor

READS_FILE = KernelInfo("linear", "made_up:linear")


def packing(function: str, layout: tuple[str, int] | None = ("doubled", 1)) -> KernelInfo:
    return KernelInfo("linear", "made_up:linear", pack=f"packers:{function}", layout=layout)


@pytest.fixture(autouse=True)
def packers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that :func:`packing` names; it counts what it makes."""
    module: Any = ModuleType("packers")
    module.made = []

    def doubled(tensor: Tensor) -> np.ndarray:
        module.made.append(tensor.name)
        return 2 * tensor.dequantize()

    module.doubled = doubled
    module.transposed = lambda tensor: tensor.dequantize().T
    monkeypatch.setitem(sys.modules, "packers", module)
    return module  # type: ignore[no-any-return]


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    """``f32`` [3, 4], ``bf16`` [2, 4], ``norm`` [4] in bfloat16, ``q8`` [2, 3, 32] in blocks."""
    parts: dict[str, tuple[str, tuple[int, ...], bytes]] = {
        "f32": ("F32", (3, 4), np.arange(12, dtype=np.float32).tobytes()),
        "bf16": ("BF16", (2, 4), np.arange(8).astype(ml_dtypes.bfloat16).tobytes()),
        "norm": ("BF16", (4,), np.arange(4).astype(ml_dtypes.bfloat16).tobytes()),
        "q8": ("Q8_0", (2, 3, 32), bytes(range(204))),
    }
    file = tmp_path / "weights.bin"
    file.write_bytes(b"".join(data for _, _, data in parts.values()))
    mapping, offset, tensors = MappedFile(file), 0, {}
    for name, (kind, shape, data) in parts.items():
        tensors[name] = Tensor(name, shape, FORMATS[kind], mapping, offset)
        offset += len(data)
    return WeightStore(tensors)


def test_plain_weights_are_the_mapping(store: WeightStore) -> None:
    for name in ("f32", "bf16"):
        array = store.operand(name, READS_FILE)
        assert np.shares_memory(array, store.tensors[name].raw()) and not array.flags.writeable
        assert array.shape == store.tensors[name].shape
    assert store.mapped_bytes == 48 + 16 and store.repacked_bytes == 0


def test_what_is_mapped_is_read_before_it_is_needed(store: WeightStore, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    raw = Tensor.raw
    monkeypatch.setattr(Tensor, "raw", lambda tensor: read.append(tensor.name) or raw(tensor))
    store.read_mapped()
    assert read == []
    store.operand("bf16", READS_FILE)
    store.operand("q8", packing("doubled"))
    read.clear()
    store.read_mapped()
    assert read == ["bf16"], "what was repacked is not read from the file again"


def test_blocks_are_rows_of_bytes(store: WeightStore) -> None:
    array = store.operand("q8", READS_FILE)
    assert array.shape == (6, 34) and array.dtype == np.uint8
    assert np.shares_memory(array, store.tensors["q8"].raw())
    assert store.mapped_bytes == 204


def test_float32_of_float32_is_the_mapping(store: WeightStore) -> None:
    array = store.float32("f32")
    assert np.shares_memory(array, store.tensors["f32"].raw()) and store.repacked_bytes == 0


def test_float32_of_others_is_made_once(store: WeightStore) -> None:
    array = store.float32("norm")
    assert array.dtype == np.float32 and array.tolist() == [0, 1, 2, 3]
    assert store.float32("norm") is array
    assert (store.repacked_bytes, store.mapped_bytes) == (16, 0)


def test_repack_is_made_once_for_a_layout(store: WeightStore, packers: Any) -> None:
    """A tied table, read by two kernels of one layout, is packed for both."""
    first = store.operand("f32", packing("doubled"))
    assert first[2, 3] == 22 and store.operand("f32", packing("doubled")) is first
    assert packers.made == ["f32"] and store.repacked_bytes == 48 and store.mapped_bytes == 0


def test_layouts_and_versions_are_kept_apart(store: WeightStore, packers: Any) -> None:
    one = store.operand("f32", packing("doubled", ("doubled", 1)))
    two = store.operand("f32", packing("doubled", ("doubled", 2)))
    other = store.operand("f32", packing("transposed", ("transposed", 1)))
    assert one is not two and packers.made == ["f32", "f32"] and other.shape == (4, 3)


def test_repacks_are_contiguous(store: WeightStore) -> None:
    """Native kernels get an address and no strides."""
    assert store.operand("f32", packing("transposed", ("transposed", 1))).flags.c_contiguous
    assert store.operand("f32", packing("transposed", None)).flags.c_contiguous


def test_format(store: WeightStore) -> None:
    assert [store.format(name) for name in ("f32", "bf16", "q8")] == ["F32", "BF16", "Q8_0"]
