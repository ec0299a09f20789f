"""A server in a process of its own, seen from outside: what it says, its metrics, its memory and its descriptors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from llmcore.errors import ConfigError, LlmcoreError
from llmcore_tools.load.http import Target

ADDRESS = re.compile(r"http://\S+:\d+")
SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
REASON = re.compile(r'finished_reason="(\w+)"')
LINES = 400  # of what it says, the last
PATIENCE_S = 600.0  # a first start compiles kernels
ANSWER_S = 60.0


class ServerError(LlmcoreError):
    """The server does not start, or does not say what it must."""


@dataclass(frozen=True)
class Memory:
    """A process's resident memory in bytes; ``private`` is what no file lies behind."""

    resident: int
    private: int


@dataclass(frozen=True)
class Gauge:
    """A server's own numbers, by their names without prefix; those by reason are sums over the others' labels."""

    values: Mapping[str, float]
    answers: Mapping[str, int]
    tokens: Mapping[str, int]

    @classmethod
    def of(cls, text: str) -> Gauge:
        """From Prometheus' text."""
        values: dict[str, float] = {}
        by_reason: dict[str, dict[str, int]] = {"request_success_total": {}, "answer_tokens_total": {}}
        for line in text.splitlines():
            if found := SAMPLE.match(line):
                name = found["name"].removeprefix("llmcore:")
                reason = REASON.search(found["labels"] or "")
                if reason and name in by_reason:
                    by_reason[name][reason[1]] = int(float(found["value"]))
                else:
                    values[name] = float(found["value"])
        return cls(values, by_reason["request_success_total"], by_reason["answer_tokens_total"])

    def count(self, name: str) -> int:
        """A whole number; raises :class:`ServerError` where the server does not have it."""
        if name not in self.values:
            raise ServerError(f"the server's metrics have no {name}", remedy="serve with the llmcore that soaks")
        return int(self.values[name])

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and nothing waits."""
        return not self.count("num_requests_running") and not self.count("num_requests_waiting")


class ChildServer:
    """``llmcore serve`` with some settings, until it is closed."""

    def __init__(self, settings: Sequence[str]) -> None:
        """Starts it; raises :class:`ServerError` if it does not get ready."""
        command = [sys.executable, "-m", "llmcore.cli.main", "serve", *settings]
        environment = {name: value for name, value in os.environ.items() if name != "LLMCORE_API_KEY"}
        self.said: deque[str] = deque(maxlen=LINES)
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        self._address: str | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.target = self._ready()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self._process.stderr is not None
        for raw in self._process.stderr:
            line = raw.decode(errors="replace").rstrip()
            if self._address is None and (found := ADDRESS.search(line)):
                self._address = found[0]
            self.said.append(line)

    def _ready(self) -> Target:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and self._process.poll() is None:
            if self._address is not None:
                target = Target.of(self._address, "server")
                try:
                    if self._fetch(target, "/health")[0] == 200:
                        return target
                except (OSError, HTTPException):
                    pass  # it does not listen yet
            time.sleep(0.05)
        self._reader.join(1)
        remedy = "try the same settings with llmcore serve"
        raise ServerError(f"llmcore serve is not ready: {self._last()}", remedy=remedy)

    def _last(self) -> str:
        return " / ".join(list(self.said)[-3:]) or "nothing"

    def _fetch(self, target: Target, path: str) -> tuple[int, str]:
        connection = HTTPConnection(target.host, target.port, timeout=ANSWER_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metrics(self) -> Gauge:
        """Its numbers, now; raises :class:`ServerError`."""
        try:
            status, text = self._fetch(self.target, "/metrics")
        except (OSError, HTTPException) as error:
            raise ServerError(f"the server's metrics cannot be had: {error!r}; it says: {self._last()}") from error
        if status != 200:
            raise ServerError(f"the server's metrics: {status}", remedy="it must answer without a key")
        return Gauge.of(text)

    def model(self) -> tuple[str, int]:
        """What clients call its model, and how many tokens a prompt and its answer may have."""
        try:
            found = json.loads(self._fetch(self.target, "/v1/models")[1])["data"][0]
            return str(found["id"]), int(found["max_model_len"])
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            raise ServerError(f"the server does not tell its model: {error!r}") from error

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def descriptors(self) -> int:
        """How many files and connections it has open; 0 once it has ended."""
        try:
            return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))
        except OSError:
            return 0

    @property
    def memory(self) -> Memory:
        """What it has resident; nothing once it has ended."""
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
        except OSError:
            return Memory(0, 0)
        sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        found = (int(sizes[name][0]) * 1024 if name in sizes else 0 for name in ("VmRSS", "RssAnon"))
        return Memory(*found)

    def stop(self, patience_s: float) -> int | None:
        """Tells it to stop, as a supervisor does; its exit code, None where it does not end in time."""
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._reader.join(1)

    def close(self) -> None:
        """Ends it, if it has not ended."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        self._reader.join(1)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def __enter__(self) -> ChildServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_system() -> None:
    """Raises :class:`ConfigError` where a process's memory and descriptors cannot be seen."""
    if not Path("/proc/self/fd").is_dir():
        raise ConfigError("bench soak looks at a process through /proc", remedy="run it on Linux")
