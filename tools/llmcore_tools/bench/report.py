"""What a suite found, as text, Markdown or JSON; each begins with what it was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.config.arguments import JSON, Flag
from llmcore.errors import ConfigError
from llmcore_tools.bench.machine import lines
from llmcore_tools.bench.options import MARKDOWN

SCHEMA = 1  # of the JSON; one more whenever a key changes its meaning


@dataclass(frozen=True)
class Table:
    """Figures for people. Cells are text; ``note`` says below the table how to read it."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What one run of a suite found.

    Attributes:
        suite: ``model``, ``ops``, ``kernels``, ``against``, ``serve``, ``soak``, ``batch``, ``kv`` or ``sampling``.
        machine: what it ran on, by :func:`llmcore_tools.bench.machine.facts`.
        results: everything found, as plain data.
        tables: the same for people.
    """

    suite: str
    machine: Mapping[str, Any]
    results: Mapping[str, Any]
    tables: Sequence[Table]


def show(report: Report, given: Mapping[str, str]) -> None:
    """Prints a report in the form that the flags ask for."""
    if JSON.name in given:
        print(as_json(report))
    else:
        print(as_markdown(report) if MARKDOWN.name in given else as_text(report))


def as_json(report: Report) -> str:
    """One JSON object."""
    values = {"schema": SCHEMA, "suite": report.suite, "machine": report.machine, "results": report.results}
    return json.dumps(values, ensure_ascii=False, indent=2)


def json_target(given: Mapping[str, str], flag: Flag) -> Path | None:
    """The file that ``flag`` names; raises :class:`ConfigError` now rather than after minutes of measuring."""
    if flag.name not in given:
        return None
    path = Path(given[flag.name]).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"{flag.name} {path}: no file can be there", remedy="name a file in a folder that exists")
    return path


def write_json(path: Path, report: Report) -> None:
    """Writes a report's data; raises :class:`ConfigError` where that cannot be."""
    try:
        path.write_text(as_json(report) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy="name another file") from error


def as_text(report: Report) -> str:
    """Aligned columns, numbers to the right."""
    width = max((len(name) for name, _ in lines(report.machine)), default=0)
    sections = ["\n".join(f"{name:<{width}}  {value}" for name, value in lines(report.machine))]
    for table in report.tables:
        note = f"\n\n{table.note}" if table.note else ""
        sections.append(f"{table.title}\n\n{_columns(table)}{note}")
    return "\n\n".join(sections)


def _columns(table: Table) -> str:
    rows = (table.head, *table.rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    rights = _numeric(table)
    lined = [
        "  ".join(
            f"{cell:>{width}}" if right else f"{cell:<{width}}"
            for cell, width, right in zip(row, widths, rights, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lined[0], "  ".join("─" * width for width in widths), *lined[1:]])


def as_markdown(report: Report) -> str:
    """Headings and tables, as ``docs/benchmarks`` keeps them."""
    facts = Table("Measured on", ("what", "value"), tuple(lines(report.machine)))
    return "\n\n".join(section(table) for table in (facts, *report.tables))


def section(table: Table) -> str:
    """One table in Markdown, under its heading."""
    rule = ["---:" if right else "---" for right in _numeric(table)]
    rows = [_cells(table.head), f"| {' | '.join(rule)} |", *map(_cells, table.rows)]
    note = f"\n\n{table.note}" if table.note else ""
    return f"### {table.title}\n\n" + "\n".join(rows) + note


def _cells(row: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _numeric(table: Table) -> list[bool]:
    """Which columns hold numbers: every cell begins with a digit, or is empty."""
    return [
        all(not row[i] or row[i][0].isdigit() for row in table.rows) and any(row[i] for row in table.rows)
        for i in range(len(table.head))
    ]
