"""``llmcore gpu-tune``: the fastest configurations of the Triton backend's kernels on this GPU, as a table.

Each launcher is called with tensors of real sizes and asked which configurations it looks up. Every one of them is
searched by the time of all calls that ask for it, against that of its default, with the L2 cache flushed before each
run; one that computes something else than the default is none. The table is written after each, so a search that is
cut short goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmcore.cli.flags import parse
from llmcore.config.arguments import Flag
from llmcore.errors import LlmcoreError
from llmcore.plugins import resolve
from llmcore_tools.gpu import options
from llmcore_tools.gpu.search import Result, search
from llmcore_tools.gpu.workload import Call, calls_of
from llmcore_triton import configs
from llmcore_triton.configs import Config

KERNELS = Flag("--kernels", "whose configurations are searched, by the names in the table; all by default", "NAME,NAME")
OUT = Flag("--out", "the table (that of this device in the backend's folder by default)", "FILE.json")
AGAIN = Flag("--again", "search those too that the table has")
FLAGS = (*options.WORKLOAD, KERNELS, OUT, AGAIN)
USAGE = "usage: llmcore gpu-tune [--models NAME,NAME] [--kernels NAME,NAME] [--out FILE.json] [--again]"
APART = 0.02  # of the largest element: how far the outputs of two configurations may differ

Question = tuple[str, tuple[int, ...]]
"""What a launcher asks for: a kernel's name and a shape."""

Timer = Callable[[Callable[[], None]], float]
"""Milliseconds of one run."""


class NoGpuError(LlmcoreError):
    """There is nothing here to measure on."""


def main(argv: Sequence[str]) -> int:
    """Searches what the flags name; returns the exit code."""
    given, _ = parse(argv, FLAGS, USAGE)
    if given is None:
        return 0
    from llmcore_triton import device
    from llmcore_triton.plugin import llmcore_backends

    problem = "the interpreter is on" if device.INTERPRETING else device.ready()
    if problem:
        raise NoGpuError(f"configurations are measured on a GPU: {problem}", remedy="unset TRITON_INTERPRET, on a GPU")
    calls = calls_of(llmcore_backends(), options.workload(given)).places
    file = Path(given[OUT.name]) if OUT.name in given else configs.TABLES / f"{device.target().name}.json"
    wanted = set(given[KERNELS.name].split(",")) if KERNELS.name in given else None
    tuner = Tuner(Table.read(file), timer(), "cuda", lambda line: print(line, file=sys.stderr))
    tuner.tune(calls, wanted, again=AGAIN.name in given)
    return 0


def timer() -> Timer:
    """Medians by CUDA's events."""
    from triton.testing import do_bench

    return lambda run: float(do_bench(run, warmup=10, rep=60, return_mode="median"))


@dataclass
class Table:
    """A file of configurations, as :mod:`llmcore_triton.configs` reads it."""

    file: Path
    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Table:
        """What the file holds; nothing where there is none."""
        return cls(file, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})

    def has(self, question: Question) -> bool:
        """Whether it answers exactly this."""
        return any(tuple(entry["shape"]) == question[1] for entry in self.entries.get(question[0], ()))

    def keep(self, question: Question, best: Config) -> None:
        """Adds an answer in place of an older one, and writes the file whole or not at all."""
        kernel, shape = question
        others = [entry for entry in self.entries.get(kernel, ()) if tuple(entry["shape"]) != shape]
        entry = {"shape": list(shape), "meta": dict(best.meta), "num_warps": best.num_warps}
        others.append({**entry, "num_stages": best.num_stages})
        self.entries[kernel] = sorted(others, key=lambda each: each["shape"])
        lines = (
            f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(each)}" for each in found) + "\n  ]"
            for name, found in sorted(self.entries.items())
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        partial.replace(self.file)


@dataclass
class Asked:
    """A question with its default, and the calls that ask it."""

    default: Config
    calls: list[Call] = field(default_factory=list)


class Tuner:
    """Searches questions and keeps the answers in a table."""

    def __init__(self, table: Table, timer: Timer, device: str, say: Callable[[str], None]) -> None:
        """``device``: where the tensors of calls are made."""
        self.table = table
        self.timer = timer
        self.device = device
        self.say = say
        self.answers: dict[Question, Config] = {}  # of this search, which calls with several questions need

    def tune(self, calls: Iterable[Call], kernels: Iterable[str] | None = None, *, again: bool = False) -> None:
        """Answers every question of ``calls``, of ``kernels`` alone where they are given."""
        for question, asked in self.questions(calls).items():
            kernel, shape = question
            if (kernels is not None and kernel not in kernels) or (self.table.has(question) and not again):
                continue
            found = self.searched(question, asked)
            if found.cost == math.inf:
                self.say(f"{kernel} {shape}: nothing runs, not even its default")
                continue
            self.answers[question] = found.best
            self.table.keep(question, found.best)
            self.say(f"{kernel} {shape}: {found.tried} tried, {found.cost:.2f} of its default's time: {found.best}")

    def questions(self, calls: Iterable[Call]) -> dict[Question, Asked]:
        """What the launchers of ``calls`` look up, each with its default."""
        found: dict[Question, Asked] = {}
        for call in calls:
            asked: dict[Question, Config] = {}

            def note(kernel: str, shape: tuple[int, ...], default: Config, into: Any = asked) -> Config:
                into[kernel, shape] = default
                return default

            with configs.answering(note):
                self.launch(call, self.operands(call))
            for question, default in asked.items():
                found.setdefault(question, Asked(default)).calls.append(call)
        return found

    def searched(self, question: Question, asked: Asked) -> Result:
        """The best answer, by the mean over all calls of time against that with the default."""
        tensors = [self.operands(call) for call in asked.calls]
        normal: list[tuple[float, list[Any]]] = []

        def cost(config: Config) -> float:
            ratios = []
            for i, (call, given) in enumerate(zip(asked.calls, tensors, strict=True)):
                measured = self.measured(call, given, {**self.answers, question: config})
                if measured is None:
                    return math.inf
                if len(normal) <= i:
                    normal.append(measured)
                if not alike(measured[1], normal[i][1]):
                    return math.inf
                ratios.append(measured[0] / normal[i][0])
            return sum(ratios) / len(ratios)

        return search(asked.default, cost)

    def measured(
        self, call: Call, tensors: list[Any], answers: Mapping[Question, Config]
    ) -> tuple[float, list[Any]] | None:
        """Milliseconds of a call under ``answers``, and its outputs; None where it does not run."""
        with configs.answering(lambda kernel, shape, default: answers.get((kernel, shape), default)):
            try:
                self.launch(call, tensors)
                made = [each.clone() for each in tensors[len(tensors) - outputs(call) :]]
                taken = self.timer(lambda: self.launch(call, tensors))
            except Exception as error:  # too much shared memory, a tile that is none: whatever it is, it does not run
                self.say(f"  {call.kernel.target}: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
                return None
        return taken, made

    def launch(self, call: Call, tensors: Sequence[Any]) -> None:
        """One call."""
        resolve(call.kernel.target)(*tensors, **dict(call.attrs))

    def operands(self, call: Call) -> list[Any]:
        """Its tensors."""
        from llmcore_tools.gpu.operands import operands

        return operands(call, self.device)


def outputs(call: Call) -> int:
    """How many of the arguments, the last, are outputs."""
    from llmcore import ops

    return len(ops.get(call.kernel.op).outputs)


def alike(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two configurations computed the same, but for the order of sums; NaN only where both have it."""
    for one, other in zip(some, others, strict=True):
        a, b = one.double(), other.double()
        if bool((a.isnan() != b.isnan()).any()):
            return False
        a, b = a.nan_to_num(), b.nan_to_num()
        if float((a - b).abs().max()) > APART * max(float(b.abs().max()), 1e-6):
            return False
    return True
