"""What is composed without Hydra is what Hydra would have composed, and all else is left to Hydra."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.resources import files
from itertools import zip_longest
from typing import Any

import pytest

from helpers.settings import COMMAND, INSTALLED, Jobs
from llmcore.config import compose, direct
from llmcore.config.schema import Config

GROUPS = ("model", "backend", "sampling", "engine")
SAMPLES = {"int": "3", "float": "0.5", "bool": "true", "Compute": "exact"}
SAMPLES |= {"int | None": "7", "str | None": "/tmp/some-where_1.x", "str": "there"}


def keys(settings: Any = None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key that holds one value, with its type."""
    for field in fields(settings or Config()):
        inner = getattr(settings or Config(), field.name)
        if is_dataclass(inner):
            yield from keys(inner, f"{prefix}{field.name}.")
        elif field.type in SAMPLES:
            yield prefix + field.name, str(field.type)


def through_hydra(argv: list[str]) -> Config:
    """The one config that Hydra composes."""
    found: list[Config] = []

    def task(job: Any) -> int:
        found.append(job.config)
        return 0

    assert compose.run(COMMAND, argv, task, INSTALLED, lambda error: pytest.fail(str(error))) == 0
    (config,) = found
    return config


OPTIONS = {
    group: [
        f"{group}={name}"
        for file in (files("llmcore_conf") / group).iterdir()
        if (name := file.name.removesuffix(".yaml")) not in ("custom", "triton", "triton_fp8", "triton_w8a8")
    ]
    for group in GROUPS
}
VALUES = [f"{key}={SAMPLES[kind]}" for key, kind in keys() if key not in ("backend.name", "model.ref", "model.sha256")]
LINES = [
    [],
    *([option for option in line if option] for line in zip_longest(*OPTIONS.values())),
    VALUES[::2],
    VALUES[1::2],
    ["sampling.temperature=1", "sampling=top_k", "seed=0", "sampling.top_k=5", "backend=torch"],
    ["model=./some/model-1.5.gguf", "threads=2"],
    ["model=org/name:Q4_K_M"],
    ["model=pypi:name/==1.0#in/side.gguf"],
    ["engine.kv_dtype=int8", "engine.page_size=32"],
    ["sampling.ignore_eos=false", "sampling.presence_penalty=-2", "sampling.frequency_penalty=-1.25"],
]


def test_every_kind_of_key_is_tried() -> None:
    assert sum(map(len, OPTIONS.values())) > 9 and len(VALUES) > 18


@pytest.mark.parametrize("argv", LINES, ids=" ".join)
def test_equals_what_hydra_composes(argv: list[str]) -> None:
    found = direct.compose("infer", argv, INSTALLED.is_reference)
    assert repr(found) == repr(through_hydra(argv))  # the types are the same too


@pytest.mark.parametrize(
    "argv",
    [
        *(["--cfg", "job"], ["-m", "seed=1,2"], ["seed=1,2"], ["seed=1", "seed=2"], ["foo"], ["query=bash"]),
        *(["thread=1"], ["backend.name=torch"], ["model.ref=/p"], ["model=custom"], ["model=smolm"], ["backend=mine"]),
        *(["model=null"], ["backend=../backend/numba"], ["model='smollm2'"], ["hydra.run.dir=x"], ["+seed=1"]),
        *(["seed=null"], ["seed=1.5"], ["threads=abc"], ["threads=true"], ["threads=01"], ["max_new_tokens=1e5"]),
        *(["max_new_tokens=1_000"], ["sampling.temperature=nan"], ["sampling.temperature=.5"], ["compute=fast"]),
        *(["engine.kv_dtype=int4"],),
        *(["cache_dir=5"], ["cache_dir=null"], ["cache_dir=${oc.env:HOME}"], ["cache_dir=a b"], ["cache_dir=on"]),
        *(["sampling.stop=[a]"], ["sampling.stop=a"], ["engine.buckets=[1]"], ["sampling=5"], ["sampling.top_k.x=1"]),
        *(["backend.ops.rope=torch"], ["~backend"], ["backend={name: x}"], ["model=a/b,c/d"], ["model=choice(a/b)"]),
    ],
    ids=" ".join,
)
def test_leaves_to_hydra(argv: list[str]) -> None:
    assert direct.compose("infer", argv, INSTALLED.is_reference) is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["sampling.top_p=2"], "sampling.top_p is 2.0"), (["backend=triton"], "no backend 'triton'")],
)
def test_is_held_to_the_ranges(argv: list[str], words: str) -> None:
    jobs = Jobs()
    assert jobs.run(argv) == 2
    assert not jobs.jobs and words in jobs.errors[0]


def test_a_plain_command_line_imports_no_hydra() -> None:
    code = """
import sys
from llmcore.cli.settings import run_with_settings
from llmcore.config.command import Command
jobs = []
def task(job):
    jobs.append(job)
    return 0
assert run_with_settings(Command("x", ""), ["backend=numba", "max_new_tokens=1"], task) == 0
assert jobs[0].config.max_new_tokens == 1
print([name for name in ("hydra", "omegaconf", "numpy", "torch", "numba") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
