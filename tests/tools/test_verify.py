"""``llmcore verify`` on tiny models: agreement is found, and so is the first block that differs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore_tools import verify

TEXT = ("--prompt", "The sea covers more than two thirds of the Earth.", "--tokens", "24")


def test_backends_agree(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_model("llama3").path)
    assert main(["verify", path, "backend=numba", "--against", "torch", "--json", *TEXT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first_divergent"] is None
    assert found["tokens"] == 24
    assert found["top1_agreement"] == 1
    assert [layer["name"] for layer in found["layers"]][-1] == "logits"
    assert abs(found["perplexity_change"]) < 1e-4


def test_transformers_agrees(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_model("qwen3").path), *TEXT]) == 0
    shown = capsys.readouterr().out
    assert "top-1 agreement  100.00%" in shown
    assert "nothing is further apart" in shown


def test_the_first_block_that_differs_is_named(
    tiny_model: Callable[..., TinyModel], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine = verify.transformers_trace

    def off(path: object, ids: object) -> object:
        trace = genuine(path, ids)  # type: ignore[arg-type]
        return {name: value + 0.1 * (name in ("model.layers.1", "logits")) for name, value in trace.items()}

    monkeypatch.setattr(verify, "transformers_trace", off)
    assert main(["verify", str(tiny_model("qwen3").path), *TEXT]) == verify.DIVERGED
    marked = [line for line in capsys.readouterr().out.splitlines() if "◀" in line]
    assert len(marked) == 1 and marked[0].startswith("model.layers.1 ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tokens", "0"], "--tokens is '0'"),
        (["--tokens", "1.5"], "--tokens is '1.5'"),
        (["--tolerance", "nan"], "--tolerance is 'nan'"),
        (["--tolerance", "x"], "--tolerance is 'x'"),
        (["--prompt", ""], "the prompt is empty"),
        (["backend=nmba"], "did you mean 'numba'"),
    ],
)
def test_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model=/nowhere", *argv]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("order", "against"), [("[torch]", "torch"), ("[numba,torch]", "numba")])
def test_a_backend_is_not_compared_with_itself(
    order: str, against: str, tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_model("llama3").path)
    assert main(["verify", path, f"backend.order={order}", "--against", against]) == 2
    assert f"the model is run by {against} already" in capsys.readouterr().err


def test_float32_is_compared_unless_the_default_is_asked_for(
    smollm2_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantized activations are a choice, not an error; whoever wants to see their effect says so."""
    path = str(smollm2_path)
    assert main(["verify", path, "backend=numba", "--against", "torch", *TEXT]) == 0
    assert "top-1 agreement  100.00%" in capsys.readouterr().out
    assert main(["verify", path, "backend=numba", "compute=auto", "--against", "torch", *TEXT]) == verify.DIVERGED


def test_other_settings(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    """The same model with a cache of another type: nearly the same, and the first block already differs."""
    argv = ["verify", str(tiny_model("llama3").path), "backend=numba", "engine.kv_dtype=int8", *TEXT]
    assert main([*argv, "--against-settings", "engine.kv_dtype=float32", "--json"]) == verify.DIVERGED
    found = json.loads(capsys.readouterr().out)
    assert found["against"] == "engine.kv_dtype=float32"
    assert found["first_divergent"] == "model.layers.0"
    assert 0 < abs(found["perplexity_change"]) < 0.05
    assert main([*argv, "--against-settings", "engine.max_rows=5, threads=1"]) == 0
    assert "against engine.max_rows=5, threads=1, 24 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("engine.kv_dtyp=int8", "did you mean 'engine.kv_dtype'"),
        ("engine=default", "is no plain value for engine"),
        ("engine.kv_dtype=int7", "is no plain value for engine.kv_dtype"),
        ("engine.kv_dtype", "is no plain value for engine.kv_dtype"),
        ("engine.kv_dtype=auto", "changes nothing"),
        ("model.ref=/elsewhere", "names another model"),
        ("engine.max_rows=0", "engine.max_rows is 0"),
        ("", "names no setting"),
    ],
)
def test_other_settings_that_are_none(settings: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "model=/nowhere", "--against-settings", settings]) == 2
    assert words in capsys.readouterr().err


def test_one_thing_to_compare_with(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["verify", "model=/nowhere", "--against", "torch", "--against-settings", "engine.kv_dtype=int8"]
    assert main(argv) == 2
    assert "--against and --against-settings exclude each other" in capsys.readouterr().err


def test_against_an_unknown_backend(tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tiny_model("llama3").path), "--against", "trch", *TEXT]) == 2
    assert "did you mean 'torch'" in capsys.readouterr().err
