"""What a compiled kernel is made of: registers, spills, matrix instructions, and how wide it loads from which argument.

For NVIDIA's GPUs the binary is read by the disassembler that comes with Triton; for AMD's, Triton keeps the assembly.
Loads are read from the LLVM IR before it, where it still shows which argument an address comes from.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


@dataclass(frozen=True)
class Reading:
    """One compiled kernel.

    Attributes:
        registers: of a thread (AMD: vector registers, accumulators included).
        spills: instructions (NVIDIA) or registers (AMD) that keep values in local memory for want of registers. AMD's
            scalar registers that spill go to lanes of vector registers, and are not counted: where these do not
            suffice in turn, vector registers spill.
        stack: bytes of local memory of a thread.
        shared: bytes of shared memory of a program.
        loads: argument (by its number, constants left out; -1: not known) → width in bytes → loads of that width in
            the code.
        matrix: the matrix instructions' names, without shapes.
        dots: element types of the operands of ``tl.dot``, as Triton's IR has them.
        instructions: in all.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    loads: Mapping[int, Mapping[int, int]]
    matrix: tuple[str, ...]
    dots: tuple[str, ...]
    instructions: int

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


DOT = re.compile(r"\btt\.dot(?:_scaled)?\b.*?: tensor<(?:\d+x)+(\w+)> \* tensor<(?:\d+x)+(\w+)>")


def dots_of(ttir: str) -> tuple[str, ...]:
    """The element types that dots of a kernel multiply, ``bf16`` or, of two types, ``bf16*i8``."""
    pairs = {match.groups() for match in DOT.finditer(ttir)}
    return tuple(sorted(a if a == b else f"{a}*{b}" for a, b in pairs))


IR_NAME = re.compile(r"%[\w.]+")
IR_PARAMETERS = re.compile(r"^define [^(]*@\w+\((.*)\)[^)]*\{", re.MULTILINE)
IR_ADDRESS = r"getelementptr|phi ptr|select|make\.buffer\.rsrc|addrspacecast"
IR_POINTER = re.compile(rf"^\s*(%[\w.]+) = .*?\b(?:{IR_ADDRESS})\b(.*)$")
NAME = r"(?:\w+ )*(%[\w.]+)"  # after a type and attributes
IR_LOAD = re.compile(r"= load (?:<(\d+) x )?([a-z]+\d*)>?, ptr addrspace\(1\) (%[\w.]+), align (\d+)")
IR_BUFFER = re.compile(rf"buffer\.load\.(?:v(\d+))?([a-z]+\d+)\(ptr addrspace\(8\) {NAME}")
IR_TO_SHARED = re.compile(rf"load\.[\w.]*lds[\w.]*\(ptr addrspace\([18]\) {NAME}, ptr addrspace\(3\) .*?, i32 (\d+)")
IR_PTX = re.compile(rf"(?<![a-z])ld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+) .*ptr addrspace\(1\) {NAME}")
IR_COPY = re.compile(rf"cp\.async\.c[ag]\.shared\.global.*?, (0x[0-9a-f]+|\d+)[,;].*ptr addrspace\(1\) {NAME}")
IR_ANY_LOAD = re.compile(
    r"= load .*addrspace\(1\)|call .*(?:ld\.global|cp\.async\.c[ag]\.shared|buffer\.load|load\.[\w.]*lds)"
)
UNKNOWN = -1
IR_SIZES = {"half": 16, "bfloat": 16, "float": 32, "double": 64}


def loads_of(ir: str) -> dict[int, dict[int, int]]:
    """The global loads in LLVM IR: argument → width in bytes → how many; those from nobody knows where under -1."""
    roots = _roots(ir)
    found: dict[int, Counter[int]] = {}
    for line in filter(IR_ANY_LOAD.search, ir.splitlines()):
        name, width = _load(line)
        for argument in roots.get(name, (UNKNOWN,)):
            found.setdefault(argument, Counter())[width] += 1
    return {argument: dict(sorted(widths.items())) for argument, widths in sorted(found.items())}


def _load(line: str) -> tuple[str, int]:
    """The pointer and the bytes of a line that loads; LLVM splits a load that is not aligned to its size.

    Of another line, no pointer.
    """
    if match := IR_LOAD.search(line):
        count, kind, name, alignment = match.groups()
        return name, min(int(count or 1) * _bits(kind) // 8, int(alignment))
    if match := IR_PTX.search(line):
        return match[3], int(match[1] or 1) * int(match[2]) // 8
    if match := IR_COPY.search(line):
        return match[2], int(match[1], 0)
    if match := IR_TO_SHARED.search(line):
        return match[1], int(match[2])
    if match := IR_BUFFER.search(line):
        return match[3], int(match[1] or 1) * _bits(match[2]) // 8
    return "", 0


def _bits(kind: str) -> int:
    return IR_SIZES.get(kind) or int(re.sub(r"\D", "", kind))


def _roots(ir: str) -> dict[str, set[int]]:
    """Pointer → the arguments that it is made from; until nothing changes, for loops carry pointers around."""
    parameters = IR_PARAMETERS.search(ir)
    split = re.split(r",\s*(?![^(]*\))", parameters[1]) if parameters else []
    roots = {IR_NAME.findall(text)[-1]: {i} for i, text in enumerate(split) if "ptr" in text}
    made = [(match[1], IR_NAME.findall(match[2])) for line in ir.splitlines() if (match := IR_POINTER.match(line))]
    changed = True
    while changed:
        changed = False
        for name, parts in made:
            of = set().union(*(roots.get(part, set()) for part in parts))
            if not of <= roots.get(name, set()):
                roots[name] = roots.get(name, set()) | of
                changed = True
    return roots


# NVIDIA -------------------------------------------------------------------------------------------------------------

SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
SASS_MATRIX = re.compile(r"^[A-Z]{1,2}G?MMA$")


def sass(text: str) -> list[str]:
    """The opcodes of ``nvdisasm -c``, padding left out."""
    return [match[1] for line in text.splitlines() if (match := SASS.match(line)) and match[1] != "NOP"]


def nvidia(cubin: bytes, shared: int, ttir: str, ir: str) -> Reading:
    """Reads a binary for an NVIDIA GPU; the other arguments are from Triton."""
    with TemporaryDirectory(prefix="llmcore-cubin-") as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        code = [opcode.partition(".")[0] for opcode in sass(_tool("nvdisasm", "-c", str(path)))]
    registers, stack = (int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))  # type: ignore[index]
    matrix = tuple(sorted({opcode for opcode in code if SASS_MATRIX.match(opcode)}))
    spills = sum(opcode in ("STL", "LDL") for opcode in code)
    return Reading(registers, spills, stack, shared, loads_of(ir), matrix, dots_of(ttir), len(code))


def _tool(name: str, *arguments: str) -> str:
    """What one of the tools says that come with Triton."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout


# AMD ----------------------------------------------------------------------------------------------------------------

GCN = re.compile(r"^\t([a-z]\w+)(?:\s|$)")


def gcn(text: str) -> list[str]:
    """The opcodes of an assembly for AMD."""
    code = re.split(r"^\s*\.section", text, maxsplit=1, flags=re.MULTILINE)[0]  # what follows describes the kernel
    return [match[1] for line in code.splitlines() if (match := GCN.match(line))]


def amd(assembly: str, shared: int, ttir: str, ir: str) -> Reading:
    """Reads an assembly for an AMD GPU; the other arguments are from Triton."""

    def said(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", assembly)[1])  # type: ignore[index]

    code = gcn(assembly)
    matrix = ("v_mfma",) if any(opcode.startswith(("v_mfma", "v_smfmac")) for opcode in code) else ()
    spills = said("vgpr_spill_count")
    registers = said("vgpr_count")  # from gfx90a on the file is one, so accumulators are counted too
    stack = said("private_segment_fixed_size")
    return Reading(registers, spills, stack, shared, loads_of(ir), matrix, dots_of(ttir), len(code))
