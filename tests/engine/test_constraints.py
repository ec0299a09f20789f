"""Answers of a given form, by a model that knows nothing: all of them have it, in any batch."""

import dataclasses
import json
import re

import pytest

from helpers.hostile import SCHEMAS
from llmcore import LLM, Constraint, EngineSettings, SamplingParams
from llmcore.errors import RequestError

pytest.importorskip("llguidance", reason="answers of a given form need llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["the", "hello", "in"]}, "maxItems": 3},
        "ok": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
EXPRESSION = r"(hell|the|[a-f]{2,5})( in| [0-9]{1,3}){0,3}[.!?]"
GRAMMAR = 'start: value\nvalue: list | NUMBER\nlist: "(" value ("," value)? ")"\nNUMBER: /[0-9]{1,2}/'
CONSTRAINTS = {
    "json_object": Constraint("json_object"),
    "json_schema": Constraint("json_schema", json.dumps(SCHEMA)),
    "regex": Constraint("regex", EXPRESSION),
    "lark": Constraint("lark", GRAMMAR),
}
ENDING = {ord('"'): 4.0, ord("}"): 4.0, ord("]"): 4.0, ord(" "): -100.0, ord("\n"): -100.0}  # a random model goes on
SETTINGS = EngineSettings(max_seqs=8, max_batch_tokens=64, page_size=8, max_context=400)
PROMPT = [5, 9, 20, 31]
SEEDS = 50


@pytest.fixture(scope="module")
def llm(tiny_model):
    loaded = LLM(
        str(tiny_model("llama3", max_position_embeddings=512).path), backend="numba", engine=SETTINGS, threads=2
    )
    yield loaded
    loaded.close()


def params(kind, seed=0, **changes):
    bias = ENDING if kind.startswith("json") else {}
    given = {"max_tokens": 200, "temperature": 1.0, "seed": seed, "logit_bias": bias, **changes}
    return SamplingParams(constraint=CONSTRAINTS[kind], **given)


def valid(kind, text):
    if kind == "json_object":
        return isinstance(json.loads(text), dict)
    if kind == "json_schema":
        return fits(json.loads(text))
    if kind == "regex":
        return re.fullmatch(EXPRESSION, text) is not None
    while (inner := re.sub(r"\(#(,#)?\)", "#", re.sub(r"[0-9]{1,2}", "#", text))) != text:
        text = inner
    return text == "#"


def fits(found):
    try:
        import jsonschema
    except ImportError:
        return (
            set(found) - {"ok"} == {"name", "age", "tags"}
            and isinstance(found["name"], str)
            and len(found["name"]) <= 6
            and type(found["age"]) is int
            and 0 <= found["age"] <= 150
            and len(found["tags"]) <= 3
            and set(found["tags"]) <= {"the", "hello", "in"}
            and found.get("ok") in (True, False, None)
        )
    jsonschema.validate(found, SCHEMA)
    return True


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_finished_answers_have_the_form(llm, kind):
    answers = llm.generate([PROMPT] * SEEDS, [params(kind, seed) for seed in range(SEEDS)])
    finished = [answer for answer in answers if answer.finish_reason == "stop"]
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    assert len(finished) > SEEDS // 2
    wrong = [answer.text for answer in finished if not valid(kind, answer.text)]
    assert not wrong
    assert len({answer.text for answer in finished}) > SEEDS // 4


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_greedy_answers_too(llm, kind):
    greedy = params(kind, temperature=0.0, max_tokens=300)
    free = dataclasses.replace(greedy, constraint=None, logit_bias={}, max_tokens=5)
    alone = llm.generate([PROMPT], [greedy])[0]
    together = llm.generate([PROMPT, PROMPT], [free, greedy])
    assert together[1].token_ids == alone.token_ids
    assert together[0].token_ids == llm.generate([PROMPT], [free])[0].token_ids
    assert alone.finish_reason == "length" or valid(kind, alone.text)


def test_a_batch_gives_what_each_gives_alone(llm):
    wanted = [params(kind, seed) for seed in range(2) for kind in CONSTRAINTS]
    together = llm.generate([PROMPT] * len(wanted), wanted)
    for one, answer in zip(wanted, together, strict=True):
        assert llm.generate([PROMPT], [one])[0].token_ids == answer.token_ids


def test_preemption_changes_nothing(llm, tiny_model):
    path = str(tiny_model("llama3", max_position_embeddings=512).path)
    wanted = [params(kind, seed, max_tokens=60) for seed in range(2) for kind in CONSTRAINTS]
    scarce = LLM(path, backend="numba", engine=dataclasses.replace(SETTINGS, max_context=64, kv_pages=8), threads=2)
    try:
        found = scarce.generate([PROMPT] * len(wanted), wanted)
        assert scarce.engine.scheduler.preemptions > 0
    finally:
        scarce.close()
    expected = llm.generate([PROMPT] * len(wanted), wanted)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def test_a_complete_answer_ends_without_an_end_token(llm):
    constraint = Constraint("regex", "(the|hello)!")
    for ignore_eos in (False, True):
        answer = llm.generate([PROMPT], SamplingParams(constraint=constraint, ignore_eos=ignore_eos))[0]
        assert answer.text in ("the!", "hello!")
        assert answer.finish_reason == "stop"
        assert llm.tokenizer.decode(answer.token_ids) == answer.text


def test_an_end_token_waits_for_a_whole_answer(llm):
    constraint = Constraint("regex", "[ab]{4,}")
    wanted = SamplingParams(constraint=constraint, logit_bias={257: 100.0}, temperature=1.0, seed=3)
    answer = llm.generate([PROMPT], wanted)[0]
    assert re.fullmatch("[ab]{4}", answer.text)
    assert answer.token_ids[-1] == 257
    longer = llm.generate([PROMPT], dataclasses.replace(wanted, min_tokens=9))[0]
    assert re.fullmatch("[ab]{9}", longer.text)


def test_the_end_is_not_an_end_where_it_is_ignored(llm):
    wanted = SamplingParams(constraint=Constraint("regex", "[ab]*"), ignore_eos=True, max_tokens=20)
    answer = llm.generate([PROMPT], wanted)[0]
    assert answer.finish_reason == "length" and len(answer.token_ids) == 20


def test_logprobs_are_still_the_models_own(llm):
    wanted = SamplingParams(constraint=Constraint("regex", "[ab]{5}"), logprobs=2)
    answer = llm.generate([PROMPT], wanted)[0]
    free = llm.generate([PROMPT], SamplingParams(logprobs=2, max_tokens=1))[0]
    assert answer.logprobs[0].top == free.logprobs[0].top
    assert len(answer.logprobs) == len(answer.token_ids) == 5


def test_a_constraint_that_cannot_be_followed_is_refused_and_nothing_is_lost(llm):
    bad = SamplingParams(constraint=Constraint("json_schema", '{"type": "nonsense"}'))
    with pytest.raises(RequestError, match="nonsense") as error:
        llm.generate([PROMPT, PROMPT], [SamplingParams(), bad])
    assert error.value.field == "response_format"
    assert not llm.engine.busy


def test_a_constraint_that_gives_up_ends_its_request_alone(llm, monkeypatch):
    monkeypatch.setattr("llmcore.text.constraint._trial", lambda *_: "")  # which finds it
    crowded = json.dumps(SCHEMAS["1,500 properties"])
    free = SamplingParams(max_tokens=6, ignore_eos=True)
    alone = llm.generate([PROMPT], free)[0].token_ids
    engine = llm.engine
    lost = engine.add(PROMPT, SamplingParams(constraint=Constraint("json_schema", crowded)))
    other = engine.add(PROMPT, free)
    while engine.busy:
        engine.step()
    assert lost.finish_reason == lost.deltas[-1].finish_reason == "error"
    assert "followed no further" in lost.error
    assert tuple(other.generated) == alone
    assert engine.scheduler.pool.free == llm.runner.sizes.pages


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("xml", "a"),
        (None, "a"),
        (["regex"], "a"),
        ("regex", ""),
        ("regex", 5),
        ("regex", b"a"),
        ("regex", "\ud800"),
        ("json_object", "{}"),
        ("json_schema", " " * 65537),
    ],
)
def test_what_is_no_constraint_is_refused(kind, text):
    with pytest.raises(RequestError) as error:
        Constraint(kind, text)
    assert error.value.field == "response_format"
    assert error.value.remedy
