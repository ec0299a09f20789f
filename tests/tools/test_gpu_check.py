"""``llmcore gpu-check``: stages survive one another, a run goes on where it was, the report says what there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers.gpu_stages import HERE
from llmcore.cli.main import main
from llmcore.errors import ConfigError
from llmcore_tools.gpu import check, check_run, check_stages
from llmcore_tools.gpu.check_context import Context, Finding, read_part, read_stage, stage_file
from llmcore_tools.gpu.check_report import compose, write_report
from llmcore_tools.gpu.check_stages import NAMES, STAGES, Stage, fails, pending, run_all, run_stage


def stage(name: str, share: int = 100) -> Stage:
    return Stage(name, "", f"{HERE}:{name}", share)


def quiet(_: str) -> None:
    """Nobody listens."""


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context("good", tmp_path, False, time.monotonic() + 60)


# -- stages


def test_a_stage_leaves_what_it_found_and_nothing_else(tmp_path: Path) -> None:
    found = run_stage(tmp_path, stage("good"), 30, False)
    assert found["status"] == "done" and found["error"] == "" and not found["rehearsal"]
    assert [f["what"] for f in found["findings"]] == ["first", "second"]
    assert found["facts"] == {"read_gb_s": 4000.0}
    assert read_stage(tmp_path, "good") == found and not fails(found)
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]


def test_what_was_found_before_a_stage_failed_is_kept(tmp_path: Path) -> None:
    found = run_stage(tmp_path, stage("raising"), 30, False)
    assert found["status"] == "failed with exit code 1" and fails(found)
    assert [f["what"] for f in found["findings"]] == ["before"]
    assert found["error"].endswith("RuntimeError: nobody expected this")


def test_a_stage_that_takes_its_process_with_it(tmp_path: Path) -> None:
    """The finding that it was at is cut off; those before it are whole."""
    found = run_stage(tmp_path, stage("crashing"), 30, False)
    assert found["status"] == "ended by signal 11" and fails(found)
    assert [f["what"] for f in found["findings"]] == ["before"]


def test_a_stage_that_hangs_is_stopped_with_all_that_it_has_started(tmp_path: Path) -> None:
    started = time.monotonic()
    found = run_stage(tmp_path, stage("hanging"), 2, False)
    assert time.monotonic() - started < 20
    assert found["status"] == "stopped, out of time" and fails(found)
    assert [f["what"] for f in found["findings"]] == ["before"]
    assert _ends(found["facts"]["child"])


def _ends(process: int) -> bool:
    """Whether a process is gone, or will be in a moment: init has to take note of it first."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_stages_behind_one_that_fails_are_run(tmp_path: Path) -> None:
    stages = [stage("raising"), stage("crashing"), stage("good")]
    assert run_all(tmp_path, stages, 60, False, quiet) == []
    assert [read_stage(tmp_path, s.name)["status"][:5] for s in stages] == ["faile", "ended", "done"]  # type: ignore[index]


def test_stages_for_which_no_time_is_left_are_not_run(tmp_path: Path) -> None:
    said: list[str] = []
    stages = [stage("good", 1), stage("short", 1)]
    assert run_all(tmp_path, stages, 10.5, False, said.append) == []  # each has half of it
    assert run_all(tmp_path, stages, 9.5, False, said.append) == ["good"]  # half is too little; all of it is not
    assert run_all(tmp_path, stages, 4, False, said.append) == ["good", "short"]
    assert "short: not run, 4 s are left for 1 stages" in said


def test_shares_of_the_time(tmp_path: Path) -> None:
    """The whole is divided; what a stage leaves over falls to those behind it; checks come to 200 s of 600 at most."""
    assert sum(s.share for s in STAGES) <= 600
    assert sum(s.share for s in STAGES[:4]) <= 200
    said: list[str] = []
    run_all(tmp_path, [stage("good", 1), stage("short", 1), stage("raising", 2)], 100, False, said.append)
    assert [text.split("(up to ")[1] for text in said[::2]] == ["25 s)", "33 s)", "100 s)"]


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    stages = [stage("good"), stage("short")]
    run_stage(tmp_path, stages[0], 30, False)
    assert [s.name for s in pending(tmp_path, stages, False)] == ["short"]
    assert [s.name for s in pending(tmp_path, stages, True)] == ["good", "short"]  # a rehearsal is another run
    stage_file(tmp_path, "good").write_text("{ half a fi", encoding="utf-8")
    assert [s.name for s in pending(tmp_path, stages, False)] == ["good", "short"]


def test_what_is_left_of_an_earlier_try_is_not_found_again(tmp_path: Path) -> None:
    Context("good", tmp_path, False, 0).add(Finding("of an interrupted run"))
    assert [f["what"] for f in run_stage(tmp_path, stage("good"), 30, False)["findings"]] == ["first", "second"]


# -- contexts


def test_facts_of_earlier_stages(context: Context) -> None:
    assert context.known("good", "read_gb_s") is None
    run_stage(context.out, stage("good"), 30, False)
    assert context.known("good", "read_gb_s") == 4000.0 and context.known("good", "other") is None
    assert Context("x", context.out, True, 0).known("good", "read_gb_s") is None  # the CPU's are no GPU's


def test_one_thing_that_fails_does_not_end_the_others(context: Context) -> None:
    context.rehearse = True  # nothing is to be released
    done: list[int] = []

    def fail() -> None:
        raise ValueError("not this one")

    assert not context.attempt("failing", fail)
    assert context.attempt("fine", lambda: done.append(1))
    assert not context.attempt("long", lambda: done.append(2), needs=1000)
    _, (failing, long) = read_part(context.out, "good")
    context.longest = 100  # what has taken so long once will again
    assert not context.attempt("as long as another", lambda: done.append(3))
    assert failing["verdict"] == "wrong" and failing["note"].startswith("ValueError: not this one (test_gpu_check.py:")
    assert long["verdict"] == "not run" and "of the 1000 it takes" in long["note"] and done == [1]


def test_goals_bind_runs_and_not_rehearsals(context: Context) -> None:
    assert [context.judged(value, 0.8) for value in (0.79, 0.8, 0.81)] == ["short", "holds", "holds"]
    context.rehearse = True
    assert context.judged(0.1, 0.8) == ""


# -- the report


def report_of(out: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch, missed: Sequence[str] = ()) -> Any:
    monkeypatch.setattr("llmcore_tools.gpu.check_report.STAGES", [stage(name) for name in (*names, *missed)])
    for name in names:
        run_stage(out, stage(name), 30, False)
    found = compose(out, False, missed)
    write_report(out, found)
    return found


@pytest.mark.parametrize(
    ("names", "holds"), [(["good"], True), (["good", "short"], False), (["good", "raising"], False), ([], False)]
)
def test_only_what_holds_is_said_to(
    names: list[str], holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = report_of(tmp_path, names, monkeypatch)
    assert found.holds == holds
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["holds"] == holds


def test_the_report_has_every_finding_and_what_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report_of(tmp_path, ["good", "short"], monkeypatch, missed=["hanging"])
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| first | 4,000 |  | holds |" in page
    assert "| second |  | 0.50 |  |" in page
    assert "| slow | 1.00 | short |" in page
    assert "| hanging | not run: no time was left |  |" in page
    assert "rehearsal" not in page
    assert found.summary == "not everything holds: short; not run: hanging"


def test_results_of_a_rehearsal_are_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcore_tools.gpu.check_report.STAGES", [stage("good")])
    run_stage(tmp_path, stage("good"), 30, True)
    assert compose(tmp_path, False, []).missing == {"good": "not asked for"}
    write_report(tmp_path, compose(tmp_path, True, []))
    assert "**This was a rehearsal" in (tmp_path / "report.md").read_text(encoding="utf-8")


# -- the command


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "may_have_gpu", lambda: False)
    assert main(["gpu-check", "--out", str(tmp_path)]) == 2
    assert "this machine has no GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())
    monkeypatch.setattr(check, "may_have_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        check.require_gpu()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check.require_gpu()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "where to"),
        (["--out", "/dev/null/x"], "Not a directory"),
        (["--out", "x", "--only", "prefil"], "'prefill'"),
        (["--out", "x", "--budget", "1"], "from 10"),
        (["--out", "x", "more"], "unexpected arguments: more"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gpu-check", "--rehearse", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_it_hands_over_to_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Triton's interpreter in a rehearsal, and without it on a GPU."""
    ran: list[tuple[list[str], dict[str, str]]] = []

    class Done:
        returncode = 1

    monkeypatch.setattr(subprocess, "run", lambda words, env, check: ran.append((words, env)) or Done)
    monkeypatch.setattr(check, "require_gpu", lambda: None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["gpu-check", "--out", str(tmp_path), "--only", "models,kernels", "--fresh"]) == 1
    assert main(["gpu-check", "--out", str(tmp_path), "--budget", "50", "--rehearse"]) == 1
    (words, env), (rehearsal, rehearsed) = ran
    assert words[3:] == [str(tmp_path), "kernels,models", "600", "fresh"] and "TRITON_INTERPRET" not in env
    assert rehearsal[3:] == [str(tmp_path), ",".join(NAMES), "50", "rehearse"]
    assert rehearsed["TRITON_INTERPRET"] == "1"


@pytest.mark.parametrize(("fresh", "runs"), [(False, 1), (True, 2)])
def test_the_process_runs_what_has_left_no_file(
    fresh: bool, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_run, "STAGES", [stage("good"), stage("short")])
    monkeypatch.setattr("llmcore_tools.gpu.check_report.STAGES", [stage("good"), stage("short")])
    monkeypatch.setattr(check_run, "PRELOADED", ())
    ran: list[str] = []
    run = check_stages.run_stage
    monkeypatch.setattr(check_stages, "run_stage", lambda out, s, *rest: ran.append(s.name) or run(out, s, *rest))
    words = [str(tmp_path), "good", "60", *(["fresh"] if fresh else [])]
    assert check_run.main(words) == 0
    assert check_run.main(words) == 0
    assert ran == ["good"] * runs
    assert check_run.main([str(tmp_path), "good,short", "60"]) == 1  # short is short
    assert (tmp_path / "report.md").exists()


def test_a_rehearsal_takes_the_way_of_every_stage(tmp_path: Path) -> None:
    """The whole command, as a process: every stage ends, finds something, and everything that can hold does."""
    done = subprocess.run(
        [sys.executable, "-m", "llmcore.cli.main", "gpu-check", "--out", str(tmp_path), "--rehearse"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(found["stages"]) == list(NAMES) and found["rehearsal"] and found["holds"] and not found["not_run"]
    verdicts: Callable[[str], list[str]] = lambda name: [f["verdict"] for f in found["stages"][name]["findings"]]  # noqa: E731
    assert verdicts("environment") == [""] * 5
    assert verdicts("kernels") == ["holds"] * 3
    assert verdicts("models") == verdicts("sanitizer") == ["holds"]
    assert verdicts("decode") == verdicts("attention") == ["", ""]
    assert verdicts("prefill") == [""]
    assert verdicts("peers") == ["holds", *[""] * 6]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"### {name.capitalize()}" in page for name in NAMES)
