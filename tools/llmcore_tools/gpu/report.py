"""What compiling found, as text, as JSON and as the page ``docs/gpu-kernels-compiled.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from llmcore.cli.console import table
from llmcore_tools.gpu.verdicts import HEAD, Compiled, Row, complaints, rows

VERSION = "Triton "
INTRODUCTION = """\
# GPU kernels, compiled

What `llmcore gpu-compile` finds: every kernel of the Triton backend, as its launchers launch it for decode steps and a
prefill chunk of the models below, compiled for GPUs that need not be there. A row is a kernel on a target, with the
worst of its variants (tile sizes and specializations): the most registers of a thread, spills and shared memory, and
the smallest share of bytes that come 16 at a time of those loaded from a launch's largest tensor, if that has 1 MiB or
more. The verdict counts the variants that break a rule (`tools/llmcore_tools/gpu/verdicts.py`). Nothing was run.

Regenerate it with `llmcore gpu-compile --write docs/gpu-kernels-compiled.md`.
"""


@dataclass(frozen=True)
class Found:
    """All targets together.

    Attributes:
        workload: in words.
        problems: ``(launcher in place, what)``: launchers that failed, once for every target that they failed for.
        missing: ops without a kernel, with the reason.
        uncalled: kernels that the workload calls for none of the targets.
    """

    triton: str
    workload: str
    variants: Sequence[Compiled]
    problems: Sequence[tuple[str, str]]
    missing: Mapping[str, str]
    uncalled: Sequence[str]

    @property
    def rows(self) -> list[Row]:
        """One for each kernel and target."""
        return rows(self.variants)

    @property
    def faults(self) -> list[tuple[Compiled, list[str]]]:
        """The variants that break a rule."""
        return [(each, wrong) for each in self.variants if (wrong := complaints(each))]


def as_text(found: Found) -> str:
    """For people at a terminal."""
    parts = [f"{VERSION}{found.triton}; {found.workload}", "", table(HEAD, [row.cells for row in found.rows])]
    parts += ["", f"{len(found.variants)} variants, {len(found.faults)} of them at fault"]
    for variant, wrong in found.faults:
        parts.append(f"  {variant.target} {variant.name}: {'; '.join(wrong)} ({variant.places[0]})")
    parts.append("")
    return "\n".join([*parts, *_remarks(found)])


def _remarks(found: Found) -> list[str]:
    """What the table cannot show: launchers that failed, ops without a kernel, kernels without a call."""
    failed: dict[tuple[str, str], list[str]] = {}
    for where, what in found.problems:
        launcher, _, place = where.partition(" in ")
        failed.setdefault((launcher, what), []).append(place)
    remarks = [f"launcher failed: {name}: {what} ({places[0]})" for (name, what), places in failed.items()]
    ops: dict[str, list[str]] = {}
    for op, why in sorted(found.missing.items()):
        ops.setdefault(why, []).append(op)
    remarks += [f"ops without a kernel: {', '.join(names)} ({why})" for why, names in ops.items()]
    return remarks + ([f"kernels that nothing calls: {', '.join(found.uncalled)}"] if found.uncalled else [])


def as_json(found: Found) -> dict[str, Any]:
    """All of it as plain data."""
    return {**asdict(found), "rows": [{**asdict(row), "verdict": row.verdict} for row in found.rows]}


def as_markdown(found: Found) -> str:
    """The page."""
    lines = [INTRODUCTION, f"{VERSION}{found.triton}. {found.workload}", ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|" * 5 + "---|---:|---|"]
    lines += ["| " + " | ".join(row.cells) + " |" for row in found.rows]
    remarks = _remarks(found)
    return "\n".join([*lines, *(["", *(f"- {remark}" for remark in remarks)] if remarks else [])]) + "\n"


def page_rows(page: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """The rows of a page by kernel and target, each with all of its cells."""
    lines = iter(page.splitlines())
    for line in lines:
        if line.startswith("|---"):
            break
    cells = (tuple(line.strip("| ").split(" | ")) for line in takewhile(lambda line: line.startswith("|"), lines))
    return {(row[0], row[1]): row for row in cells}


def page_version(page: str) -> str:
    """The Triton that made a page."""
    line = next((line for line in page.splitlines() if line.startswith(VERSION)), "")
    return line.removeprefix(VERSION).partition(". ")[0]


def differences(page: str, found: Found) -> list[str]:
    """Where ``found`` is not what ``page`` says; of another Triton's page, only kernels and faults are compared."""
    same = page_version(page) == found.triton
    written, made = page_rows(page), page_rows(as_markdown(found))
    wrong = [f"{kernel} on {target} is not in it" for kernel, target in made.keys() - written.keys()]
    wrong += [f"{kernel} on {target} is no longer there" for kernel, target in written.keys() - made.keys()]
    for key in written.keys() & made.keys():
        ours, theirs = made[key], written[key]
        pairs = list(zip(HEAD, theirs, ours, strict=True))
        if not same:
            was, now = ("ok" if row[-1] == "ok" else "at fault" for row in (theirs, ours))
            pairs = [("verdict", was, now)]
        wrong += [f"{key[0]} on {key[1]}: {name} is {now}, not {was}" for name, was, now in pairs if was != now]
    if same and not wrong and as_markdown(found) != page:
        wrong.append("the text around the table differs")
    return sorted(wrong)
