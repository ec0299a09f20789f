"""Weights stay mapped: what a loaded model takes for itself beyond arena, cache and repacks is small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys

def private():  # kB that belong to this process alone and to no file
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

import numba, tokenizers, llmcore.llm
from llmcore import LLM, SamplingParams
own = private()
llm = LLM(sys.argv[1], backend="numba", threads=2)
loaded = private() - own
llm.generate("The capital of France is", SamplingParams(max_tokens=2))
memory = llm.memory
declared = memory.arena_bytes + memory.weights_repacked_bytes
print(json.dumps({"loaded": loaded * 1024, "declared": declared, "mapped": memory.weights_mapped_bytes,
                  "torch": "torch" in sys.modules}))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="counts private memory as Linux does")
def test_private_memory_of_a_loaded_model(smollm2_path):
    result = subprocess.run([sys.executable, "-c", SCRIPT, smollm2_path], capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["mapped"] > 96_000_000
    assert found["loaded"] - found["declared"] < 60_000_000
    assert not found["torch"]  # the CPU path answers without importing it
