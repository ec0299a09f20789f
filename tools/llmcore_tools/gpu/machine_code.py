"""What a compiled kernel is made of: registers, spills, the width of its loads, matrix instructions.

For NVIDIA's GPUs the binary is read by the disassembler that comes with Triton; for AMD's, Triton keeps the assembly.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WIDE = 16  # bytes that one thread can load at a time


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly: ``opcode`` with its modifiers, and the label that it may branch to."""

    opcode: str
    target: str = ""


@dataclass(frozen=True)
class Reading:
    """One compiled kernel.

    Attributes:
        registers: of a thread (AMD: vector registers, accumulators included).
        spills: instructions (NVIDIA) or registers (AMD) that keep values in local memory for want of registers.
        stack: bytes of local memory of a thread.
        shared: bytes of shared memory of a program.
        loaded: bytes that global loads of one thread bring, each counted once, in the innermost loops that have any;
            without such loops, everywhere.
        wide: those of them that come 16 bytes at a time.
        matrix: the matrix instructions' names, without shapes.
        dots: element types of the operands of ``tl.dot``, as Triton's IR has them.
        instructions: in all.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    loaded: int
    wide: int
    matrix: tuple[str, ...]
    dots: tuple[str, ...]
    instructions: int

    @property
    def wide_share(self) -> float:
        """Of the bytes loaded; 1 where nothing is loaded."""
        return self.wide / self.loaded if self.loaded else 1.0

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


DOT = re.compile(r"\btt\.dot(?:_scaled)?\b.*?: tensor<(?:\d+x)+(\w+)> \* tensor<(?:\d+x)+(\w+)>")


def dots_of(ttir: str) -> tuple[str, ...]:
    """The element types that dots of a kernel multiply, ``bf16`` or, of two types, ``bf16*i8``."""
    pairs = {match.groups() for match in DOT.finditer(ttir)}
    return tuple(sorted(a if a == b else f"{a}*{b}" for a, b in pairs))


def loops(code: Sequence[Instruction | str]) -> list[range]:
    """The innermost loops of ``code``, instructions and labels in order: from a label to a branch back to it."""
    place = {line: i for i, line in enumerate(code) if isinstance(line, str)}
    spans = {
        range(place[line.target], i)
        for i, line in enumerate(code)
        if isinstance(line, Instruction) and place.get(line.target, i) < i
    }
    return [a for a in spans if not any(b is not a and a.start <= b.start and b.stop <= a.stop for b in spans)]


def loads(code: Sequence[Instruction | str], width: Callable[[str], int]) -> tuple[int, int]:
    """Bytes that global loads bring and those that come 16 at a time, of the innermost loops that have any.

    ``width`` gives the bytes of an opcode that is a global load, 0 of any other.
    """
    inner = [i for span in loops(code) for i in span]
    for places in (inner, range(len(code))):
        found = [width(line.opcode) for i in places if isinstance(line := code[i], Instruction)]
        if any(found):
            return sum(found), sum(bytes_ for bytes_ in found if bytes_ >= WIDE)
    return 0, 0


# NVIDIA -------------------------------------------------------------------------------------------------------------

SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)$")
SASS_LABEL = re.compile(r"^(\.L_[\w$]+):")
SASS_TARGET = re.compile(r"`\((\.L_[\w$]+)\)")
SASS_MATRIX = re.compile(r"^[A-Z]{1,2}G?MMA$")
SASS_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
BULK = ("UBLKCP", "UTMALDG")  # copies of whole tiles, which no thread waits for


def sass(text: str) -> list[Instruction | str]:
    """The instructions and labels of ``nvdisasm -c``."""
    lines: list[Instruction | str] = []
    for line in text.splitlines():
        if label := SASS_LABEL.match(line):
            lines.append(label[1])
        elif (found := SASS.match(line)) and found[1] != "NOP":
            target = SASS_TARGET.search(found[2]) if found[1].startswith("BRA") else None
            lines.append(Instruction(found[1], target[1] if target else ""))
    return lines


def sass_width(opcode: str) -> int:
    """Bytes of one thread of a global load, cached, asynchronous or in bulk; 0 of another instruction."""
    name, *modifiers = opcode.split(".")
    if name in BULK:
        return WIDE
    if name not in ("LDG", "LDGSTS"):
        return 0
    return next((SASS_WIDTHS[each] for each in reversed(modifiers) if each in SASS_WIDTHS), 4)


def nvidia(cubin: bytes, shared: int, ttir: str) -> Reading:
    """Reads a binary for an NVIDIA GPU; ``shared`` and ``ttir`` are from Triton."""
    with TemporaryDirectory(prefix="llmcore-cubin-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        code = sass(_tool("nvdisasm", "-c", str(path)))
    registers, stack = (int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    opcodes = [line.opcode.split(".")[0] for line in code if isinstance(line, Instruction)]
    loaded, wide = loads(code, sass_width)
    matrix = tuple(sorted({opcode for opcode in opcodes if SASS_MATRIX.match(opcode)}))
    spills = sum(opcode in ("STL", "LDL") for opcode in opcodes)
    return Reading(registers, spills, stack, shared, loaded, wide, matrix, dots_of(ttir), len(opcodes))


def _tool(name: str, *arguments: str) -> str:
    """What one of the tools says that come with Triton."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


# AMD ----------------------------------------------------------------------------------------------------------------

GCN = re.compile(r"^\t([a-z]\w+)(?:\s+(.*))?$")
GCN_LABEL = re.compile(r"^(\.LBB\w+):")
GCN_LOAD = re.compile(r"^(?:global|buffer|flat)_load_(?:lds_)?(?P<kind>[a-z]+?)(?:x(?P<count>[234]))?(?:_.*)?$")
GCN_KINDS = {"ubyte": 1, "sbyte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}


def gcn(text: str) -> list[Instruction | str]:
    """The instructions and labels of an assembly for AMD."""
    lines: list[Instruction | str] = []
    for line in text.splitlines():
        if line.lstrip().startswith(".section"):
            break  # what follows describes the kernel
        if label := GCN_LABEL.match(line):
            lines.append(label[1])
        elif found := GCN.match(line.partition(";")[0].rstrip()):
            branch = found[1].startswith(("s_branch", "s_cbranch"))
            lines.append(Instruction(found[1], (found[2] or "").strip() if branch else ""))
    return lines


def gcn_width(opcode: str) -> int:
    """Bytes of one thread of a global load; 0 of another instruction."""
    found = GCN_LOAD.match(opcode)
    return GCN_KINDS.get(found["kind"], 0) * int(found["count"] or 1) if found else 0


def amd(assembly: str, shared: int, ttir: str) -> Reading:
    """Reads an assembly for an AMD GPU; ``shared`` and ``ttir`` are from Triton."""

    def said(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1])  # type: ignore[index]

    code = gcn(assembly)
    opcodes = [line.opcode for line in code if isinstance(line, Instruction)]
    loaded, wide = loads(code, gcn_width)
    matrix = tuple(sorted({"v_mfma" for opcode in opcodes if opcode.startswith(("v_mfma", "v_smfmac"))}))
    spills = said("vgpr_spill_count") + said("sgpr_spill_count")
    stack = said("private_segment_fixed_size")
    registers = said("vgpr_count")  # from gfx90a on the file is one, so accumulators are counted too
    return Reading(registers, spills, stack, shared, loaded, wide, matrix, dots_of(ttir), len(opcodes))
