"""How products of few tokens are cut: by the device's memory, and by what a search asks for."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from llmcore_triton import configs, device, linear_plan
from llmcore_triton.linear import FINISH_WARPS, finish_block
from llmcore_triton.linear_plan import plan


@pytest.mark.parametrize("wide", [16, 32])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_tiles_fit_smaller_devices(bits: int, wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 99 KiB, as most that are no data centre's: float32 tokens take twice the room."""
    small = device.Target("sm_89", 58, 101376)
    monkeypatch.setattr(linear_plan, "target", lambda: small)
    form = {4: 1, 8: 3, 16: 0}[bits]
    for tokens, rows, sides in product((16, 32, 64), (512, 4096, 18944), (1, 2)):
        chosen = linear_plan._dot(form, bits, wide, tokens, rows, sides)
        inner, outer = chosen.meta["BK"], chosen.meta["BN"] * sides
        assert linear_plan._shared(form, bits, wide, tokens, outer, inner, chosen.num_stages) <= 0.9 * small.shared


def test_a_search_is_asked_each_time() -> None:
    """Plans are remembered, but not what a search has tried."""
    x, weight = torch.empty(1, 2048), torch.empty(40, 2048)
    found = []
    for rows in (2, 4):
        with configs.answering(lambda _, __, default, rows=rows: replace(default, meta={**default.meta, "BN": rows})):
            found.append(plan(x, weight, 40).config.meta["BN"])
    assert found == [2, 4] and plan(x, weight, 40).config.meta["BN"] == plan(x, weight, 40).config.meta["BN"]


@pytest.mark.parametrize("device_name", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("tokens", [1, 16, 64])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_threads_load_16_bytes_each(device_name: str, tokens: int, bits: int) -> None:
    """Of a tile of weights, whatever the sizes of the matrix and of the device's warps."""
    form = {4: 1, 8: 3, 16: 0}[bits]
    with device.pretend(device_name) as target:
        for rows, columns, sides in product((64, 512, 4096, 18944), (2048, 3584, 14336), (1, 2)):
            config = linear_plan._plan(form, bits, 16, tokens, rows, columns, True, sides).config
            threads = config.num_warps * target.warp
            assert config.meta["BN"] * config.meta["BK"] * bits // 8 >= 16 * threads or config.num_warps == 1
            assert config.num_warps <= (8 if sides > 1 else 4)
        assert finish_block() * 4 == 16 * FINISH_WARPS * target.warp
