"""The way of bytes to an accelerator and back (a GPU where there is one, else torch's CPU)."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from helpers.accelerator import NAME, accelerator
from llmcore.device import HOST
from llmcore.device import accelerator as module
from llmcore.device.accelerator import Accelerator
from llmcore.graph.weight_store import WeightStore
from llmcore.hookspecs import KernelInfo
from llmcore.weights.formats import FORMATS
from llmcore.weights.mapping import MappedFile
from llmcore.weights.tensor import Tensor

DTYPES = ("float32", "float16", "bfloat16", "int32", "int8", "uint8")


@pytest.fixture
def device() -> Accelerator:
    return accelerator()


def numbers(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    return np.random.default_rng(0).integers(0, 100, shape).astype(kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 5), (33, 64, 3)])
def test_there_and_back(
    device: Accelerator, dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of the pieces is: whole ones, a part at the end, one that is too large."""
    array = numbers(shape, dtype)
    array.flags.writeable = False
    for stage in (64, 1000, 1 << 20):
        monkeypatch.setattr(module, "STAGE", stage)
        there = Accelerator(NAME).put(array)  # a new one: buffers are made for the first array
        assert there.device.type == NAME and str(there.dtype) == f"torch.{dtype}" and tuple(there.shape) == shape
        back = device.fetch(there)
        assert back.dtype == (np.float32 if dtype in ("float16", "bfloat16") else array.dtype)
        np.testing.assert_array_equal(back, array.astype(back.dtype))


def test_a_copy_is_not_the_original(device: Accelerator) -> None:
    array = np.arange(6, dtype=np.float32)
    there = device.put(array)
    array[:] = 9
    back = device.fetch(there)
    back[:] = 7
    assert device.fetch(there).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("where", ["host", "accelerator"])
def test_views_of_a_block_share_it(device: Accelerator, where: str) -> None:
    place = HOST if where == "host" else device
    block = place.zeros((256,), "uint8")
    for dtype in DTYPES:
        view = place.view(block, 64, (3, 4), dtype)
        view[...] = 1
        assert not place.fetch(block)[:64].any() and not place.fetch(block)[64 + 12 * view.itemsize :].any()
        assert place.fetch(view).tolist() == [[1, 1, 1, 1]] * 3
        block[...] = 0


@pytest.mark.parametrize("where", ["host", "accelerator"])
def test_what_the_host_writes_is_seen_when_it_is_sent(device: Accelerator, where: str) -> None:
    place = HOST if where == "host" else device
    mirror = place.mirror({"a": ((3,), "int32"), "b": ((2, 5), "float32"), "none": ((0,), "int32")})
    mirror.host["a"][...] = 1, 2, 3
    mirror.host["b"][1] = 4.5
    mirror.send()
    mirror.settle()
    assert place.fetch(mirror.there["a"]).tolist() == [1, 2, 3]
    assert place.fetch(mirror.there["b"]).tolist() == [[0] * 5, [4.5] * 5]
    mirror.host["a"][0] = 7
    assert place.fetch(mirror.there["a"]).tolist()[0] == (7 if where == "host" else 1)


def test_two_readings_may_be_on_their_way(device: Accelerator) -> None:
    array = device.zeros((4,), "int32")
    read = device.reader(array)
    array[...] = 1
    first = read(2)
    array[...] = 2
    second = read(3)
    assert first().tolist() == [1, 1] and second().tolist() == [2, 2, 2]


def test_what_is_captured_runs_again(device: Accelerator) -> None:
    x = device.zeros((2,), "float32")
    x += 1  # as segments do: once called, then recorded
    replay = device.capture(lambda: x.add_(1))
    before = device.fetch(x)[0]
    replay()
    replay()
    assert device.fetch(x).tolist() == [before + 2] * 2


def test_a_device_that_is_not_there() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        Accelerator("cuda:99")


@pytest.mark.skipif(NAME == "cpu", reason="needs a GPU: the host gives memory as it is touched")
def test_what_does_not_fit_is_a_memory_error(device: Accelerator) -> None:
    with pytest.raises(MemoryError, match=r"cuda:\d has no room for 4000\.00 GB more"):
        device.zeros((10**12,), "float32")


def test_files_do_not_stay_in_memory(tmp_path: Path) -> None:
    """Pages of the file that a weight was copied from are let go: the host holds a piece of one weight at a time."""
    size, count = 4 << 20, 12
    file = tmp_path / "weights.bin"
    file.write_bytes(np.ones(size * count // 4, np.float32).tobytes())
    mapping = MappedFile(file)
    shape = (size // 4096, 1024)
    tensors = {str(i): Tensor(str(i), shape, FORMATS["F32"], mapping, i * size) for i in range(count)}
    store = WeightStore(tensors, device=accelerator())
    most = 0
    before = resident_files()
    for name in tensors:
        there = store.operand(name, KernelInfo("linear", "made_up:linear"))
        assert store.operand(name, KernelInfo("linear", "made_up:linear")) is there
        most = max(most, resident_files() - before)
    assert most < 2 * size
    assert torch.equal(there.cpu(), torch.ones(shape))
    assert store.mapped_bytes == size * count


def resident_files() -> int:
    """Bytes of mapped files that this process has in memory."""
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10
