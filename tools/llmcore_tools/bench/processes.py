"""What is measured of whole processes: how soon the first token is there, and how much memory it takes to get far."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from llmcore.errors import LlmcoreError
from llmcore_tools.bench.machine import weight_bytes
from llmcore_tools.bench.measure import Series
from llmcore_tools.bench.steps import token_bytes

if TYPE_CHECKING:
    from llmcore.llm import LLM

PROMPT = "The capital of France is"
WORD = " sea"
ANSWER = 8  # tokens after the long prompt


class ProcessError(LlmcoreError):
    """A process that is measured cannot be started, or fails."""


@dataclass(frozen=True)
class Program:
    """The command that answers with the model, and the settings that it is given.

    Attributes:
        settings: as the user wrote them: ``model=…``, ``backend=…``.
        model: the model's file or folder, for when nothing may be fetched.
    """

    name: str
    settings: tuple[str, ...]
    model: Path

    @classmethod
    def of(cls, llm: LLM, settings: Sequence[str]) -> Program:
        """The command for the model's family.

        Raises:
            ProcessError: the family names no command, or it is not installed beside this Python.
        """
        if not llm.family.command:
            raise ProcessError(f"the family {llm.family.name} names no command", remedy="leave out: --only prefill,…")
        kept = [text for text in settings if not text.startswith("max_new_tokens=")]
        return cls(llm.family.command, tuple(kept), llm.path)

    def arguments(self, tokens: int) -> list[str]:
        """For an answer of so many tokens, of plain text."""
        return [*self.settings, f"max_new_tokens={tokens}", "--raw"]

    def for_empty_cache(self) -> Program:
        """The same, with the model's own path: only what is compiled and packed is made anew."""
        kept = [text for text in self.settings if not text.startswith(("model=", "model.", "cache_dir="))]
        return Program(self.name, (*kept, f"model={self.model}"), self.model)


def start_s(program: Program, samples: int, *, cold: bool = False) -> Series:
    """Seconds from starting a process to the first byte of its answer; ``cold``: with an empty cache every time."""
    if not cold:
        _first_byte_s(program, None)  # whoever comes first pays for all
        return Series(tuple(_first_byte_s(program, None) for _ in range(samples)))
    taken = []
    for _ in range(samples):
        with TemporaryDirectory(prefix="llmcore-bench-") as cache:
            taken.append(_first_byte_s(program.for_empty_cache(), cache))
    return Series(tuple(taken))


def _first_byte_s(program: Program, cache: str | None) -> float:
    beside = Path(sys.executable).parent
    script = shutil.which(program.name, path=str(beside)) or shutil.which(program.name)
    if script is None:
        raise ProcessError(f"{program.name} is not installed beside {sys.executable}", remedy="pip install llmcore")
    with _process([script, *program.arguments(1), "--prompt", PROMPT], cache) as (output, start):
        if not output.read(1):
            return 0.0  # it has failed: that is told when it ends
        return time.perf_counter() - start


@contextmanager
def _process(command: Sequence[str], cache: str | None) -> Iterator[tuple[IO[bytes], float]]:
    """A running process: its output, and when it was started. Raises :class:`ProcessError` if it fails."""
    environment = {**os.environ, **({"LLMCORE_CACHE": cache} if cache else {})}
    with TemporaryFile() as said:
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=environment
        ) as process:
            assert process.stdout is not None
            yield process.stdout, start
            process.stdout.read()
        if process.returncode != 0:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-2:] or ["it says nothing"]
            name = Path(command[0]).name
            raise ProcessError(f"{name} ended with exit code {process.returncode}: {' / '.join(last)}")


def memory(llm: LLM, program: Program, context: int) -> dict[str, Any]:
    """Peak memory of a process that answers a prompt of about ``context`` tokens, and what it is made of.

    Raises:
        ProcessError: it fails.
    """
    text = prompt_of(llm, context - ANSWER)
    tokens = len(llm.encode(text)) + ANSWER
    with TemporaryDirectory(prefix="llmcore-bench-") as folder:
        noted, prompt = Path(folder) / "noted", Path(folder) / "prompt"
        prompt.write_text(text, encoding="utf-8")
        child = [sys.executable, "-m", "llmcore_tools.bench.child", str(noted), program.name]
        with _process([*child, *program.arguments(ANSWER), "--prompt-file", str(prompt)], None):
            pass
        found: dict[str, Any] = json.loads(noted.read_text(encoding="utf-8"))
    return {
        "tokens": tokens,
        **found,
        "weights_bytes": weight_bytes(llm),
        "kv_bytes": int(token_bytes(llm) * len(llm.runner.states) * tokens),
    }


def prompt_of(llm: LLM, tokens: int) -> str:
    """Text of at most ``tokens`` tokens, and nearly as many; at least a word."""
    words = tokens
    while words > 1 and (count := len(llm.encode(WORD * words))) > tokens:
        words = max(1, min(words - 1, words * tokens // count))
    return WORD * words


def memory_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Peak memory and its parts for people."""
    rest = found["peak_rss_bytes"] - found["weights_bytes"] - found["kv_bytes"]
    sizes = (
        (f"peak, {found['tokens']} tokens", found["peak_rss_bytes"]),
        ("weights as kernels read them", found["weights_bytes"]),
        ("keys and values", found["kv_bytes"]),
        ("all the rest", rest),
    )
    return [(name, f"{size / 1e6:,.1f}") for name, size in sizes]
