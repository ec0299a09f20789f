"""What a stage of ``llmcore gpu-check`` is given, and what it leaves behind: findings, one line of JSON each.

A finding is written the moment it is known, so a stage that is stopped, or that takes its process with it, keeps what
it had found.
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from llmcore.device.accelerator import Accelerator

Verdict = Literal["holds", "short", "wrong", "not run", ""]
"""``short`` is right but slower than its goal; the empty one is a figure of which nothing is asked."""

Value = float | int | str
BAD = ("short", "wrong")


@dataclass(frozen=True)
class Finding:
    """One thing that a stage has looked at.

    Attributes:
        values: figures by their column in the report; ``floor`` and ``goal`` stand beside what they are about.
        note: why not, where it was not run or is wrong.
    """

    what: str
    verdict: Verdict = ""
    values: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""


@dataclass
class Context:
    """A stage's surroundings.

    Attributes:
        stage: its name.
        out: the folder of the run.
        rehearse: play a GPU on the CPU, at toy sizes; figures of speed are then held to no goal.
        deadline: when the stage must have ended, by :func:`time.monotonic`.
        longest: seconds of the longest of its attempts so far.
    """

    stage: str
    out: Path
    rehearse: bool
    deadline: float
    longest: float = 0.0

    @cached_property
    def device(self) -> Accelerator:
        """The GPU, or the CPU in its place."""
        from llmcore.device.accelerator import Accelerator

        return Accelerator("cpu" if self.rehearse else "cuda")

    @property
    def ops(self) -> dict[str, str]:
        """Ops that another backend runs: in a rehearsal the products, which take the interpreter longest."""
        return {"linear": "torch"} if self.rehearse else {}

    @property
    def part(self) -> Path:
        """The file of what has been found so far."""
        return part_file(self.out, self.stage)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def add(self, finding: Finding) -> None:
        """Writes a finding down."""
        self._write({"finding": asdict(finding)})

    def fact(self, name: str, value: Any) -> None:
        """Writes down something that other stages, or the report, want to know by name."""
        self._write({"fact": [name, value]})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.part.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def known(self, stage: str, name: str) -> Any:
        """A fact of an earlier stage of this run; None where there is none."""
        found = read_stage(self.out, stage)
        return found["facts"].get(name) if found and found["rehearsal"] == self.rehearse else None

    def judged(self, value: float, goal: float) -> Verdict:
        """Whether a figure of speed reaches its goal; a rehearsal's are held to none."""
        return "" if self.rehearse else "holds" if value >= goal else "short"

    def attempt(self, what: str, action: Callable[[], None], needs: float = 0.0) -> bool:
        """Does one thing of several; if it fails the others go on. Returns whether it was done.

        It is not begun with less time than ``needs``, or than the longest so far has taken: a stage that is stopped in
        the midst of something has failed.
        """
        needs, started = max(needs, self.longest), time.monotonic()
        if self.left < needs:
            self.add(Finding(what, "not run", note=f"{max(self.left, 0):.0f} s were left of the {needs:.0f} it takes"))
            return False
        try:
            with self.device.scope():
                action()
        except Exception as error:  # of kernels, torch, transformers: whatever it is, it is what was found
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            self.add(Finding(what, "wrong", note=f"{type(error).__name__}: {error} ({place})"))
            return False
        finally:
            self._release()
            self.longest = max(self.longest, time.monotonic() - started)
        return True

    def _release(self) -> None:
        """Gives memory back that the last thing had taken."""
        gc.collect()
        if not self.rehearse:
            import torch

            torch.cuda.empty_cache()


def part_file(out: Path, stage: str) -> Path:
    """Where a stage that runs writes."""
    return out / f"{stage}.part"


def stage_file(out: Path, stage: str) -> Path:
    """What a stage that has ended leaves."""
    return out / f"{stage}.json"


def read_stage(out: Path, stage: str) -> dict[str, Any] | None:
    """What a stage has left; None where it has not ended, or its file is none."""
    try:
        found: dict[str, Any] = json.loads(stage_file(out, stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def read_part(out: Path, stage: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and findings that a stage has written; a line that was cut off is passed over."""
    facts: dict[str, Any] = {}
    findings: list[dict[str, Any]] = []
    path = part_file(out, stage)
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "fact" in line:
            facts[line["fact"][0]] = line["fact"][1]
        else:
            findings.append(line["finding"])
    return facts, findings
