"""``llmcore bench against llama.cpp`` with programs that pretend to be llama.cpp's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.gguf_files import write_gguf
from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore_tools.bench import against, workloads
from llmcore_tools.bench.llama_cpp import LlamaCpp, PeerError, executable
from llmcore_tools.bench.trials import Trial
from llmcore_tools.bench.workloads import Took, Workload

BENCH = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if "-npl" in sys.argv:
    print("some chatter")
    print(json.dumps({{"pl": 2, "speed_pp": 1.0, "speed_tg": 40.0}}))
else:
    print(json.dumps([{{"build_commit": "c0ffee", "n_threads": 1, "avg_ts": 20.0, "samples_ts": [20.0]}}]))
"""
SMALL = ("--prompts", "8", "--tokens", "3", "--depths", "0,16", "--batches", "2", "--batch-depth", "5")
MakeTiny = Callable[..., TinyModel]


def program(path: Path, text: str) -> Path:
    """An executable script."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "calls"


@pytest.fixture
def bench(tmp_path: Path, log: Path) -> Path:
    return program(tmp_path / "llama-bench", BENCH.format(python=sys.executable, log=str(log)))


def calls(log: Path) -> list[list[str]]:
    """The arguments of every call."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_json(tiny_model: MakeTiny, tmp_path: Path, bench: Path, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_gguf(tiny_model("llama3"), tmp_path / "tiny.gguf").path
    flags = ["--binary", str(bench), "--batched-binary", str(bench), "--model", str(model), "--repeats", "2"]
    settings = ["backend=numba", "threads=1", "--peer-args", "-fa 1", "--json"]
    assert main(["bench", "against", "llama.cpp", *flags, *settings, *SMALL]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["suite"] == "against" and found["machine"]["model"]["file"] == "tiny.gguf"
    assert found["results"]["peer"] == {
        "name": "llama.cpp",
        "extra_arguments": ["-fa", "1"],
        "build_commit": "c0ffee",
        "n_threads": 1,
    }
    rows = found["results"]["compared"]
    assert [row["test"] for row in rows] == ["pp8", "tg3", "tg3 @ d16", "tg3 × 2 @ d5"]
    assert [row["theirs"]["samples"] for row in rows] == [[20.0] * 2] * 3 + [[40.0] * 2]
    for row in rows:
        assert row["ratio"]["of_medians"] == pytest.approx(row["ours"]["median"] / row["theirs"]["median"])
    common = ["-m", str(model), "-t", "1"]
    assert all(call[:4] == common and ("-fa" in call) for call in calls(log))
    single = ["-r", "1", "-o", "json", "-fa", "1", "-p", "0", "-n", "3"]
    batched = ["-tb", "1", "-npp", "5", "-ntg", "3", "-npl", "2", "-c", "16", "--output-format", "jsonl", "-fa", "1"]
    assert [call[4:] for call in calls(log)[3:]] == [[*single]] * 2 + [[*single, "-d", "16"]] * 2 + [batched] * 2


def test_text_without_the_batched_program(
    tiny_model: MakeTiny, tmp_path: Path, bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_gguf(tiny_model("llama3"), tmp_path / "tiny.gguf").path
    flags = [f"--binary={bench}", f"--model={model}", "--repeats=1", "backend=torch", "--only=prefill,batched"]
    assert main(["bench", "against", "llama.cpp", *flags, *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "llmcore against llama.cpp" in shown and "build c0ffee" in shown and "20.0 (20.0–20.0)" in shown
    assert "Left out: tg3 × 2 @ d5: --batched-binary was not given." in shown


def test_both_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def ours(llm: object, work: Workload, seed: int) -> Took:
        order.append("ours")
        return Took(1.0, 2.0)

    class Peer:
        def sample(self, trial: Trial) -> float:
            order.append("theirs")
            return 4.0

    monkeypatch.setattr(workloads, "run", ours)
    test = Trial("decode", Workload(1, 16))
    found = against.ratios(None, Peer(), [test], 3, 0)[test]  # type: ignore[arg-type]
    assert order == ["ours", *["ours", "theirs"] * 3], "the first of ours is to warm up"
    assert found.value == 2.0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/sh\necho no such model >&2; exit 3", "failed with exit code 3: no such model"),
        ("#!/bin/sh\nexit 1", "it says nothing"),
        ("#!/bin/sh\necho hello", "printed no JSON: 'hello"),
        ("#!/bin/sh\necho []", "printed no single result"),
        ("""#!/bin/sh\necho '[{"avg_ts": 0}]'""", "gives 0 for avg_ts"),
        ("""#!/bin/sh\necho '[{"avg_ts": "x"}]'""", "gives 'x' for avg_ts"),
        ("#!/no/such/shell\n", "cannot be run"),
    ],
)
def test_a_program_that_fails_is_told(script: str, words: str, tmp_path: Path) -> None:
    peer = LlamaCpp(program(tmp_path / "llama-bench", script), tmp_path / "m.gguf", 1)
    with pytest.raises(PeerError, match="llama-bench") as caught:
        peer.sample(Trial("prefill", Workload(8, 0)))
    assert words in str(caught.value)


def test_a_batched_program_must_print_one_result(tmp_path: Path) -> None:
    script = program(tmp_path / "llama-batched-bench", "#!/bin/sh\necho nothing")
    peer = LlamaCpp(script, tmp_path / "m.gguf", 1, batched=script)
    with pytest.raises(PeerError, match="printed 0 results in place of one"):
        peer.sample(Trial("batched", Workload(8, 4, 2)))


def test_programs_are_found_or_not(tmp_path: Path) -> None:
    there = tmp_path / "not-executable"
    there.write_text("")
    with pytest.raises(PeerError, match="cannot be executed"):
        executable(str(there), "--binary")
    with pytest.raises(PeerError, match="no such program"):
        executable("no-such-llama-bench", "--binary")
    assert executable("sh", "--binary").name == "sh"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "against what?"),
        (["lama.cpp"], "did you mean 'llama.cpp'"),
        (["llama.cpp"], "which llama-bench?"),
        (["llama.cpp", "--binary", "/nowhere/llama-bench"], "there is no such program"),
        (["llama.cpp", "--binary", "sh", "--peer-args", "'"], "--peer-args"),
        (["llama.cpp", "--model"], "--model needs a value"),
        (["llama.cpp", "--binry", "x"], "did you mean --binary"),
    ],
)
def test_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "against", *argv]) == 2
    assert words in capsys.readouterr().err


def test_safetensors_are_refused(tiny_model: MakeTiny, bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--binary", str(bench), "--model", str(tiny_model("llama3").path), "--prompts", "8", "--only", "prefill"]
    assert main(["bench", "against", "llama.cpp", "backend=torch", *flags]) == 2
    assert "is no GGUF file" in capsys.readouterr().err
