"""Weights stay mapped: what a loaded model takes for itself beyond arena, cache and repacks is small.

Repacked weights that are kept on disk are mapped too.

Counted over a bare interpreter: what numpy, LLVM's linker, the tokenizer and our own code take is included.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
def private():  # kB that belong to no file; "Private_Dirty" counts a model's pages too until they are written back
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

own = private()
import ctypes, json, sys

PR_SET_THP_DISABLE = 41  # else one touched KV page of a layer may count as a huge one of 2 MB
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)

from llmcore import LLM, SamplingParams
kept = sys.argv[3] == "kept"
llm = LLM(sys.argv[1], backend="numba", compute=sys.argv[2], threads=2, cache_packed=kept)
tokens = llm.generate(list(range(1000, 1450)), SamplingParams(max_tokens=2, ignore_eos=True))[0]
used = private() - own
memory, sizes = llm.memory, llm.runner.sizes
touched = -(-len(tokens.prompt_token_ids) // sizes.page_size) * memory.kv_bytes // sizes.pages
declared = memory.arena_bytes + (0 if kept else memory.weights_repacked_bytes) + touched
print(json.dumps({"used": used * 1024, "declared": declared, "mapped": memory.weights_mapped_bytes,
                  "repacked": memory.weights_repacked_bytes,
                  "heavy": sorted({"torch", "numba", "hydra", "omegaconf", "jinja2"} & sys.modules.keys())}))
"""


PEAK = """
import ctypes, json, sys

PR_SET_THP_DISABLE = 41  # else what is touched of a block counts as pages of 2 MB
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)

from llmcore import LLM, SamplingParams
from llmcore.engine.load import EngineSettings

engine = EngineSettings(max_context=2048, max_seqs=1)
llm = LLM(sys.argv[1], backend="numba", threads=2, engine=engine, cache_dir=sys.argv[2])
llm.generate(list(range(1000, 3000)), SamplingParams(max_tokens=48, ignore_eos=True))
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
print(json.dumps({"peak": peak, "packed": llm.memory.weights_repacked_bytes, "kv": llm.memory.kv_bytes}))
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="counts memory as Linux does")


@needs_proc
@pytest.mark.parametrize(("compute", "packed"), [("auto", "kept"), ("auto", "private"), ("exact", "private")])
def test_private_memory_of_a_loaded_model(smollm2_path, compute, packed):
    command = [sys.executable, "-c", SCRIPT, smollm2_path, compute, packed]
    for _ in range(2):  # the first run compiles and packs where nothing is cached: a compiler is no part of a model
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["mapped"] + found["repacked"] > 96_000_000
    assert found["repacked"] == 0 or compute == "auto"  # exact kernels read the weights where they are mapped
    assert found["used"] - found["declared"] < 60_000_000
    assert not found["heavy"]  # the CPU path answers without importing them


@needs_proc
@pytest.mark.slow
def test_peak_of_a_process_with_a_full_context(requantized, tmp_path):
    """All that is resident, the interpreter and mapped files included: a quarter more than weights, cache and 60 MB."""
    command = [sys.executable, "-c", PEAK, requantized("Q8_0"), tmp_path]
    for _ in range(2):  # the first run packs
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    print({name: f"{size / 1e6:.1f} MB" for name, size in found.items()})
    assert found["packed"] > 140_000_000
    assert found["kv"] == 30 * 2 * 3 * 64 * 2 * 2048  # bfloat16
    assert found["peak"] <= 1.25 * (found["packed"] + found["kv"] + 60_000_000)
