"""Memory under several views, without copies."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from llmcore.device import HOST
from llmcore.device.host import aligned, as_torch
from llmcore.dims import R, T
from llmcore.errors import RegistryError
from llmcore.registry.operand import Operand


def test_views_share_memory() -> None:
    array = np.zeros((4, 3), np.float32)
    operand = Operand("x", array, (T, 3))
    operand.view("torch")[1, 2] = 7
    assert array[1, 2] == 7
    assert operand.view("numpy") is array
    assert operand.view("torch").data_ptr() == operand.address == array.ctypes.data


def test_leading_dimension() -> None:
    array = np.zeros((4, 3), np.float32)
    assert Operand("x", array, (R, 3)).leading == "R"
    assert Operand("weight", array, (4, 3)).leading is None
    assert Operand("state", array, ()).leading is None


@pytest.mark.filterwarnings("error")
def test_read_only_and_bfloat16_memory_become_tensors() -> None:
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    array.flags.writeable = False
    tensor = as_torch(array)
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [0, 1, 2, 3]
    assert tensor.data_ptr() == array.ctypes.data
    assert as_torch(np.empty((0, 5), np.int32)).shape == (0, 5)


@pytest.mark.parametrize("alignment", [64, 4096])
@pytest.mark.parametrize("nbytes", [1, 1000])
def test_aligned_memory(nbytes: int, alignment: int) -> None:
    block = aligned(nbytes, alignment)
    assert block.ctypes.data % alignment == 0
    assert block.nbytes == nbytes
    assert not block.any()
    assert aligned(0).nbytes == 0


def test_an_accelerator_is_seen_by_torch_alone() -> None:
    tensor = torch.zeros(4, 3)
    operand = Operand("x", tensor, (T, 3))
    assert operand.view("torch") is tensor and operand.address == tensor.data_ptr()
    with pytest.raises(RegistryError, match=r"x lies on cpu, which numpy cannot see"):
        operand.view("numpy")


def test_view_of_a_block() -> None:
    block = aligned(400)
    view = HOST.view(block, 64, (3, 5), "float32")
    view[...] = 1
    assert view.shape == (3, 5)
    assert block.view(np.float32).nonzero()[0].tolist() == list(range(16, 31))
