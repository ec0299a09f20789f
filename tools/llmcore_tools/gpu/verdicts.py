"""What a compiled kernel must be like, and one line for all variants of a kernel.

Everything here is part of a step, so nothing may spill. A dot over small types must use matrix instructions, in prefill on
Hopper those of a whole warp group, as others reach little more than half of its peak. A launch that moves a megabyte or
more is bound by memory at small batches: most of what it loads must come 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from llmcore_tools.gpu.machine_code import Reading
from llmcore_triton.device import KNOWN, Target

MOVED = 1 << 20  # bytes; below, a launch takes as long as any launch does
WIDE_SHARE = 0.5  # of the bytes that are loaded
WARP_GROUP = {"HGMMA", "IGMMA", "QGMMA"}


@dataclass(frozen=True)
class Compiled:
    """One variant as the child process describes it."""

    target: str
    kernel: str
    types: Sequence[str]
    constants: Mapping[str, str]
    options: Mapping[str, Any]
    grid: Sequence[int]
    moved: int
    ops: Sequence[str]
    places: Sequence[str]
    reading: Reading | None
    error: str

    @classmethod
    def of(cls, target: str, described: Mapping[str, Any]) -> Compiled:
        """From plain data."""
        reading = described["reading"]
        if reading is not None:
            reading = Reading(**{**reading, "matrix": tuple(reading["matrix"]), "dots": tuple(reading["dots"])})
        return cls(target, **{**described, "reading": reading})

    @property
    def name(self) -> str:
        """With what it was specialized and launched for."""
        values = [f"{key}={value}" for key, value in {**self.constants, **self.options}.items()]
        return f"{self.kernel}({', '.join([*self.types, *values])})"


def complaints(variant: Compiled) -> list[str]:
    """What is wrong with one variant, most serious first."""
    if variant.reading is None:
        return [f"does not compile: {variant.error}"] if variant.error else []
    prefill = bool(variant.places) and all("prefill" in place for place in variant.places)
    return list(_wrong(variant.reading, variant.moved, KNOWN[variant.target], prefill))


def _wrong(reading: Reading, moved: int, target: Target, prefill: bool) -> Iterable[str]:
    if reading.shared > target.shared:
        yield f"shared memory: {reading.shared} bytes, of {target.shared}"
    if reading.spills:
        yield "spills"
    if any("32" in dot or "64" in dot for dot in reading.dots):
        yield "a dot of float32"
    elif reading.dots and not reading.matrix:
        yield "a dot without matrix instructions"
    elif prefill and target.name == "sm_90" and reading.dots and not WARP_GROUP & {*reading.matrix}:
        yield "prefill without wgmma"
    if moved >= MOVED and reading.wide_share < WIDE_SHARE:
        yield "narrow loads"


@dataclass
class Row:
    """One kernel on one target: the worst of its variants."""

    kernel: str
    target: str
    variants: int
    registers: int = 0
    spills: int = 0
    shared: int = 0
    wide: float | None = None  # None: nothing that it launches is bound by memory
    matrix: tuple[str, ...] = ()
    instructions: int = 0
    complaints: dict[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``ok``, or what is wrong and with how many variants."""
        return "; ".join(f"{text} ({count})" for text, count in self.complaints.items()) or "ok"

    @property
    def cells(self) -> tuple[str, ...]:
        """As a line of a table."""
        wide = "–" if self.wide is None else f"{self.wide:.0%}"
        numbers = (self.registers, self.spills, f"{self.shared / 1024:.1f}", wide)
        name = self.kernel.removeprefix("llmcore_triton.").replace(":", ".")
        rest = (" ".join(self.matrix) or "–", self.instructions, self.verdict)
        return tuple(map(str, (name, self.target, self.variants, *numbers, *rest)))


HEAD = ("kernel", "target", "variants", "registers", "spills", "shared KiB", "16-byte loads", "matrix", "instructions")
HEAD = (*HEAD, "verdict")


def rows(variants: Iterable[Compiled]) -> list[Row]:
    """One row for each kernel and target, sorted."""

    def key(each: Compiled) -> tuple[str, str]:
        return each.kernel, each.target

    return [_row(name, target, list(group)) for (name, target), group in groupby(sorted(variants, key=key), key)]


def _row(kernel: str, target: str, variants: Sequence[Compiled]) -> Row:
    row = Row(kernel, target, len(variants))
    for variant in variants:
        for text in complaints(variant):
            short = text.partition(":")[0]
            row.complaints[short] = row.complaints.get(short, 0) + 1
        reading = variant.reading
        if reading is None:
            continue
        row.registers = max(row.registers, reading.registers)
        row.spills = max(row.spills, reading.spills)
        row.shared = max(row.shared, reading.shared)
        row.instructions = max(row.instructions, reading.instructions)
        row.matrix = tuple(sorted({*row.matrix, *reading.matrix}))
        if variant.moved >= MOVED:
            row.wide = min(reading.wide_share, 1.0 if row.wide is None else row.wide)
    return row
