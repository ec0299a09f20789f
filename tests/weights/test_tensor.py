"""Tensors are views of the mapping; what they cannot give is an error that says why."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llmcore.errors import CheckpointError
from llmcore.weights import FORMATS, Tensor, check_finite, quantize
from llmcore.weights.mapping import MappedFile

VALUES = np.linspace(-2, 2, 64, dtype=np.float32).reshape(2, 32)


def stored(tmp_path: Path, form: str, values: np.ndarray = VALUES, offset: int = 12) -> Tensor:
    file = tmp_path / f"{form}.bin"
    file.write_bytes(bytes(offset) + quantize(values, form).tobytes() + b"more")
    return Tensor("layer.weight", values.shape, FORMATS[form], MappedFile(file), offset)


@pytest.mark.parametrize(("form", "dtype"), [("F32", np.float32), ("F16", np.float16), ("BF16", ml_dtypes.bfloat16)])
def test_plain_tensors_are_read_only_views_of_the_file(form: str, dtype: type, tmp_path: Path) -> None:
    tensor = stored(tmp_path, form)
    array = tensor.numpy()
    assert array.shape == (2, 32) and array.dtype == dtype
    assert np.array_equal(array, VALUES.astype(dtype))
    assert not array.flags.writeable and not array.flags.owndata
    assert array.ctypes.data == tensor.mapping.bytes.ctypes.data + 12
    with pytest.raises(ValueError, match="read-only"):
        tensor.raw()[0] = 1


def test_dequantizing_makes_a_private_copy(tmp_path: Path) -> None:
    for form in ("F32", "Q8_0"):
        tensor = stored(tmp_path, form)
        copy = tensor.dequantize()
        copy[:] = 0
        assert copy.dtype == np.float32 and np.abs(tensor.dequantize() - VALUES).max() < 0.02


def test_a_tensor_at_an_odd_offset_reads_right(tmp_path: Path) -> None:
    for form in ("F32", "F16", "BF16", "Q4_1"):
        tensor = stored(tmp_path, form, offset=13)
        assert np.abs(tensor.dequantize() - VALUES).max() < 0.15
        tensor.check_finite()
    assert np.array_equal(stored(tmp_path, "F32", offset=13).numpy(), VALUES)


def test_quantized_tensors_have_no_numpy_type(tmp_path: Path) -> None:
    tensor = stored(tmp_path, "Q4_1")
    assert tensor.nbytes == tensor.raw().size == 40
    with pytest.raises(CheckpointError, match=r"'layer.weight': is stored as Q4_1.*\(at byte 12\)\n.*dequantize"):
        tensor.numpy()


def test_integers_are_not_dequantized(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(np.arange(4, dtype=np.int32).tobytes())
    tensor = Tensor("ids", (4,), FORMATS["I32"], MappedFile(file), 0)
    assert tensor.numpy().tolist() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match="'ids': is stored as I32"):
        tensor.dequantize()


def test_a_non_finite_weight_is_named_by_element_and_byte(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1, 3] = np.nan
    tensor = stored(tmp_path, "F16", values)
    good = stored(tmp_path, "F32")
    with pytest.raises(CheckpointError, match=r"element \[1, 3\] is not finite") as caught:
        check_finite([good, tensor])
    assert (caught.value.file, caught.value.tensor) == (tensor.file, "layer.weight")
    assert caught.value.offset == 12 + (32 + 3) * 2


def test_a_non_finite_scale_is_named_by_its_block(tmp_path: Path) -> None:
    tensor = stored(tmp_path, "Q4_1")
    raw = bytearray(tensor.file.read_bytes())
    raw[12 + 20 + 2 : 12 + 20 + 4] = np.array([-np.inf], np.float16).tobytes()  # the second block's minimum
    tensor.file.write_bytes(raw)
    spoilt = Tensor("w", (2, 32), FORMATS["Q4_1"], MappedFile(tensor.file), 12)
    with pytest.raises(CheckpointError, match=r"scale of the block at element \[1, 0\]") as caught:
        spoilt.check_finite()
    assert caught.value.offset == 12 + 20 + 2


def test_closing_ends_the_lending_but_not_the_loans(tmp_path: Path) -> None:
    tensor = stored(tmp_path, "F32")
    array = tensor.numpy()
    tensor.mapping.close()
    gc.collect()
    assert np.array_equal(array, VALUES)
    with pytest.raises(CheckpointError, match="closed"):
        tensor.raw()
    tensor.mapping.close()  # twice does no harm


def test_only_regular_files_are_mapped(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            MappedFile(path)
