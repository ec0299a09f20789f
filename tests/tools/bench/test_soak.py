"""``llmcore bench soak`` on a tiny model: a server of its own, clients that leave, and everything adds up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import TinyModel
from llmcore.cli.main import main
from llmcore.errors import ConfigError
from llmcore_tools.bench import soak
from llmcore_tools.load.child_server import ChildServer, ServerError
from llmcore_tools.load.mixture import CHAT, EMBED, TEXT, TOKENIZE, Mixture
from llmcore_tools.load.prompts import Span

MakeTiny = Callable[..., TinyModel]
MIXTURE = Mixture("m", 1024, Span(4, 40), Span(4, 24), 0.1)


def soaked(tiny_model: MakeTiny, tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what the command found."""
    model, file = tiny_model("llama3", max_position_embeddings=4096).path, tmp_path / "found.json"
    settings = [f"model={model}", "server.model_name=tiny", "threads=1", "engine.max_seqs=8"]
    code = main(["bench", "soak", *settings, "--json", str(file), *flags])
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return code, found["results"]


def test_forty_requests(tiny_model: MakeTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--clients", "8", "--requests", "40", "--disconnect", "0.3", "--markdown")
    code, found = soaked(tiny_model, tmp_path, *flags)
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert code == 0
    assert sum(count for name, count in found["outcomes"].items() if "again" not in name) == 40
    refused = found["latencies_ms"]["refusals by a full queue"]["count"]
    assert 10 <= refused <= 20, "of the 20 that ask, one may be let in where an answer has just ended"
    assert found["latencies_ms"]["/health"]["count"] > 0 and found["figures"]["generated tokens"] > 0
    shown = capsys.readouterr().out
    for words in (
        "### Checks",
        "| clients | 8 |",
        "engine.kv_pages=64",
        "server.max_waiting=16",
        "| refusals by a full",
    ):
        assert words in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_thousand_requests(tiny_model: MakeTiny, tmp_path: Path) -> None:
    code, found = soaked(tiny_model, tmp_path, "--clients", "128", "--requests", "3000")
    assert [check for check in found["checks"] if not check["ok"]] == []
    assert code == 0 and len(found["checks"]) == 11, "preemptions are judged too"
    assert found["figures"]["preemptions"] > 0 and found["outcomes"]["hung up"] > 100


def test_a_server_that_dies_is_told(tiny_model: MakeTiny) -> None:
    settings = [f"model={tiny_model('llama3').path}", "server.model_name=tiny", "server.port=0", "threads=1"]
    with ChildServer(settings) as server:
        assert server.model() == ("tiny", 64) and server.metrics().idle
        assert server.descriptors > 3 and server.memory.resident > server.memory.private > 0
        server.close()
        assert (server.descriptors, server.memory.resident, server.alive) == (0, 0, False)
        with pytest.raises(ServerError, match=r"it says: .*tiny is ready"):
            server.metrics()


def test_what_is_asked() -> None:
    calls = MIXTURE.draw(4000, 0)
    assert [call.data for call in calls] == [call.data for call in MIXTURE.draw(4000, 0)], "the same for a seed"
    assert [call.data for call in calls[:99]] != [call.data for call in MIXTURE.draw(99, 1)]
    assert {call.path for call in calls} == {CHAT, TEXT, EMBED, TOKENIZE}
    breaks = [call for call in calls if call.hangs_up]
    assert len(breaks) == 400 and {call.hang_up_s is None for call in breaks} == {True, False}
    bodies = [call.body for call in breaks if isinstance(call.body, dict)]
    assert all(body["ignore_eos"] and body["max_tokens"] == MIXTURE.lost and "stop" not in body for body in bodies)
    kept = [call for call in calls if not call.hangs_up and not call.refused and call.answers]
    features = Counter(name for call in kept for name in call.body if isinstance(name, str))
    for name in ("stream", "n", "stop", "seed", "logprobs", "top_logprobs", "response_format", "top_p"):
        assert 0 < features[name] < len(kept), name
    assert all(call.answers == call.body.get("n", 1) for call in kept if isinstance(call.body, dict))
    assert {call.answers for call in kept} == {1, 2, 3}
    wrong = {call.refused for call in calls if call.refused}
    assert {(400, "n"), (404, "model"), (400, ""), (400, "prompt"), (400, "top_logprobs")} <= wrong


def test_settings_go_through() -> None:
    assert soak.served(["qwen2"], 20) == ["qwen2", "server.port=0", "server.max_waiting=20", "engine.kv_pages=64"]
    given = ["engine.kv_pages=99", "server.max_waiting=30"]
    assert soak.served(given, 30) == [*given, "server.port=0"]
    assert soak.plan({}, given).room == 30
    asked = soak.plan({"--clients": "64", "--disconnect": "0.5"}, ["threads=1"])
    assert (asked.clients, asked.requests, asked.room, asked.mixture.disconnects) == (64, 10_000, 72, 0.5)
    assert soak.fitted(asked, "m", 2048).mixture.context == 2048


def test_what_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="some calls ask for 3 answers"):
        soak.plan({}, ["server.max_waiting=2"])
    with pytest.raises(ConfigError, match="takes 512 tokens"):
        soak.fitted(soak.plan({}, []), "m", 512)
    assert main(["bench", "soak", "--disconnect", "2"]) == 2
    assert "--disconnect is '2'" in capsys.readouterr().err
    assert main(["bench", "soak", "--json", "/no/such/folder/f"]) == 2
    assert "no file can be there" in capsys.readouterr().err
    assert main(["bench", "soak", "engine.kv_pages=no"]) == 2
    assert "llmcore serve is not ready" in capsys.readouterr().err
    assert main(["bench", "soak", "--help"]) == 0
    assert "--health-interval" in capsys.readouterr().out
