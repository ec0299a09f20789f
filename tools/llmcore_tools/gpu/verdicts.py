"""What a compiled kernel must be like, and one line for all variants of a kernel.

Everything here is part of a step, so nothing may spill. A dot over small types must use matrix instructions, in prefill
on Hopper those of a whole warp group, as others reach little more than half of its peak. A launch that loads from a
tensor of a megabyte or more is bound by memory at small batches: most of what it loads from the largest must come 16
bytes at a time. Dots of prefill use what they load many times, and are bound by the matrix units: there 8 bytes will
do, as many as an asynchronous copy takes of int8 codes that a dot of 16-bit numbers will want (its tiles lie in shared
memory in runs of 8 elements).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from llmcore_tools.gpu.machine_code import UNKNOWN, Reading
from llmcore_triton.device import KNOWN, Target

LARGE = 1 << 20  # bytes; below, a launch takes as long as any launch does
WIDE = 16  # bytes that one thread can load at a time
WIDE_IN_PREFILL = 8  # the same of dots
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
    tensors: Mapping[int, tuple[int, int]]
    ops: Sequence[str]
    places: Sequence[str]
    reading: Reading | None
    error: str

    @classmethod
    def of(cls, target: str, described: Mapping[str, Any]) -> Compiled:
        """From plain data."""
        reading = described["reading"]
        if reading is not None:
            lists = {key: tuple(reading[key]) for key in ("matrix", "dots")}
            loads = {int(i): {int(width): n for width, n in found.items()} for i, found in reading["loads"].items()}
            reading = Reading(**{**reading, **lists, "loads": loads})
        tensors = {int(i): (memory, nbytes) for i, (memory, nbytes) in described["tensors"].items()}
        return cls(target, **{**described, "reading": reading, "tensors": tensors})

    @property
    def widths(self) -> Mapping[int, int]:
        """Width in bytes → loads from the largest tensor that it loads from; nothing where that is not large.

        Of several tensors as large as that, from the one with the narrowest loads. Addresses that went through shared
        memory may be anybody's: their loads count too.
        """
        if self.reading is None or not any(nbytes >= LARGE for _, nbytes in self.tensors.values()):
            return {}
        unknown = self.reading.loads.get(UNKNOWN, {})
        loaded: dict[tuple[int, int], Counter[int]] = {}
        for i, widths in self.reading.loads.items():
            if i in self.tensors and self.tensors[i][1] >= LARGE:
                memory, nbytes = self.tensors[i]
                loaded.setdefault((nbytes, memory), Counter()).update(widths)
        largest = max((nbytes for nbytes, _ in loaded), default=0)
        of_largest = [widths + Counter(unknown) for (nbytes, _), widths in loaded.items() if nbytes == largest]
        return min(of_largest, key=wide_share, default=unknown)

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
    return list(_wrong(variant.reading, variant.widths, KNOWN[variant.target], prefill))


def wide_share(widths: Mapping[int, int], wide: int = WIDE) -> float:
    """Of the bytes loaded, those that come ``wide`` or more at a time."""
    loaded = sum(width * count for width, count in widths.items())
    return sum(width * count for width, count in widths.items() if width >= wide) / max(loaded, 1)


def _wrong(reading: Reading, widths: Mapping[int, int], target: Target, prefill: bool) -> Iterable[str]:
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
    if 0 in reading.loads.get(UNKNOWN, {}):
        yield "loads of an unknown width"
    wide = WIDE_IN_PREFILL if prefill and reading.matrix else WIDE
    if widths and wide_share(widths, wide) < WIDE_SHARE:
        yield "narrow loads: " + ", ".join(f"{count} of {width} bytes" for width, count in sorted(widths.items()))


@dataclass
class Row:
    """One kernel on one target: the worst of its variants."""

    kernel: str
    target: str
    variants: int
    registers: int = 0
    spills: int = 0
    shared: int = 0
    wide: float | None = None  # None: no launch loads from a large tensor
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


HEAD: tuple[str, ...] = (
    *("kernel", "target", "variants", "registers", "spills", "shared KiB", "16-byte loads"),
    *("matrix", "instructions", "verdict"),
)


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
        if variant.widths:
            row.wide = min(wide_share(variant.widths), 1.0 if row.wide is None else row.wide)
    return row
