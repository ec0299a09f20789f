"""Our flags leave the command line with their values as they were, whatever these look like."""

from __future__ import annotations

import re

import pytest
from hydra.main import get_args_parser

from llmcore.config.arguments import CHAT, HYDRA_FLAGS, JSON, PROMPT, SYSTEM, Flag, extract, usage
from llmcore.errors import ConfigError

FLAGS = (*PROMPT, *CHAT, SYSTEM, JSON)


@pytest.mark.parametrize(
    "text", ["Hello, мир! {a: 1e5} ${oc.env:HOME}", "", "-m", "--json", "a=b", "--prompt=x", " two\nlines ", "'", "\\"]
)
@pytest.mark.parametrize("joined", [True, False])
def test_values_are_literal(text: str, joined: bool) -> None:
    argv = [f"--prompt={text}"] if joined else ["--prompt", text]
    given, rest = extract(["seed=1", *argv, "-m", "--json"], FLAGS)
    assert given == {"--prompt": text, "--json": ""}
    assert rest == ["seed=1", "-m"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prompt"], "needs a value"),
        (["--json=1"], "takes no value"),
        (["--json", "--json"], "twice"),
        (["--chat", "--raw"], "exclude"),
        (["--prompt", "a", "--prompt-file", "b"], "exclude"),
        (["--system", "a", "--raw"], "exclude"),
        (["--promt", "x"], "there is no flag --promt"),
        (["--confg-dir=x"], "did you mean --config-dir"),
    ],
)
def test_refused(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        extract(argv, FLAGS)


def test_hydras_flags_pass_abbreviated_too() -> None:
    argv = ["--cfg", "job", "--multi", "-m", "--info=searchpath", "-sc", "query=bash"]
    assert extract(argv, FLAGS) == ({}, argv)


def test_no_flag_of_ours_is_hydras_and_we_know_all_of_hydras() -> None:
    theirs = set(re.findall(r"--[a-z-]+", get_args_parser().format_usage()))
    assert theirs == set(HYDRA_FLAGS)
    assert not {flag.name for flag in FLAGS} & set(HYDRA_FLAGS)


def test_usage_lists_every_flag() -> None:
    lines = usage((Flag("--a", "first"), Flag("--bcd", "second", "X"))).splitlines()
    assert lines == ["  --a      first", "  --bcd X  second"]
