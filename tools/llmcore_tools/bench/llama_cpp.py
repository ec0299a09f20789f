"""llama.cpp's own benchmark programs as a peer: run once for a sample, on the same file with as many threads."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.errors import LlmcoreError
from llmcore_tools.bench.trials import Trial

BUILD = "build it: cmake -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON && cmake --build build"
PATIENCE_S = 3600


class PeerError(LlmcoreError):
    """The other engine's program is not there, fails, or prints something else than it should."""


def executable(name: str, flag: str) -> Path:
    """The program that ``flag`` names, by path or on ``PATH``; raises :class:`PeerError`."""
    found = shutil.which(Path(name).expanduser())
    if found is None:
        there = Path(name).expanduser().exists()
        raise PeerError(
            f"{flag} {name}: {'it cannot be executed' if there else 'there is no such program'}",
            remedy=f"give the path of the program; {BUILD} --target llama-bench llama-batched-bench",
        )
    return Path(found)


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp on one model file.

    Attributes:
        bench: ``llama-bench``.
        batched: ``llama-batched-bench``, for batched decode; None where it was not given.
        extra: more arguments for both.
    """

    bench: Path
    model: Path
    threads: int
    batched: Path | None = None
    extra: tuple[str, ...] = ()

    def can(self, trial: Trial) -> bool:
        """Whether a program for the trial was given."""
        return trial.kind != "batched" or self.batched is not None

    def sample(self, trial: Trial) -> float:
        """Tokens per second of one run, after a warm-up of its own; raises :class:`PeerError`."""
        return self._batched(trial) if trial.kind == "batched" else self._single(trial)

    def describe(self) -> dict[str, Any]:
        """Its build, as llama-bench says; raises :class:`PeerError`."""
        row = self._bench("-p", "1", "-n", "0", "--no-warmup")
        names = ("build_commit", "build_number", "cpu_info", "backends", "model_type", "n_threads")
        return {"extra_arguments": list(self.extra), **{name: row[name] for name in names if name in row}}

    def _single(self, trial: Trial) -> float:
        work = trial.work
        if trial.kind == "prefill":
            row = self._bench("-p", str(work.prompt), "-n", "0")
        else:
            depth = 0 if work.prompt == 1 else work.prompt
            row = self._bench("-p", "0", "-n", str(work.new), *(("-d", str(depth)) if depth else ()))
        return _number(self.bench, row, "avg_ts")

    def _bench(self, *arguments: str) -> dict[str, Any]:
        common = ("-m", str(self.model), "-t", str(self.threads), "-r", "1", "-o", "json")
        output = _run([str(self.bench), *common, *self.extra, *arguments])
        rows = _parsed(self.bench, output)
        if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
            raise PeerError(f"{self.bench.name} printed no single result: {_shown(output)}")
        return rows[0]

    def _batched(self, trial: Trial) -> float:
        assert self.batched is not None
        work = trial.work
        context = work.batch * (work.prompt + work.new)
        sizes = ("-npp", str(work.prompt), "-ntg", str(work.new), "-npl", str(work.batch), "-c", str(context))
        threads = ("-t", str(self.threads), "-tb", str(self.threads))
        output = _run(
            [str(self.batched), "-m", str(self.model), *threads, *sizes, "--output-format", "jsonl", *self.extra]
        )
        rows = [_parsed(self.batched, line) for line in output.splitlines() if line.startswith("{")]
        if len(rows) != 1:
            raise PeerError(f"{self.batched.name} printed {len(rows)} results in place of one: {_shown(output)}")
        return _number(self.batched, rows[0], "speed_tg")


def extra_arguments(text: str) -> tuple[str, ...]:
    """``--peer-args`` as a shell would split them; raises :class:`PeerError`."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise PeerError(f"--peer-args {text!r}: {error}", remedy="quote it as a shell wants it") from error


def _run(command: Sequence[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment, timeout=PATIENCE_S, check=False
        )
    except OSError as error:
        raise PeerError(f"{command[0]} cannot be run: {error.strerror}", remedy=BUILD) from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{name} did not end within {PATIENCE_S} s: {shlex.join(command)}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-3:] or ["it says nothing"]
        raise PeerError(
            f"{name} failed with exit code {done.returncode}: {' / '.join(said)}", remedy=f"try {shlex.join(command)}"
        )
    return done.stdout


def _parsed(program: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PeerError(
            f"{program.name} printed no JSON: {_shown(text)}", remedy="is it the program that the flag asks for?"
        ) from error


def _number(program: Path, row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float) or not value > 0:
        raise PeerError(f"{program.name} gives {value!r} for {key}", remedy="its output may have changed; update one")
    return float(value)


def _shown(text: str) -> str:
    return repr(text[:200])
