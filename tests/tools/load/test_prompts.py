"""Prompts: the same for the same seed, as long as was asked, read from files line by line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from llmcore.errors import ConfigError
from llmcore_tools.load.drive import Pace
from llmcore_tools.load.prompts import PerWord, RandomWords, Span, read_lines, with_hang_ups

WORDS = RandomWords(Span(3, 9), Span(5, 20))


def test_lengths_and_seeds() -> None:
    asks = WORDS.draw(200, 1)
    assert {len(str(ask.content).split()) for ask in asks} == set(range(3, 10))
    assert {ask.max_tokens for ask in asks} == set(range(5, 21))
    assert asks == WORDS.draw(200, 1) and asks != WORDS.draw(200, 2)


def test_a_shared_prefix_is_shared_by_all_runs() -> None:
    data = RandomWords(Span(2, 2), Span(1, 1), shared=4)
    prompts = [str(ask.content).split() for seed in (1, 2) for ask in data.draw(5, seed)]
    assert {len(prompt) for prompt in prompts} == {6}
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) > 5


def test_tokens_become_words() -> None:
    data = RandomWords(Span(50, 50), Span(1, 1), per_word=PerWord(1.25, 10.0))
    assert len(str(data.draw(1, 0)[0].content).split()) == 32
    assert PerWord(1.0, 30.0).words(5) == 1


def test_hang_ups() -> None:
    asks = with_hang_ups(WORDS.draw(40, 0), 0.25, 0)
    chosen = [ask for ask in asks if ask.hang_up_after is not None]
    assert len(chosen) == 10 and all(1 <= (ask.hang_up_after or 0) <= ask.max_tokens // 2 for ask in chosen)


def test_arrivals_are_poisson() -> None:
    dues = Pace(rate=10.0).dues(5000, 3)
    assert dues[0] == 0.0 and dues == sorted(dues) and dues == Pace(rate=10.0).dues(5000, 3)
    gaps = [b - a for a, b in pairwise(dues)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.1, rel=0.1)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.2), "as an exponential's"


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "ü", "max_tokens": 3}\n\n{"messages": [{"role": "user", "content": "b"}]}\n', "utf-8")
    asks = read_lines(str(file), Span(7, 7), chat=True).draw(3, 0)
    assert [ask.max_tokens for ask in asks] == [3, 7, 3]
    assert [ask.content for ask in asks] == ["ü", [{"role": "user", "content": "b"}], "ü"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"),
        ("{", "line 1: no JSON"),
        ('{"prompt": "a"}\n[]', "line 2: neither prompt nor messages"),
        ('{"prompt": "a", "messages": []}', "neither prompt nor messages, or both"),
        ('{"prompt": 3}', "of the wrong type"),
        ('{"messages": []}', "an empty prompt"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens is True"),
    ],
)
def test_a_bad_file(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_lines(str(file), Span(1, 1), chat=True)
    assert words in caught.value.message and str(file) in caught.value.message


def test_messages_need_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "b"}]}')
    with pytest.raises(ConfigError, match="messages are of chats"):
        read_lines(str(file), Span(1, 1), chat=False)
    with pytest.raises(ConfigError, match="nowhere"):
        read_lines(str(tmp_path / "nowhere"), Span(1, 1), chat=True)
