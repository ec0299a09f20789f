"""What is read out of compiled kernels: from texts as the tools write them, each with its trap."""

from __future__ import annotations

import pytest

from llmcore_tools.gpu import machine_code
from llmcore_tools.gpu.machine_code import Reading, dots_of, gcn, loads_of, sass
from llmcore_tools.gpu.verdicts import Compiled, complaints, rows, wide_share

SASS = r"""
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS"
.text.add:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0110*/              @!P0 LDG.E.128 R4, desc[UR4][R12.64] ;
.L_x_0:
        /*0150*/                   HFMA2.MMA.BF16_V2 R4, R4, 1, 1, R8 ;
        /*0160*/             @!UP1 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0170*/                   STL.64 [R1+0x8], R2 ;
        /*01c0*/              @P0  BRA `(.L_x_0);
        /*01d0*/                   NOP;
.L_x_1:
"""


def test_sass() -> None:
    code = sass(SASS)
    assert code == ["LDC", "LDG.E.128", "HFMA2.MMA.BF16_V2", "HGMMA.64x64x16.F32.BF16", "STL.64", "BRA"]
    names = [opcode.partition(".")[0] for opcode in code]
    assert [name for name in names if machine_code.SASS_MATRIX.match(name)] == ["HGMMA"], "HFMA2.MMA is an addition"


@pytest.mark.parametrize("name", ["HMMA", "IMMA", "QGMMA", "DMMA", "HGMMA", "IGMMA"])
def test_matrix_instructions(name: str) -> None:
    assert machine_code.SASS_MATRIX.match(name) and not machine_code.SASS_MATRIX.match(name + "X")


GCN = """
	.amdgcn_target "amdgcn-amd-amdhsa--gfx942"
add:                                    ; @add
	s_load_dwordx2 s[2:3], s[0:1], 0x0
.LBB0_1:                                ; =>This Inner Loop Header
	global_load_dwordx4 v[0:3], v[4:5], off
	v_mfma_f32_16x16x16_bf16 v[0:3], v[4:5], v[6:7], 0
	s_endpgm
	.section	.rodata,"a",@progbits
	.p2align	6, 0x0
	not_an_instruction v0
    .private_segment_fixed_size: 24
    .sgpr_spill_count: 2
    .vgpr_count:     40
    .vgpr_spill_count: 3
"""


def test_gcn() -> None:
    found = machine_code.amd(GCN, 512, "", "")
    assert gcn(GCN) == ["s_load_dwordx2", "global_load_dwordx4", "v_mfma_f32_16x16x16_bf16", "s_endpgm"]
    assert (found.registers, found.spills, found.stack, found.shared) == (40, 3, 24, 512)
    assert (found.matrix, found.instructions) == (("v_mfma",), 4)


ON_NVIDIA = """
define ptx_kernel void @f(ptr addrspace(1) %0, i32 %1, ptr addrspace(1) readonly captures(none) %2) #0 {
  %4 = getelementptr bfloat, ptr addrspace(1) %0, i64 %9, !dbg !1
  br label %loop
loop:
  %5 = phi ptr addrspace(1) [ %4, %0 ], [ %6, %loop ]
  %6 = getelementptr i8, ptr addrspace(1) %5, i64 64
  %7 = call { i32, i32, i32, i32 } asm "@$9 ld.global.v4.b32 { $0, $1, $2, $3 };", "=r"(ptr addrspace(1) %5, i1 %8) #3
  call void asm "cp.async.cg.shared.global [ $0 ], [ $1 ], 0x10;", "r"(ptr addrspace(3) %9, ptr addrspace(1) %2)
  %12 = call i32 asm "mov $0, 0x0;\\0A\\09ld.global.L1::evict_first.b32 { $0 }, [ $1 ];", "=r,l"(ptr addrspace(1) %6)
  %10 = tail call i16 asm sideeffect "@$2 ld.global.b16 { $0 }, [ $1 + 0 ];", "=h,l,b"(ptr addrspace(1) %2, i1 %8)
  call void asm "cp.async.ca.shared.global [ $0 ], [ $1 ], 0x8, $2;", "r"(ptr addrspace(3) %9, ptr addrspace(1) %96)
  %96 = select i1 %8, ptr addrspace(1) %2, ptr addrspace(1) %0
  %11 = load i32, ptr addrspace(3) %5, align 4
  store <4 x i32> %1, ptr addrspace(1) %0, align 16
"""
ON_AMD = """
define amdgpu_kernel void @f(ptr addrspace(1) inreg readonly captures(none) %0, ptr addrspace(1) inreg %1, i32 %2) {
  %38 = tail call ptr addrspace(8) @llvm.amdgcn.make.buffer.rsrc.p8.p1(ptr addrspace(1) %0, i16 0, i64 9, i32 1)
  %41 = tail call <4 x i32> @llvm.amdgcn.raw.ptr.buffer.load.v4i32(ptr addrspace(8) %38, i32 %40, i32 0, i32 0)
  %42 = tail call i8 @llvm.amdgcn.raw.ptr.buffer.load.i8(ptr addrspace(8) %38, i32 %40, i32 0, i32 0)
  %43 = load <16 x i8>, ptr addrspace(1) %1, align 16, !dbg !61
  %44 = load <4 x half>, ptr addrspace(1) %1, align 4
  %45 = load bfloat, ptr addrspace(1) %1, align 2
  call void @llvm.amdgcn.raw.ptr.buffer.load.lds(ptr addrspace(8) %38, ptr addrspace(3) %7, i32 16, i32 %1, i32 0)
"""


def test_loads_are_known_by_their_argument() -> None:
    """Through loops, selections and buffers; what is loaded from shared memory, or stored, is none."""
    assert loads_of(ON_NVIDIA) == {0: {4: 1, 8: 1, 16: 1}, 2: {2: 1, 8: 1, 16: 1}}
    assert loads_of(ON_AMD) == {0: {1: 1, 16: 2}, 1: {2: 1, 4: 1, 16: 1}}, "an unaligned load is split"


def test_loads_from_elsewhere_are_not_passed_over() -> None:
    """Neither a pointer out of memory, nor an instruction that is written in another way."""
    pointer = "  %1 = load i32, ptr addrspace(1) %0, align 4\n  %2 = inttoptr i64 %9 to ptr addrspace(1)\n"
    assert loads_of(pointer) == {-1: {4: 1}}
    assert loads_of('  call void asm "ld.global.new.thing [$0];", "r"(i64 %1)') == {-1: {0: 1}}
    unread = compiled(Reading(**{**GOOD, "loads": {0: {16: 1}, -1: {0: 1}}}))  # type: ignore[arg-type]
    assert complaints(unread) == ["loads of an unknown width"]


def test_dots() -> None:
    assert dots_of("%1 = tt.dot %a, %b, %c : tensor<16x64xbf16> * tensor<64x32xbf16> -> tensor<16x32xf32>") == ("bf16",)
    assert dots_of("%1 = tt.dot %a, %b, %c, inputPrecision = tf32 : tensor<4x4xf32> * tensor<4x4xf32>") == ("f32",)
    assert dots_of("tt.dot %a : tensor<4x4xf16> * tensor<4x4xi8>\ntt.dot_scaled %q : tensor<4xf8> * tensor<4xf8>") == (
        "f16*i8",
        "f8",
    )
    assert dots_of("tt.load %x : tensor<4x4x!tt.ptr<f16>>") == ()


def compiled(reading: Reading | None, target: str = "sm_90", **more: object) -> Compiled:
    """A variant of which only some things matter."""
    facts = {"types": (), "constants": {}, "options": {}, "grid": (1,), "ops": ("linear",), "error": ""}
    given = {**facts, "tensors": {0: (0, 4 << 20)}, "places": ("m BF16, x cache, decode 8",), **more}
    return Compiled(target, "k:f", reading=reading, **given)  # type: ignore[arg-type]


GOOD = {"registers": 32, "spills": 0, "stack": 0, "shared": 1024, "loads": {0: {16: 4}}, "instructions": 10}
BOTH = {"loads": {0: {16: 4}, 1: {2: 9}}}
GOOD |= {"matrix": ("HGMMA",), "dots": ("bf16",)}


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({}, {}, []),
        ({"spills": 1}, {}, ["spills"]),
        ({"shared": 232449}, {}, ["shared memory: 232449 bytes, of 232448"]),
        ({"shared": 232448}, {}, []),
        ({"shared": 166913}, {"target": "sm_80"}, ["shared memory: 166913 bytes, of 166912"]),
        ({"shared": 65537}, {"target": "gfx942"}, ["shared memory: 65537 bytes, of 65536"]),
        ({"matrix": ()}, {}, ["a dot without matrix instructions"]),
        ({"matrix": (), "dots": ()}, {}, []),
        ({"dots": ("f32",)}, {}, ["a dot of float32"]),
        ({"matrix": ("HMMA",)}, {}, []),
        ({"matrix": ("HMMA",)}, {"places": ("m, prefill 2048",)}, ["prefill without wgmma"]),
        ({"matrix": ("HMMA",)}, {"places": ("m, prefill 2048", "m, decode 8")}, []),
        ({"matrix": ("HMMA",)}, {"places": ("m, prefill 2048",), "target": "sm_80"}, []),
        ({"loads": {0: {2: 8, 16: 1}}}, {}, []),
        ({"loads": {0: {2: 9, 16: 1}}}, {}, ["narrow loads: 9 of 2 bytes, 1 of 16 bytes"]),
        ({"loads": {0: {2: 9, 16: 1}}}, {"tensors": {0: (0, (1 << 20) - 1)}}, []),
        ({"loads": {0: {8: 3, 16: 1}}}, {}, ["narrow loads: 3 of 8 bytes, 1 of 16 bytes"]),
        ({"loads": {0: {4: 2, 8: 1}}}, {"places": ("m, prefill 2048",)}, []),
        ({"loads": {0: {4: 3, 8: 1}}}, {"places": ("m, prefill 2048",)}, ["narrow loads: 3 of 4 bytes, 1 of 8 bytes"]),
        ({"loads": {0: {8: 9}}}, {"places": ("m, prefill 2048", "m, decode 8")}, ["narrow loads: 9 of 8 bytes"]),
        (
            {"loads": {0: {8: 9}}, "matrix": (), "dots": ()},
            {"places": ("m, prefill 2048",)},
            ["narrow loads: 9 of 8 bytes"],
        ),
        ({"loads": {0: {16: 4}, 1: {2: 99}}}, {"tensors": {0: (0, 4 << 20), 1: (1, 2 << 20)}}, []),
        (
            {"loads": {0: {16: 4}, 1: {2: 9}}},
            {"tensors": {0: (0, 4 << 20), 1: (1, 4 << 20)}},
            ["narrow loads: 9 of 2 bytes"],
        ),
        (BOTH, {"tensors": {0: (0, 4 << 20), 1: (0, 4 << 20)}}, []),
        ({"loads": {1: {2: 9}}}, {"tensors": {0: (0, 4 << 20), 1: (1, 2 << 20)}}, ["narrow loads: 9 of 2 bytes"]),
        ({"loads": {1: {2: 9}}}, {}, []),
        ({"loads": {0: {16: 1}, -1: {2: 9}}}, {}, ["narrow loads: 9 of 2 bytes, 1 of 16 bytes"]),
        ({"loads": {-1: {2: 9}}}, {}, ["narrow loads: 9 of 2 bytes"]),
        ({"loads": {-1: {2: 9}}}, {"tensors": {0: (0, 4096)}}, []),
    ],
)
def test_verdicts(changes: dict[str, object], more: dict[str, object], said: list[str]) -> None:
    """Of tensors as large as the largest that is loaded from, the worst counts; arguments over one memory are one."""
    assert complaints(compiled(Reading(**{**GOOD, **changes}), **more)) == said  # type: ignore[arg-type]


def test_what_does_not_compile_is_said_with_its_error() -> None:
    assert complaints(compiled(None, error="CompilationError: no")) == ["does not compile: CompilationError: no"]
    assert complaints(compiled(None)) == [], "recorded alone"


def test_a_row_is_the_worst_of_its_variants() -> None:
    some = Reading(**{**GOOD, "registers": 64, "matrix": ("HMMA",), "loads": {0: {2: 4, 16: 2}}})  # type: ignore[arg-type]
    bad = Reading(**{**GOOD, "spills": 7, "instructions": 99, "loads": {}})  # type: ignore[arg-type]
    (first, second) = rows([compiled(bad), compiled(some), compiled(some, "sm_80"), compiled(None, error="e: x")])
    assert (first.target, first.variants, first.wide) == ("sm_80", 1, 0.8)
    assert (second.registers, second.spills, second.instructions, second.variants) == (64, 7, 99, 3)
    assert second.matrix == ("HGMMA", "HMMA") and second.wide == 0.8
    assert second.verdict == "spills (1); does not compile (1)"
    assert second.cells[-2:] == ("99", "spills (1); does not compile (1)") and first.cells[-1] == "ok"


def test_share_of_wide_loads() -> None:
    assert wide_share({16: 3, 4: 4}) == 0.75 and wide_share({8: 1}) == 0.0
