"""Constraints alone: which tokens may come next in every kind of vocabulary, and what hostile texts come to."""

import random
import re
import sys

import pytest

from helpers.hostile import HOSTILE
from llmcore.errors import RequestError
from llmcore.text.constraint import KEPT, ConstraintCompiler, Matcher
from llmcore.text.tokenizer import Tokenizer


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    pytest.importorskip("llguidance", reason="answers of a given form need llguidance")
    made: Tokenizer = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, tokenizer.vocab_size)


def walk(tokenizer: Tokenizer, matcher: Matcher, seed: int, steps: int) -> tuple[str, bool]:
    """A random answer, and whether it is a whole one."""
    chance, ids = random.Random(seed), []
    while not matcher.complete and not matcher.error and matcher.allowed.any() and len(ids) < steps:
        if matcher.may_end and chance.random() < 0.2:
            break
        ids.append(chance.choice(matcher.allowed.nonzero()[0].tolist()))
        matcher.advance(ids[-1])
    assert not tokenizer.special_ids.intersection(ids)
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace"), matcher.may_end


def test_answers_are_those_of_the_expression(tokenizer, compiler):
    found = {walk(tokenizer, compiler.matcher("regex", "(hello|he) w(orld)?"), seed, 40) for seed in range(40)}
    assert found == {(text, True) for text in ("hello w", "hello world", "he w", "he world")}


def test_what_a_token_may_be_is_decided_by_its_bytes(tokenizer, compiler):
    matcher = compiler.matcher("regex", "é|<.*>")
    starts = {tokenizer.token_bytes(token)[:1] for token in matcher.allowed.nonzero()[0].tolist()}
    assert starts == {b"<", b"\xc3"}
    assert not matcher.allowed[[t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == b"\xc4"]].any()


def test_control_tokens_are_never_text(tokenizer, compiler):
    matcher = compiler.matcher("regex", r"(?s:.*)")
    assert matcher.may_end and not matcher.complete
    assert not matcher.allowed[sorted(tokenizer.special_ids)].any()
    assert matcher.allowed.sum() > 100


def test_an_answer_is_complete_where_nothing_can_follow(compiler, tokenizer):
    matcher = compiler.matcher("regex", "ab?")
    a, b = (next(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == byte) for byte in (b"a", b"b"))
    matcher.advance(a)
    assert matcher.may_end and not matcher.complete
    matcher.advance(b)
    assert matcher.complete and not matcher.error


def test_matchers_of_one_constraint_go_their_own_ways(tokenizer, compiler):
    texts = [walk(tokenizer, compiler.matcher("json_object", ""), seed, 60)[0] for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


def test_gaps_between_tokens_of_json_end(tokenizer, compiler):
    matcher = compiler.matcher("json_schema", '{"type": "array", "items": {"const": 7}}')
    blanks = [t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) in (b" ", b"\n", b"\t", b"\r")]
    bracket = next(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == b"[")
    matcher.advance(bracket)
    steps = 0
    while matcher.allowed[blanks].any():
        matcher.advance(next(t for t in reversed(blanks) if matcher.allowed[t]))
        steps += 1
        assert steps < 50


def test_a_token_that_is_not_allowed_is_an_error(tokenizer, compiler):
    matcher = compiler.matcher("regex", "a")
    matcher.advance(next(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == b"b"))
    assert matcher.error
    assert not matcher.allowed.any() and not matcher.may_end and not matcher.complete


@pytest.mark.parametrize("expression", [r"a\/b", "a/b", "a\\\\/b", 'a"/\nb', "^a.b$"])
def test_no_expression_leaves_its_place_in_the_grammar(byte_level, expression):
    pytest.importorskip("llguidance", reason="answers of a given form need llguidance")
    matcher = ConstraintCompiler(byte_level, byte_level.vocab_size).matcher("regex", expression)
    text, whole = walk(byte_level, matcher, 0, 20)
    assert whole and re.fullmatch(expression, text)


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, _, text in HOSTILE], ids=[n for _, n, _ in HOSTILE])
def test_hostile_texts_are_refused_or_bounded(byte_level, kind, text):
    pytest.importorskip("llguidance", reason="answers of a given form need llguidance")
    compiler = ConstraintCompiler(byte_level, byte_level.vocab_size)
    try:
        matcher = compiler.matcher(kind, text)
    except RequestError as error:
        assert error.field == "response_format"
        assert error.remedy
        assert len(error.message) < 500
        with pytest.raises(RequestError):  # now without compiling
            compiler.matcher(kind, text)
        return
    walk(byte_level, matcher, 0, 200)


def test_hostile_texts_are_many():
    assert len(HOSTILE) >= 40


def test_only_the_last_constraints_are_kept(byte_level, monkeypatch):
    pytest.importorskip("llguidance", reason="answers of a given form need llguidance")
    monkeypatch.setattr("llmcore.text.constraint._trial", lambda *_: "")
    compiler = ConstraintCompiler(byte_level, byte_level.vocab_size)
    for count in range(KEPT + 5):
        compiler.matcher("regex", f"a{{{count + 1}}}")
    assert len(compiler._kept) == KEPT


def test_a_missing_library_is_named(byte_level, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match="llguidance") as error:
        ConstraintCompiler(byte_level, byte_level.vocab_size).matcher("regex", "a")
    assert error.value.remedy == "pip install llmcore[server]"


def test_a_grammar_that_ends_its_process_is_refused(byte_level, monkeypatch):
    pytest.importorskip("llguidance", reason="answers of a given form need llguidance")
    monkeypatch.setattr("llmcore.text.constraint.TRIAL", {"seconds": 2, "bytes": 1 << 20})
    with pytest.raises(RequestError, match="1 MiB to compile"):
        ConstraintCompiler(byte_level, byte_level.vocab_size).matcher("regex", "a")


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2"])
def test_real_vocabularies_and_their_own_ways_to_split(vocabulary, name):
    pytest.importorskip("llguidance", reason="answers of a given form need llguidance")
    tokenizer = vocabulary(name)
    compiler = ConstraintCompiler(tokenizer, tokenizer.vocab_size)
    text, whole = walk(tokenizer, compiler.matcher("regex", "(good )?morning, [0-9]{3} (Müllers|你好)"), 0, 60)
    assert whole and text.removeprefix("good ").startswith("morning, ")
    matcher = compiler.matcher("json_object", "")
    for token in tokenizer.encode('a{"name": "Anna", "größe": [1, 2]}', add_special=False)[1:]:  # after a first space
        assert matcher.allowed[token], tokenizer.token_bytes(token)
        matcher.advance(token)
    assert matcher.complete
