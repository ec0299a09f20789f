"""Decoders and encoders against the ``gguf`` package, bit for bit, and the finiteness check against brute force."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.errors import CheckpointError
from llmcore.weights import FORMATS, TensorFormat, quantize
from llmcore.weights.formats import DECODE_CHUNK

COMPUTED = [name for name, form in FORMATS.items() if form.decode is not None]
ENCODED = [name for name in COMPUTED if FORMATS[name].encode is not None]
QUANTIZED_ENCODED = [name for name in ENCODED if FORMATS[name].quantized]


def theirs(raw: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]).astype(np.float32).reshape(-1)


def assert_same_bits(ours: np.ndarray, other: np.ndarray) -> None:
    assert ours.dtype == other.dtype == np.float32
    same = (ours.view(np.uint32) == other.view(np.uint32)) | (np.isnan(ours) & np.isnan(other))
    assert same.all(), f"{(~same).sum()} of {same.size} differ, first at {int((~same).argmax())}"


def random_blocks(form: TensorFormat, blocks: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (blocks, form.block_bytes), dtype=np.uint8)


def test_every_format_of_the_design_is_there() -> None:
    wanted = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
    assert wanted == COMPUTED


@pytest.mark.parametrize("name", COMPUTED)
def test_block_sizes_are_those_of_ggml(name: str) -> None:
    sizes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert (FORMATS[name].block, FORMATS[name].block_bytes) == sizes


@pytest.mark.parametrize("name", COMPUTED)
def test_random_bytes_decode_as_in_the_gguf_package(name: str) -> None:
    form = FORMATS[name]
    raw = random_blocks(form, 3000)
    with np.errstate(all="ignore"):
        ours = form.dequantize(raw, 3000 * form.block)
    assert_same_bits(ours, theirs(raw, name))


@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q6_K"])
def test_decoding_in_chunks_changes_nothing(name: str) -> None:
    form = FORMATS[name]
    blocks = DECODE_CHUNK // form.block + 3
    raw = random_blocks(form, blocks)
    with np.errstate(all="ignore"):
        assert_same_bits(form.dequantize(raw, blocks * form.block), theirs(raw, name))


@pytest.mark.parametrize("name", QUANTIZED_ENCODED)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_encoding_agrees_with_the_gguf_package(name: str, scale: float) -> None:
    values = (np.random.default_rng(1).standard_normal((200, 512)) * scale).astype(np.float32)
    values[0] = 0
    values[1] = 2.5 * scale
    values[2] = np.round(values[2] / scale * 8) / 8 * scale  # many ties
    ours = quantize(values, name)
    assert np.array_equal(ours, gguf.quants.quantize(values, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", QUANTIZED_ENCODED)
def test_the_error_of_a_round_trip_is_at_most_a_step(name: str) -> None:
    form = FORMATS[name]
    values = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    back = form.dequantize(quantize(values, form), values.size).reshape(values.shape)
    blocks, error = values.reshape(-1, 32), np.abs(back - values).reshape(-1, 32)
    steps = {"Q8_0": 254, "Q4_0": 16, "Q4_1": 15, "Q5_0": 32, "Q5_1": 31}[name]
    spread = 2 * np.abs(blocks).max(axis=1) if name in ("Q8_0", "Q4_0", "Q5_0") else np.ptp(blocks, axis=1)
    allowed = spread / steps * (1.01 if name in ("Q4_0", "Q5_0") else 0.51)  # one end of the symmetric range clips
    assert (error.max(axis=1) <= allowed + 2e-3).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_formats_encode_what_they_decode(name: str) -> None:
    form = FORMATS[name]
    values = np.random.default_rng(3).standard_normal((4, 7)).astype(np.float32)
    raw = quantize(values, name)
    assert raw.shape == (4, 7 * form.block_bytes)
    once = form.dequantize(raw, 28).reshape(4, 7)
    np.testing.assert_allclose(once, values, rtol={"F32": 0, "F16": 2**-11, "BF16": 2**-8}[name])
    assert np.array_equal(quantize(once, name), raw)


def test_quantize_refuses_what_it_cannot_do() -> None:
    with pytest.raises(CheckpointError, match="not whole blocks of 32"):
        quantize(np.zeros((2, 33)), "Q8_0")
    with pytest.raises(CheckpointError, match="no quantizer for Q4_K"):
        quantize(np.zeros((2, 256)), "Q4_K")
    with pytest.raises(CheckpointError, match=r"there is no tensor format 'Q4_2'\n.*'Q4_[01]'"):
        quantize(np.zeros((2, 32)), "Q4_2")


def test_dequantize_refuses_storage_formats_and_wrong_lengths() -> None:
    with pytest.raises(CheckpointError, match="I32 is not one that we compute with"):
        FORMATS["I32"].dequantize(np.zeros(4, np.uint8), 1)
    with pytest.raises(CheckpointError, match="35 bytes are not 32 elements"):
        FORMATS["Q8_0"].dequantize(np.zeros(35, np.uint8), 32)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(COMPUTED), seed=st.integers(0, 1 << 30), spoil=st.booleans())
def test_the_finiteness_check_finds_the_first_bad_number(name: str, seed: int, spoil: bool) -> None:
    form = FORMATS[name]
    rng = np.random.default_rng(seed)
    raw = random_blocks(form, 40, seed)
    width = 4 if name == "F32" else 2
    limit = 0x7F800000 if name == "F32" else 0x7F80 if name == "BF16" else 0x7C00
    numbers = np.stack([raw[:, at : at + width].copy().view(f"<u{width}")[:, 0] for at, _ in form.floats], axis=1)
    finite = numbers & ~np.array(limit, numbers.dtype)  # no exponent bit: zero or subnormal
    if spoil:
        finite[rng.integers(40), rng.integers(len(form.floats))] |= limit  # infinite, or NaN by its other bits
    for column, (at, _) in enumerate(form.floats):
        raw[:, at : at + width] = finite[:, column : column + 1].copy().view(np.uint8)
    bad = (finite & limit) == limit
    found = form.first_non_finite(raw.reshape(-1))
    if not spoil:
        assert found is None
    else:
        block, column = np.argwhere(bad)[0]
        assert found == (block * form.block, block * form.block_bytes + form.floats[column][0])


def test_the_largest_finite_numbers_pass() -> None:
    for name, dtype in (("F32", np.float32), ("F16", np.float16)):
        ends = np.array([np.finfo(dtype).max, np.finfo(dtype).min, 0.0, -0.0], dtype)
        assert FORMATS[name].first_non_finite(ends.view(np.uint8)) is None
        for bad in (np.inf, -np.inf, np.nan, -np.nan):
            spoilt = np.append(ends, np.array([bad], dtype))
            assert FORMATS[name].first_non_finite(spoilt.view(np.uint8)) == (4, 4 * spoilt.itemsize)


def test_an_empty_tensor_is_finite() -> None:
    assert FORMATS["F16"].first_non_finite(np.empty(0, np.uint8)) is None
