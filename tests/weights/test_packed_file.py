"""Packed files are safetensors, aligned, written whole or not at all; damage is found without reading everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llmcore.weights import packed_file
from llmcore.weights.packed_file import Unkeepable, read, write

ARRAYS = {
    "blocks rows16:1": np.random.default_rng(0).integers(0, 256, (3, 5, 288), dtype=np.uint8),
    "half": np.arange(7, dtype=np.float16),
    "brain": np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "turned": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "one": np.array(5, np.int32),
    "none": np.zeros((0, 4), np.uint8),
    'odd "name" \u00e9': np.arange(9, dtype=np.int64),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write(path, "key", ARRAYS, ARRAYS.items())
    return path


def test_comes_back_mapped_and_aligned(file: Path) -> None:
    found = read(file, "key")
    assert found is not None and list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert found[name].ctypes.data % 64 == 0 or not array.nbytes
        assert found[name].flags.c_contiguous and not found[name].flags.writeable
    assert found["blocks rows16:1"].ctypes.data % 4096 == 0


def test_other_programs_read_it(file: Path) -> None:
    from safetensors.numpy import load_file

    found = load_file(file)
    for name in ("blocks rows16:1", "half", "turned", "one"):
        assert np.array_equal(found[name], ARRAYS[name])


@pytest.mark.parametrize("chunk", [4096, 8192, 1 << 20])
def test_what_is_larger_than_a_chunk(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "CHUNK", chunk)
    arrays = {f"{i}": np.full(20_001, i, np.uint8) for i in range(30)}  # the header too is larger than some chunks
    write(tmp_path / "x", "key", arrays, arrays.items())
    found = read(tmp_path / "x", "key")
    assert found is not None and all(np.array_equal(found[name], arrays[name]) for name in arrays)


def spoil(data: bytearray, how: str) -> bytearray:
    start = 8 + int.from_bytes(data[:8], "little")
    match how:
        case "cut off":
            return data[:-1]
        case "header cut off":
            return data[:100]
        case "empty":
            return bytearray()
        case "longer":
            return data + b"x"
        case "length":
            data[7] = 255
        case "not JSON":
            data[8] = 0
        case "another object":
            data[8:start] = b'{"a": 1}'.ljust(start - 8)
        case "a list":
            data[8:start] = b"[]".ljust(start - 8)
        case "shape":
            at = data.index(b"288")
            data[at : at + 3] = b"289"
        case "lost page":
            data[start : start + 4096] = bytes(4096)
        case "bit":
            data[start] ^= 1
    return data


@pytest.mark.parametrize(
    "how",
    [
        *("cut off", "header cut off", "empty", "longer", "length", "not JSON", "another object", "a list"),
        *("shape", "lost page", "bit"),
    ],
)
def test_damage_is_found(how: str, file: Path) -> None:
    file.write_bytes(spoil(bytearray(file.read_bytes()), how))
    assert read(file, "key") is None


def test_another_key(file: Path) -> None:
    assert read(file, "yek") is None


def test_a_type_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(Unkeepable, match="complex64"):
        write(tmp_path / "x", "key", ["a"], [("a", np.zeros(3, np.complex64))])
    assert list(tmp_path.iterdir()) == []


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", np.zeros(3, np.uint8)
        raise MemoryError

    with pytest.raises(MemoryError):
        write(tmp_path / "x", "key", ["a", "b"], arrays())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_all_but_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_file, "RESERVE", 1 << 62)
    with pytest.raises(Unkeepable, match="are free"):
        write(tmp_path / "x", "key", ["a"], [("a", np.zeros(3, np.uint8))])
    assert list(tmp_path.iterdir()) == []
