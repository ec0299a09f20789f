"""``report.json`` and ``report.md``: what a run of ``llmcore gpu-check`` has found, of what its stages have left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore_tools.bench.measure import figure
from llmcore_tools.bench.report import Table, section
from llmcore_tools.gpu.check_context import read_stage
from llmcore_tools.gpu.check_stages import STAGES, fails, outcome, write_whole

SCHEMA = 1  # of report.json; one more whenever a key changes its meaning
INTRODUCTION = """\
# GPU check

What `llmcore gpu-check` found on one machine. A line *holds* if it is right and, where a goal stands beside it, reaches
it; *short* is right but slower than its goal; *wrong* is wrong. Floors are what this machine allows: bytes over the
bandwidth, operations over the matrix peak, both measured in the same run."""
REHEARSED = """\


**This was a rehearsal: the CPU played the GPU, with toy sizes. No figure of speed in it means anything.**"""


@dataclass(frozen=True)
class Found:
    """A run.

    Attributes:
        stages: what each stage has left, in their order; those that have left nothing are in ``missing``.
        missing: name → why.
    """

    stages: Sequence[Mapping[str, Any]]
    missing: Mapping[str, str]
    rehearsal: bool

    @property
    def holds(self) -> bool:
        """Whether something was run, and all of it holds."""
        return bool(self.stages) and not any(fails(stage) for stage in self.stages)

    @property
    def summary(self) -> str:
        """In a few words."""
        bad = [stage["stage"] for stage in self.stages if fails(stage)]
        what = f"not everything holds: {', '.join(bad)}" if bad else "everything that was run holds"
        return f"{what}; not run: {', '.join(self.missing)}" if self.missing else what


def compose(out: Path, rehearsal: bool, missed: Sequence[str]) -> Found:
    """Reads what the stages of a run have left. ``missed``: those for which there was no time."""
    left = {stage.name: read_stage(out, stage.name) for stage in STAGES}
    stages = [found for found in left.values() if found and found["rehearsal"] == rehearsal]
    there = {found["stage"] for found in stages}
    missing = {n: "no time was left" if n in missed else "not asked for" for n in left if n not in there}
    return Found(stages, missing, rehearsal)


def write_report(out: Path, found: Found) -> None:
    """Writes both files."""
    facts = {name: value for stage in found.stages for name, value in stage["facts"].items()}
    data = {
        "schema": SCHEMA,
        "rehearsal": found.rehearsal,
        "holds": found.holds,
        "machine": facts.get("machine", {}),
        "stages": {stage["stage"]: stage for stage in found.stages},
        "not_run": dict(found.missing),
    }
    write_whole(out / "report.json", json.dumps(data, ensure_ascii=False, indent=2) + "\n")
    write_whole(out / "report.md", markdown(found, facts.get("machine", {})) + "\n")


def markdown(found: Found, machine: Mapping[str, Any]) -> str:
    """The page, fit for ``docs/benchmarks``."""
    lines = {name: str(value) for name, value in machine.items() if value}
    overview = Table(
        "Stages",
        ("stage", "outcome", "last words"),
        (
            *((s["stage"], outcome(s), " / ".join(s["error"].split("\n")[-2:])) for s in found.stages),
            *((name, f"not run: {why}", "") for name, why in found.missing.items()),
        ),
    )
    tables = [_machine(lines), overview, *(_table(stage) for stage in found.stages if stage["findings"])]
    body = "\n\n".join(section(table) for table in tables if table.rows)
    head = INTRODUCTION + (REHEARSED if found.rehearsal else "")
    return f"{head}\n\n{found.summary[0].upper()}{found.summary[1:]}.\n\n{body}"


def _machine(lines: Mapping[str, str]) -> Table:
    return Table("Measured on", ("what", "value"), tuple(lines.items()))


def _table(stage: Mapping[str, Any]) -> Table:
    """A stage's findings, a column for every figure that any of them has."""
    findings = stage["findings"]
    columns = list(dict.fromkeys(name for finding in findings for name in finding["values"]))
    noted = any(finding["note"] for finding in findings)
    rows = [
        (
            finding["what"],
            *(_cell(finding["values"].get(name, "")) for name in columns),
            finding["verdict"],
            *([" ".join(finding["note"].split())] if noted else []),
        )
        for finding in findings
    ]
    return Table(stage["stage"].capitalize(), ("what", *columns, "verdict", *["note"] * noted), tuple(rows))


def _cell(value: float | int | str) -> str:
    """A figure with as many digits as it deserves; small ones, such as errors, by their power of ten."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else figure(value) if value >= 0 else f"{value:.2f}"
