"""``llmcore bench kv``: sizes are the layouts', perplexities the logits'; and what int8 may cost at most."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.engine.load import EngineSettings
from llmcore.engine.sizes import Sizes
from llmcore.llm import LLM
from llmcore.verify import perplexity, surprises, surprises_in_windows
from llmcore_numba import kv_layout
from llmcore_tools.bench import kv
from llmcore_tools.bench.kv import Cache

CONSTITUTION = Path(__file__).parents[2] / "data" / "us_constitution.txt"  # public domain
MakeTiny = Callable[..., TinyModel]


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("page_size", [1, 16, 24, 64])
def test_capacity_of_int8(head_dim: int, page_size: int) -> None:
    """Eight elements: 16 bytes of float16, or 8 and a scale of 2."""
    half, small, full = (
        int(np.prod(layout.page_shape(3, head_dim, page_size))) * layout.numpy.itemsize
        for layout in (kv_layout.BFLOAT16, kv_layout.INT8, kv_layout.FLOAT32)
    )
    assert (half / small, full / small) == (1.6, 3.2)
    if page_size % kv_layout.BLOCK == 0 and head_dim % 16 == 0:
        assert half == 2 * 3 * head_dim * page_size * 2, "nothing is padding"


def test_pages_that_fit_a_budget() -> None:
    """Where memory bounds the engine's pages, it takes 1.6 times as many of int8."""
    page_bytes = {
        layout.name: 30 * int(np.prod(layout.page_shape(3, 64, 16))) * layout.numpy.itemsize
        for layout in (kv_layout.BFLOAT16, kv_layout.INT8)
    }
    sizes = Sizes(512, 1000, 64, 64, 16, 0, kv_budget=100 * page_bytes["numba-bf16"])
    assert [sizes.with_pages(each).pages for each in page_bytes.values()] == [100, 160]


def test_windows(tiny_model: MakeTiny) -> None:
    """Each begins anew; a text's last one may be short, and a single token that is left over counts nothing."""
    model = tiny_model("llama3")
    llm = LLM(str(model.path), backend="numba", threads=1)
    ids = model.ids(41)
    parts = [surprises(llm.logits(part), part) for part in (ids[:16], ids[16:32], ids[32:])]
    np.testing.assert_array_equal(surprises_in_windows(llm, ids, 16), np.concatenate(parts))
    assert [len(part) for part in parts] == [15, 15, 8]
    assert np.exp(surprises_in_windows(llm, ids, 41).mean()) == perplexity(llm.logits(ids), ids)
    assert len(surprises_in_windows(llm, ids, 20)) == 38
    assert len(surprises_in_windows(llm, ids[:1], 8)) == 0 and np.isnan(perplexity(llm.logits(ids[:1]), ids[:1]))
    llm.close()


def test_changes_and_capacities() -> None:
    likely = {"float32": [2.0, 3.0], "bfloat16": [2.0, 3.02], "int8": [1.9, 2.9]}
    bytes_ = {"float32": (16, 320), "bfloat16": (16, 160), "int8": (32, 200)}
    found = {name: Cache("", *bytes_[name], {"x": np.array(likely[name])}) for name in likely}
    assert found["float32"].perplexity("x") == pytest.approx(np.exp(2.5))
    assert kv.change(found, "bfloat16", "x") == pytest.approx((np.expm1(0.01), 0.01 / 2**0.5))
    assert kv.change(found, "int8", "x") == pytest.approx((np.expm1(-0.1), 0))
    assert [kv.capacity(found, name) for name in found] == [0.5, 1, 1.6]
    assert (found["int8"].pages(1000), found["int8"].tokens(1000)) == (5, 160)


def test_json(tiny_model: MakeTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file in files:
        file.write_text(CONSTITUTION.read_text()[: 300 if file.stem == "one" else 50])
    model = tiny_model("llama3")
    argv = ["bench", "kv", str(model.path), "backend=numba", "threads=1", "--window", "32", "--tokens", "100"]
    assert main([*argv, "--texts", ",".join(map(str, files)), "--budget", "1", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    results = found["results"]
    assert found["suite"] == "kv" and results["window"] == 32 and results["tokens"]["one"] == 100
    kinds = results["kv_dtypes"]
    token = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads of 16 elements
    assert [kinds[name]["token_bytes"] for name in ("float32", "bfloat16", "int8")] == [token, token / 2, token / 3.2]
    assert [kinds[name]["tokens"] for name in kinds] == [(1 << 20) // (16 * b) * 16 for b in (768, 384, 240)]
    assert kinds["int8"]["capacity_over_bfloat16"] == 1.6
    assert list(kinds["float32"]["perplexity"]) == ["one", "two", "all"]
    assert all((each["change"], each["error"]) == (0, 0) for each in kinds["float32"]["perplexity"].values())
    assert all(0 < abs(kinds[name]["perplexity"]["one"]["change"]) < 0.05 for name in ("bfloat16", "int8"))
    llm = LLM(str(model.path), backend="numba", threads=1, compute="exact", engine=EngineSettings(kv_dtype="int8"))
    ids = llm.encode(files[0].read_text())[:100]
    assert kinds["int8"]["perplexity"]["one"]["value"] == np.exp(surprises_in_windows(llm, ids, 32).mean())
    llm.close()


def test_text(tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "kv", str(tiny_model("llama3").path), "backend=numba", "threads=1"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "numba-int8-g8" in shown and "1.60" in shown and "Perplexity" not in shown
    texts = ["--texts", str(CONSTITUTION), "--window", "16", "--tokens", "20", "--markdown"]
    assert main([*argv, *texts]) == 0
    assert "| engine.kv_dtype | us_constitution | change |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--texts", "/nowhere.txt"], "/nowhere.txt"),
        (["--texts", "/a/x.txt,/b/x.txt"], "two files alike"),
        (["--window", "1"], "--window is '1'"),
        (["--budget", "0"], "--budget is '0'"),
    ],
)
def test_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kv", "model=/nowhere", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_window_beyond_the_context(tiny_model: MakeTiny, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "kv", str(tiny_model("llama3").path), "backend=numba", "threads=1"]
    assert main([*argv, "--texts", str(CONSTITUTION)]) == 2
    assert "--window is 1024, and the context 64" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("compute", "counted"), [("exact", ("constitution", "lee", "all")), ("auto", ("lee", "all"))])
def test_int8_costs_no_more_than_half_a_per_cent(
    smollm2_path: Path, lee_path: Path, compute: str, counted: tuple[str, ...]
) -> None:
    """Of the perplexity with keys and values in float32.

    The constitution has 1,200 tokens: with activations of 8 bits, its change has a standard error of 0.3 %, so it says
    nothing alone.
    """
    texts = {"constitution": CONSTITUTION.read_text(), "lee": lee_path.read_text()}
    found = {}
    for name in ("float32", "bfloat16", "int8"):
        sizes = EngineSettings(kv_dtype=name)
        llm = LLM(str(smollm2_path), backend="numba", compute=compute, threads=2, engine=sizes)
        found[name] = kv.measure(llm, texts, 4096, 1024)
        llm.close()
    assert kv.capacity(found, "int8") == 1.6
    for name in ("bfloat16", "int8"):
        for text in found[name].surprises:
            change, error = kv.change(found, name, text)
            print(f"{compute}, {text}, {name}: {found[name].perplexity(text):.4f} ({change:+.3%} ± {error:.3%})")
            assert change <= 0.005 or text not in counted
