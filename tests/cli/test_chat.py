"""``llmcore chat``: the history is what was said, no more and no less."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from helpers.fake_llm import FakeLLM
from helpers.tiny import TinyModel
from llmcore.cli import chat
from llmcore.cli.chat import Conversation, converse
from llmcore.cli.main import main
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import RequestError


def conversation(system: str | None = None) -> Conversation:
    return Conversation(FakeLLM(), SamplingParams(), system)  # type: ignore[arg-type]


def talk(found: Conversation, *lines: str) -> str:
    shown: list[str] = []
    assert converse(found, iter(lines), shown.append) == 0
    return "".join(shown)


def asked(found: Conversation) -> list[Any]:
    return found.llm.asked  # type: ignore[attr-defined, no-any-return]


USER, ASSISTANT, SYSTEM = ({"role": role} for role in ("user", "assistant", "system"))


def test_each_question_sees_all_before_it_once() -> None:
    found = conversation()
    assert talk(found, "one?", "", "  ", "two?") == "Paris.\nParis.\n"
    one = USER | {"content": "one?"}
    assert asked(found) == [[one], [one, ASSISTANT | {"content": "Paris."}, USER | {"content": "two?"}]]


def test_system_and_reset() -> None:
    found = conversation("be kind")
    talk(found, "one?", "/system  be brief ", "two?", "/reset", "three?", "/system", "four?")
    kind, brief = (SYSTEM | {"content": text} for text in ("be kind", "be brief"))
    assert asked(found) == [
        [kind, USER | {"content": "one?"}],
        [brief, USER | {"content": "two?"}],
        [brief, USER | {"content": "three?"}],
        [USER | {"content": "four?"}],
    ]


def test_exit_leaves_at_once() -> None:
    found = conversation()
    talk(found, "/exit", "never asked")
    assert asked(found) == []


def test_unknown_commands_and_refused_questions_are_told_and_leave_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    found = conversation()
    assert talk(found, "/exti", "13?", "12?") == "Paris.\n"
    told = capsys.readouterr().err
    assert "did you mean '/exit'" in told and "too long" in told
    assert asked(found) == [[USER | {"content": "12?"}]]


def test_help() -> None:
    assert all(name in talk(conversation(), "/help") for name in chat.SLASH)


def test_a_stopped_answer_stays_as_far_as_it_came() -> None:
    found = conversation()
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text == "Pa":
            signal.raise_signal(signal.SIGINT)

    converse(found, iter(["one?"]), show)
    assert "".join(shown) == "Pa …\n"
    assert found.messages[-1] == ASSISTANT | {"content": "Pa"}
    assert found.llm.streaming is False  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interrupt_is_not_held_back() -> None:
    def show(_: str) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        converse(conversation(), iter(["one?"]), show)


def test_asking_is_a_stream() -> None:
    found = conversation()
    with closing(found.ask("one?")) as answer:
        assert next(answer) == "Pa"
        assert found.llm.streaming  # type: ignore[attr-defined]
    with pytest.raises(RequestError):
        next(found.ask("13"))
    assert [message["role"] for message in found.messages] == ["user", "assistant"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeLLM], None]:
    return lambda fake: monkeypatch.setattr(chat, "load", lambda _: fake)


def test_the_command(
    load: Callable[[FakeLLM], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLLM()
    load(fake)
    monkeypatch.setattr("sys.stdin", io.StringIO("one?\r\n/exit\n"))
    assert main(["chat", "/models/x", "--system", "be kind", "max_new_tokens=7"]) == 0
    assert capsys.readouterr().out == "Paris.\n"
    assert fake.asked == [[SYSTEM | {"content": "be kind"}, USER | {"content": "one?"}]]
    assert fake.params[0].max_tokens == 7
    assert fake.closed


def test_a_model_without_template(load: Callable[[FakeLLM], None], capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeLLM(template=None)
    load(fake)
    assert main(["chat", "/models/x"]) == 2
    assert "no chat template" in capsys.readouterr().err
    assert fake.closed


def test_a_line_that_is_no_utf8_is_refused_and_the_talk_goes_on(
    tiny_model: Callable[..., TinyModel], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\nhi\n"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", typed)
    assert main(["chat", str(tiny_model("llama3").path), "backend=torch", "max_new_tokens=2"]) == 0
    out, err = capsys.readouterr()
    assert "lone surrogate" in err and "Traceback" not in err
    assert out.endswith("\n")
