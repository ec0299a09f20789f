"""``llmcore batch``: answers a file of requests, and goes on where it was when it is started again.

Input and output are OpenAI's batch files: a line ``{"custom_id": …, "url": "/v1/chat/completions", "body": {…}}`` for
each request, a line with the same ``custom_id`` for each answer, in the order in which they end. A line that is a body
alone has its number for an id. Whatever ends the process, the next one finds each answer whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import ValidationError

from llmcore.cli.model import load, model_as_setting, settings
from llmcore.cli.settings import run_with_settings
from llmcore.config.arguments import NO_CACHE, Flag
from llmcore.config.command import Command, Job
from llmcore.config.models import name_of
from llmcore.engine.request import Request
from llmcore.engine.results import Collector
from llmcore.errors import ConfigError, LlmcoreError, RequestError
from llmcore_server.answers import Usage, Writer
from llmcore_server.command import check_unused
from llmcore_server.fields import ChatFields, CompletionFields
from llmcore_server.refusals import Refusal, refused

if TYPE_CHECKING:
    from llmcore.llm import LLM

INPUT = Flag("--input", "a file with a request on each line", "FILE")
OUTPUT = Flag("--output", "where answers go, a line each; what is in it already is not asked again", "FILE")
COMMAND = Command("llmcore batch", "answer a file of requests, resumable", (INPUT, OUTPUT, NO_CACHE), "serve")
KINDS: dict[str, type[ChatFields | CompletionFields]] = {
    "/v1/chat/completions": ChatFields,
    "/v1/completions": CompletionFields,
}
BEGINS = b'{"custom_id": '  # so does each line that we write
AHEAD = 2  # times the batch: so many answers are under way or wait


def main(argv: Sequence[str]) -> int:
    """Answers the requests of a job; returns 0 if each has a line in the output, whatever it says."""
    return run_with_settings(COMMAND, model_as_setting(argv), run)


def run(job: Job) -> int:
    """One file."""
    check_unused(job.config)
    source, target = (Path(_given(job, flag)) for flag in ("--input", "--output"))
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError("--input and --output are the same file", remedy="name another output")
    lines = Lines(source)
    with Output(target) as output:
        left = [entry for entry in lines if entry.id not in output.done]
        print(f"{lines.count} requests, {lines.count - len(left)} answered before")
        if left:
            llm = load(settings(job))
            try:
                Batch(llm, job.config.server.model_name or name_of(job.config.model.ref), output).run(left)
            finally:
                llm.close()
    return 0


def _given(job: Job, flag: str) -> str:
    if flag not in job.given:
        raise ConfigError(f"{flag} is missing", remedy="llmcore batch --input requests.jsonl --output answers.jsonl")
    return job.given[flag]


@dataclass(frozen=True)
class Entry:
    """A request of the file; ``offset`` is where its line begins."""

    id: str
    number: int
    offset: int


class Lines:
    """The requests of a file, whose lines are read twice: once for their ids, once to be answered."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`ConfigError` where it cannot be read, or two lines have the same id."""
        self._entries: list[Entry] = []
        seen: dict[str, int] = {}
        self.path = path
        try:
            with path.open("rb") as file:
                offset = 0
                for number, line in enumerate(file, 1):
                    if line.strip():
                        self._add(line, number, offset, seen)
                    offset += len(line)
                if not file.seekable():
                    raise ConfigError(f"--input {path} can be read only once", remedy="write it to a file")
        except OSError as error:
            raise ConfigError(f"--input {path}: {error.strerror}") from error

    def _add(self, line: bytes, number: int, offset: int, seen: dict[str, int]) -> None:
        try:
            found = json.loads(line).get("custom_id")
        except (ValueError, AttributeError, RecursionError):
            found = None  # what is wrong with it becomes its answer
        identity = found if isinstance(found, str) else str(number)
        if seen.setdefault(identity, number) != number:
            raise ConfigError(
                f"{self.path}: lines {seen[identity]} and {number} have the same custom_id {identity!r}",
                remedy="answers are told apart by it: give each request its own",
            )
        self._entries.append(Entry(identity, number, offset))

    @property
    def count(self) -> int:
        """How many requests there are."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Located]:
        return (Located(entry.id, entry.number, entry.offset, self.path) for entry in self._entries)


@dataclass(frozen=True)
class Located(Entry):
    """A request, and the file that it is in."""

    path: Path

    def read(self) -> bytes:
        """Its line."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.readline()


class Output:
    """The answers: each line is written whole, and one that was cut off is removed on opening.

    Attributes:
        done: ids of the requests that have an answer.
    """

    def __init__(self, path: Path) -> None:
        """Raises :class:`ConfigError` where it cannot be written, or another process writes it."""
        self.done: set[str] = set()
        self.path = path
        try:
            self._file: IO[bytes] = path.open("a+b", buffering=0)
        except OSError as error:
            raise ConfigError(f"--output {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ConfigError(f"--output {path}: another process writes it") from error
        self._recover()

    def _recover(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            torn = not line.endswith(b"\n")
            if torn and (line.startswith(BEGINS) or BEGINS.startswith(line)):
                break
            try:
                found = json.loads(line)
                self.done.add(found["custom_id"] if "response" in found else found["response"])
                end += len(line)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"--output {self.path} has a line that is no answer (at byte {end})",
                    remedy="name another file",
                ) from error
        self._file.truncate(end)

    def write(self, answer: dict[str, Any]) -> None:
        """Adds an answer."""
        data = json.dumps(answer).encode() + b"\n"
        while data:  # a full disk may take a part of it
            data = data[os.write(self._file.fileno(), data) :]
        self.done.add(answer["custom_id"])

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass
class Task:
    """A request under way, with all of its answers."""

    entry: Entry
    writer: Writer
    usage: Usage
    requests: list[Request]
    echoes: list[str]
    collectors: list[Collector] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return all(request.finish_reason is not None for request in self.requests)


class Batch:
    """Runs requests through one engine, as many at a time as it takes."""

    def __init__(self, llm: LLM, model: str, output: Output) -> None:
        self._llm = llm
        self._model = model
        self._output = output
        self._tasks: list[Task] = []

    def run(self, entries: Sequence[Located]) -> None:
        """Answers all of them."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        engine, waiting = self._llm.engine, iter(entries)
        most = AHEAD * engine.scheduler.max_seqs
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, transient=True) as progress:
            bar = progress.add_task("requests", total=len(entries))
            more = True
            while more or self._tasks:
                while more and sum(len(task.requests) for task in self._tasks) < most:
                    entry = next(waiting, None)
                    more = entry is not None
                    if entry is not None and not self._begin(entry):
                        progress.advance(bar)
                engine.step()
                for task in [task for task in self._tasks if self._drained(task)]:
                    self._tasks.remove(task)
                    self._end(task)
                    progress.advance(bar)

    def _begin(self, entry: Located) -> bool:
        """Queues a request; one that cannot be served gets its answer at once."""
        try:
            self._tasks.append(self._task(entry, entry.read()))
        except (LlmcoreError, ValidationError, Refusal) as error:
            refusal = refused(error)
            self._write(entry, refusal.status, refusal.body)
            return False
        return True

    def _task(self, entry: Entry, line: bytes) -> Task:
        fields = _fields(line, self._model)
        if fields.model not in (self._model, self._llm.model):
            raise Refusal(404, f"there is no model {fields.model!r}", param="model", code="model_not_found")
        chat = isinstance(fields, ChatFields)
        params, tokenizer = fields.sampling(), self._llm.tokenizer
        if isinstance(fields, ChatFields):
            if fields.functions():
                raise RequestError("tools are not supported in a batch", field="tools")
            prompts = [self._llm.chat_ids([message.plain() for message in fields.messages])]
        else:
            prompts = [self._llm.encode(prompt) for prompt in fields.prompts]
        task = Task(entry, Writer(chat, fields.model, tokenizer), Usage(fields.choices), [], [])
        echo = isinstance(fields, CompletionFields) and bool(fields.echo)
        made = [(ids, own) for ids in prompts for own in fields.drawn(params)]
        how = {"continues": not chat, **fields.standing()}
        requests = [self._llm.engine.request(ids, own, **how) for ids, own in made]
        for request in requests:  # all are good: none has to be taken back
            self._llm.engine.enqueue(request)
        task.requests = requests
        task.echoes = [tokenizer.decode(request.prompt_ids) if echo else "" for request in requests]
        task.collectors = [Collector(request, 0.0) for request in requests]
        return task

    def _drained(self, task: Task) -> bool:
        for collector in task.collectors:
            collector.drain()
        return task.ended

    def _end(self, task: Task) -> None:
        failed = next((request for request in task.requests if request.finish_reason == "error"), None)
        if failed is not None:
            refusal = refused(failed.failure)
            self._write(task.entry, refusal.status, refusal.body)
            return
        answers = [collector.completion() for collector in task.collectors]
        for index, (request, answer) in enumerate(zip(task.requests, answers, strict=True)):
            task.usage.add(index, request, len(answer.token_ids))
        self._write(task.entry, 200, task.writer.whole(answers, task.usage, task.echoes, [()] * len(answers)))

    def _write(self, entry: Entry, status: int, body: dict[str, Any]) -> None:
        response = {"status_code": status, "body": body}
        self._output.write({"custom_id": entry.id, "response": response, "error": None})


def _fields(line: bytes, model: str) -> ChatFields | CompletionFields:
    """What a line asks for.

    Raises:
        RequestError, ValidationError: it is no request.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the line is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RequestError("the line is no JSON object")
    if "body" in found:
        body, url = found["body"], found.get("url")
        unknown = sorted(found.keys() - {"custom_id", "method", "url", "body"})
        if unknown:
            raise RequestError(f"{unknown[0]} is no key of a request", field=unknown[0])
        if not isinstance(url, str) or url not in KINDS:
            raise RequestError(f"the url is {url!r}", field="url", remedy=f"it may be {' or '.join(KINDS)}")
    else:
        body = {name: value for name, value in found.items() if name != "custom_id"}
        url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object", field="body")
    if not isinstance(found.get("custom_id", ""), str):
        raise RequestError("the custom_id is no text", field="custom_id")
    fields: ChatFields | CompletionFields = KINDS[url].model_validate_json(json.dumps({"model": model, **body}))
    if fields.stream:
        raise RequestError("a batch has no streams", field="stream")
    return fields
