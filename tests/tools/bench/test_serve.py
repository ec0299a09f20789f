"""``llmcore bench serve`` from the command line, on a server that plays a script."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.stub_server import Reply, stub_server
from llmcore.cli.main import main
from llmcore_tools.bench import serve_plot
from llmcore_tools.load.records import Record

FAST = Reply((0.002,) * 3, usage=(10, 3))  # apart, so that no gap is 0
SMALL = ("--requests", "6", "--concurrency", "2", "--warmup", "1", "--output-tokens", "4")


def serve(url: str, *flags: str) -> int:
    """The exit code."""
    return main(["bench", "serve", "--url", url, *flags])


def test_text_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    slo = ("--slo-ttft", "60000", "--slo-tpot", "60000")
    with stub_server(lambda index, body: FAST) as stub:
        assert serve(stub.url, *SMALL, *slo, "--json", str(file), "--ignore-eos") == 0
    shown = capsys.readouterr().out
    for words in (stub.url, "time to first token (TTFT)", "goodput", "load tool, % of a core", "end tokens ignored"):
        assert words in shown
    assert "No usage" not in shown and "Errors" not in shown and "threads" not in shown
    assert len(stub.bodies) == 7, "the one to warm up does not count"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    results = found["results"]
    assert (found["suite"], results["requests"], results["completed"]) == ("serve", 6, 6)
    assert (results["output_tokens"], results["prompt_tokens"], results["tokens_counted_by"]) == (18, 60, {"usage": 6})
    assert results["goodput"]["share"] == 1.0 and results["itl_ms"]["count"] == 12
    assert results["output_tokens_per_s"] == pytest.approx(18 / results["duration_s"])
    assert [each["outcome"] for each in results["each"]] == ["ok"] * 6
    assert {body["model"] for body in stub.bodies} == {"stub"}, "the first that the server lists"


def test_errors_and_missing_usage_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    limited = Reply(status="429 Too Many Requests", headers=["Retry-After: 7"], body=b"slow down")

    def script(index: int, body: dict[str, Any]) -> Reply:
        return limited if index % 3 == 0 else Reply((0.0,) * 3)

    with stub_server(script) as stub:
        assert serve(stub.url, "--requests", "6", "--warmup", "0", "--markdown") == 0
    shown = capsys.readouterr().out
    assert "| 429 | 2 | 7 | slow down |" in shown and "| failed | 2 |" in shown and "| complete | 4 |" in shown
    assert "No usage in 4 answers: their output tokens are chunks" in shown and "there is no total" in shown
    assert "total tokens/s" not in shown


def test_disconnects_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with stub_server(lambda index, body: Reply((0.01,) * 30, usage=(1, 30))) as stub:
        flags = ("--requests", "8", "--warmup", "0", "--output-tokens", "30", "--disconnect", "0.5", "--markdown")
        assert serve(stub.url, *flags) == 0
    shown = capsys.readouterr().out
    assert "| hung up on | 4 |" in shown and "| complete | 4 |" in shown and "Errors" not in shown
    assert stub.lost == 4


def test_a_file_and_completions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a", "max_tokens": 2}\n{"prompt": "b"}\n')
    with stub_server(lambda index, body: FAST) as stub:
        flags = ("--prompts", str(prompts), "--endpoint", "completions", "--output-tokens", "5", "--model", "m")
        assert serve(stub.url, *flags, "--warmup", "0", "--rate", "1000", "--seed", "3") == 0
    assert sorted((body["prompt"], body["max_tokens"]) for body in stub.bodies) == [("a", 2), ("b", 5)]
    assert {body["model"] for body in stub.bodies} == {"m"}
    assert "2 lines of a file" in capsys.readouterr().out


def test_prompts_in_tokens_by_the_servers_count(capsys: pytest.CaptureFixture[str]) -> None:
    def script(index: int, body: dict[str, Any]) -> Reply:
        words = len(body["messages"][0]["content"].split())
        counted = json.dumps({"prompt_tokens": 20 + 2 * words, "completion_tokens": 1})
        if not body["stream"]:
            return Reply(body=f'{{"choices": [{{}}], "usage": {counted}}}'.encode())
        return Reply(usage=(20 + 2 * words, 1))

    with stub_server(script) as stub:
        assert serve(stub.url, "--requests", "2", "--warmup", "0", "--prompt-tokens", "120") == 0
        assert "2.00 tokens a word and 20.0 around them" in capsys.readouterr().out
        assert [len(body["messages"][0]["content"].split()) for body in stub.bodies[2:]] == [50, 50]
        assert serve(stub.url, "--prompt-tokens", "5..9") == 2
        assert "a prompt of one word has 22 tokens here" in capsys.readouterr().err
    with stub_server(lambda index, body: Reply(body=b'{"choices": [{}]}')) as stub:
        assert serve(stub.url, "--prompt-tokens", "120") == 2
        assert "its answers have no usage" in capsys.readouterr().err


def test_against_takes_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def named(name: str) -> Callable[[int, dict[str, Any]], Reply]:
        def script(index: int, body: dict[str, Any]) -> Reply:
            order.append(name)
            return FAST

        return script

    file = tmp_path / "found.json"
    with stub_server(named("A")) as ours, stub_server(named("B")) as theirs:
        flags = ("--against", theirs.url, "--repeats", "2", "--json", str(file))
        assert serve(ours.url, *SMALL, *flags) == 0
    assert "".join(order) == "A" * 7 + "B" * 7 + "A" * 6 + "B" * 6, "each warms up once"
    prompts = [[body["messages"][0]["content"] for body in stub.bodies] for stub in (ours, theirs)]
    assert Counter(prompts[0]) == Counter(prompts[1]) and len(set(prompts[0])) == 13, "new ones in each run"
    shown = capsys.readouterr().out
    assert "TTFT P99, ms" in shown and ours.url in shown and theirs.url in shown
    compared = json.loads(file.read_text(encoding="utf-8"))["results"]["compared"]
    assert list(compared) == ["output tokens/s", "TTFT P50, ms", "TTFT P99, ms", "ITL P99, ms"]
    for row in compared.values():
        assert row["ratio"]["of_medians"] == pytest.approx(row["ours"]["median"] / row["theirs"]["median"])


def test_against_a_server_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    failing = Reply(status="500 Oops", body=b"no")
    with stub_server(lambda index, body: FAST) as ours, stub_server(lambda index, body: failing) as theirs:
        assert serve(ours.url, *SMALL, "--against", theirs.url) == 2
        assert "answered none of 1 requests to warm up: 500: no" in capsys.readouterr().err
        flags = ("--against", theirs.url, "--requests", "2", "--warmup", "0", "--repeats", "1")
        assert serve(ours.url, *flags) == 2
    assert "there is nothing to compare: ours: 2 of 2 answered; theirs: 0 of 2" in capsys.readouterr().err


def test_when_nothing_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with stub_server(lambda index, body: Reply(status="503 Busy", body=b"")) as stub:
        url = stub.url
        assert serve(url, "--requests", "2", "--warmup", "0") == 1
        assert "503" in capsys.readouterr().out
    assert serve(url, "--requests", "2") == 2
    assert f"{url}: " in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"load.{suffix}"
    with stub_server(lambda index, body: FAST) as stub:
        assert serve(stub.url, *SMALL, "--plot", str(path)) == 0
    assert path.stat().st_size > 1000
    serve_plot.draw(path, "failures alone", [Record(0.0, 0.0, 1.0, "500")])
    serve_plot.draw(path, "nothing", [])


def test_what_is_drawn() -> None:
    record = Record(2.0, 2.0, 3.0, "ok", (2.5, 2.75), 1, 3, "usage")
    assert serve_plot.series([record, Record(2.0, 2.0, 3.0, "500")], 1.0) == {
        "TTFT": [(1.0, 500.0)],
        "TPOT": [(1.0, 125.0)],
        "E2E": [(1.0, 1000.0)],
        "ITL": [(1.0, 250.0)],
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "which server?"),
        (["--url", "nowhere"], "no address of a server"),
        (["--url", "http://x", "--rate", "0"], "--rate is '0'"),
        (["--url", "http://x", "--rate", "1", "--concurrency", "2"], "exclude each other"),
        (["--url", "http://x", "--prompt-words", "9..3"], "--prompt-words is '9..3'"),
        (["--url", "http://x", "--prompt-words", "3", "--prompt-tokens", "3"], "exclude each other"),
        (["--url", "http://x", "--output-tokens", "0"], "--output-tokens is '0'"),
        (["--url", "http://x", "--dataset", "file"], "which file?"),
        (["--url", "http://x", "--dataset", "sharegpt"], "--dataset is 'sharegpt'"),
        (["--url", "http://x", "--dataset", "random", "--prompts", "f"], "is not of random prompts"),
        (["--url", "http://x", "--prompts", "f", "--shared-prefix", "3"], "--shared-prefix is of random prompts"),
        (["--url", "http://x", "--prompts", "/no/such"], "/no/such"),
        (["--url", "http://x", "--disconnect", "1.5"], "--disconnect is '1.5'"),
        (["--url", "http://x", "--disconnect", "0.5", "--stream", "off"], "needs a stream"),
        (["--url", "http://x", "--slo-ttft", "5", "--stream", "off"], "no first token"),
        (["--url", "http://x", "--slo-tpot", "nan"], "--slo-tpot is 'nan'"),
        (["--url", "http://x", "--endpoint", "chats"], "did you mean 'chat'"),
        (["--url", "http://x", "--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--url", "http://x", "--repeats", "2"], "--repeats is of --against"),
        (["--url", "http://x", "--json", "/no/such/folder/f"], "no file can be there"),
        (["--url", "http://x", "--plot", "f.gif"], "what kind of picture?"),
        (["--url", "http://x", "--urls", "y"], "did you mean --url"),
        (["--url", "http://x", "model=y"], "loads no model"),
    ],
)
def test_refused(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *flags]) == 2
    assert words in capsys.readouterr().err


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "serve", "--url", "http://x", "--plot", "f.svg"]) == 2
    assert "needs matplotlib" in capsys.readouterr().err


def test_the_key_is_sent_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_KEY", "hush-hush")
    file = tmp_path / "found.json"
    with stub_server(lambda index, body: FAST) as stub:
        assert serve(stub.url, *SMALL, "--api-key-env", "STUB_KEY", "--json", str(file)) == 0
    assert all("Authorization: Bearer hush-hush\r\n" in head for head in stub.heads)
    assert "hush" not in capsys.readouterr().out + file.read_text(encoding="utf-8")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--help"]) == 0
    assert "--slo-tpot MS" in capsys.readouterr().out
