"""Streaming text: what comes piece by piece is what is decoded at once, and stop strings are never shown in part."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.errors import RequestError
from llmcore.text.detokenizer import Detokenizer, StopStrings
from llmcore.text.tokenizer import Tokenizer


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def pieces(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    detokenizer = Detokenizer(tokenizer, **options)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


@pytest.mark.parametrize("skip_special", [True, False])
def test_any_ids_stream_as_they_decode(tokenizer: Tokenizer, skip_special: bool) -> None:
    chance = random.Random(skip_special)
    for _ in range(10_000):  # mostly bytes, so most characters are broken; some ids are in no vocabulary
        ids = [chance.randrange(-1, tokenizer.vocab_size + 2) for _ in range(chance.randrange(9))]
        streamed = "".join(pieces(tokenizer, ids, skip_special=skip_special))
        assert streamed == tokenizer.decode(ids, skip_special=skip_special)


def test_a_character_comes_when_it_is_complete(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🦙é", add_special=False)
    streamed = pieces(tokenizer, ids)
    assert "".join(streamed) == "a🦙é"
    assert all(piece in ("", "a", "🦙", "é") for piece in streamed)
    assert len(ids) > 4, "the llama must come in several tokens for this to show anything"


def test_a_character_that_never_ends_is_one_replacement(tokenizer: Tokenizer) -> None:
    broken = next(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == b"\xf0")
    assert pieces(tokenizer, [broken]) == ["", "\ufffd"]
    assert "".join(pieces(tokenizer, [broken, *tokenizer.encode("x", add_special=False)])).lstrip("\ufffd ") == "x"


def test_control_tokens_come_as_text_when_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id is not None
    name = next(text for text, token in tokenizer.special_texts().items() if token == tokenizer.bos_id)
    assert pieces(tokenizer, [tokenizer.bos_id], skip_special=False) == [name, ""]
    assert pieces(tokenizer, [tokenizer.bos_id]) == ["", ""]


def test_first_space_of_sentencepiece(sentencepiece: Tokenizer) -> None:
    ids = sentencepiece.encode("hello world")
    assert sentencepiece.token_bytes(ids[1]) == b" hello"
    assert "".join(pieces(sentencepiece, ids)) == sentencepiece.decode(ids) == "hello world"
    assert "".join(pieces(sentencepiece, ids, continues=True)) == " hello world"
    assert sentencepiece.decode(sentencepiece.encode("  hello")) == "  hello"


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Where ``text`` ends, found character by character."""
    for end in range(len(text) + 1):
        whole = [stop for stop in stops if text[:end].endswith(stop)]
        if whole:
            longest = max(whole, key=len)
            return text[: end - len(longest)], longest
    return text, None


TEXT = st.text("ab\n", max_size=24)


@settings(max_examples=200, deadline=None, database=None)
@given(text=TEXT, stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3), data=st.data())
def test_stops_do_not_depend_on_how_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    stopper = StopStrings(stops)
    shown = [stopper.push(chunk) for chunk in chunks]
    expected, matched = cut(text, stops)
    for count in range(len(shown)):  # at no time is more shown than will stay
        assert expected.startswith("".join(shown[: count + 1]))
    assert "".join(shown) + stopper.finish() == expected
    assert (stopper.stopped, stopper.matched, stopper.position) == (matched is not None, matched, len(expected))


def test_only_what_may_be_a_stop_is_held_back() -> None:
    stopper = StopStrings(["\n\nUser:"])
    assert stopper.push("Hello\n") == "Hello"
    assert stopper.push("there\n\nUse") == "\nthere"
    assert stopper.push("ful") == "\n\nUseful"
    assert stopper.push("\n\nUser: x") == ""
    assert stopper.stopped
    assert stopper.push("more") == stopper.finish() == ""


def test_empty_stop_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        StopStrings(["a", ""])
    assert caught.value.field == "stop"
