"""``llmcore chat``: a conversation in the terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from threading import Event, current_thread, main_thread
from types import FrameType
from typing import TYPE_CHECKING, Any

from llmcore.cli.console import report
from llmcore.cli.model import forgetful_cache, load, model_as_setting, settings
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import NO_CACHE, SYSTEM
from llmcore.config.command import Command, Job
from llmcore.config.prompts import read_system
from llmcore.engine.sampling_params import SamplingParams
from llmcore.errors import ConfigError, LlmcoreError, near

if TYPE_CHECKING:
    from llmcore.engine.request import Delta
    from llmcore.llm import LLM

COMMAND = Command("llmcore chat", "talk with a model; /help lists what can be done on the way", (SYSTEM, NO_CACHE))
SLASH = {
    "/system": "TEXT: start over with another system message; without TEXT, with none",
    "/reset": "start over",
    "/exit": "leave (so does Ctrl-D)",
    "/help": "show this; Ctrl-C stops an answer",
}


def main(argv: Sequence[str]) -> int:
    """Talks with the model of each job; returns the exit code."""
    with ExitStack() as stack:
        return run_with_settings(COMMAND, model_as_setting(argv), lambda job: run(job, stack))


def run(job: Job, stack: ExitStack) -> int:
    """One conversation."""
    if "--no-cache" in job.given:
        forgetful_cache(stack)
    llm = load(settings(job))
    try:
        if not llm.checkpoint.tokenizer.chat_template:
            raise ConfigError(
                f"{job.config.model.ref} has no chat template", remedy="llama_infer --raw completes plain text"
            )
        conversation = Conversation(llm, SamplingParams.from_config(job.config), read_system(job.given))
        return converse(conversation, lines(), say)
    finally:
        llm.close()


@dataclass
class Conversation:
    """What has been said, and the model that answers.

    Attributes:
        messages: without the system message; questions and answers by turns.
    """

    llm: LLM
    params: SamplingParams
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def prompt(self) -> list[dict[str, str]]:
        """The messages that the template gets."""
        return ([{"role": "system", "content": self.system}] if self.system is not None else []) + self.messages

    def ask(self, text: str) -> Generator[str, None, None]:
        """Pieces of the answer to ``text``.

        Both become part of the conversation when the answer ends, even if it is stopped on the way: the model then sees
        what its user saw. A question that could not be asked leaves no trace.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            deltas: Any = self.llm.stream_chat(self.prompt(), self.params)
        except BaseException:
            self.messages.pop()
            raise
        said: list[str] = []
        try:
            for delta in deltas:
                said.append(_text(delta))
                yield said[-1]
        finally:
            deltas.close()
            self.messages.append({"role": "assistant", "content": "".join(said)})

    def reset(self, system: str | None) -> None:
        """Starts over."""
        self.system = system
        self.messages.clear()


def _text(delta: Delta) -> str:
    return delta.text


def converse(conversation: Conversation, questions: Iterator[str], show: Callable[[str], None]) -> int:
    """Answers each line until there are no more; a line that starts with a slash is a command."""
    for question in questions:
        if not question.strip():
            continue
        try:
            if question.startswith("/"):
                if not _command(conversation, question, show):
                    break
            else:
                _answer(conversation, question, show)
        except LlmcoreError as error:
            report(error)
    return 0


def _answer(conversation: Conversation, question: str, show: Callable[[str], None]) -> None:
    with stoppable() as stop, closing(conversation.ask(question)) as answer:
        for piece in answer:
            show(piece)
            if stop.is_set():
                show(" …")
                break
    show("\n")


@contextmanager
def stoppable() -> Iterator[Event]:
    """Ctrl-C sets the event: an answer then ends between two tokens, never within a step. A second one interrupts."""
    stop = Event()

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()

    if current_thread() is not main_thread():  # only the main thread may have signal handlers
        yield stop
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _command(conversation: Conversation, line: str, show: Callable[[str], None]) -> bool:
    """Does what a line like ``/reset`` asks for; False to leave."""
    name, _, rest = line.strip().partition(" ")
    if name not in SLASH:
        raise ConfigError(f"there is no command {name}", remedy=near(name, SLASH))
    if name == "/exit":
        return False
    if name == "/help":
        show("".join(f"{command} {text}\n" for command, text in SLASH.items()))
    else:
        conversation.reset((rest.strip() or None) if name == "/system" else conversation.system)
        show("(a new conversation)\n")
    return True


def lines() -> Iterator[str]:
    """What the user types, a line at a time: with history and editing on a terminal, plain elsewhere."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    session: Any = PromptSession(completer=WordCompleter(list(SLASH), sentence=True), complete_while_typing=False)
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:  # throws away the line, as in a shell
            continue
        except EOFError:
            return


def say(text: str) -> None:
    """Shows a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
