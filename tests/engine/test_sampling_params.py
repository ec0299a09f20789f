"""Sampling parameters: every field is checked, and the error names it."""

import copy
import dataclasses
import math

import numpy as np
import pytest

from llmcore import Constraint, SamplingParams
from llmcore.errors import RequestError

WRONG = [
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 2.0),
    ("top_p", 0),
    ("top_p", 1.01),
    ("min_p", -0.5),
    ("min_p", 2),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1.0),
    ("presence_penalty", math.nan),
    ("frequency_penalty", 1e9),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", "7"),
    ("stop", ("",)),
    ("stop", tuple("abcdefghijklmnopq")),
    ("stop", (3,)),
    ("stop_token_ids", (-1,)),
    ("ignore_eos", 1),
    ("logprobs", -1),
    ("logprobs", 101),
    ("stop", None),
    ("stop_token_ids", 5),
    ("repetition_penalty", 200),
    ("repetition_penalty", 1e-40),
    ("logit_bias", None),
    ("logit_bias", [(1, 2.0)]),
    ("logit_bias", {1: math.nan}),
    ("logit_bias", {1: 100.5}),
    ("logit_bias", {1: -101}),
    ("logit_bias", {1: True}),
    ("logit_bias", {1: "2"}),
    ("logit_bias", {"1": 2.0}),
    ("logit_bias", {-1: 2.0}),
    ("logit_bias", {True: 2.0}),
    ("logit_bias", {1.0: 2.0}),
    ("min_tokens", -1),
    ("min_tokens", True),
    ("min_tokens", 1.5),
    ("min_tokens", math.nan),
    ("min_tokens", 257),  # more than max_tokens
    ("constraint", "json_object"),
    ("constraint", {"kind": "json_object"}),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name(field, value):
    with pytest.raises(RequestError, match=field) as error:
        SamplingParams(**{field: value})
    assert error.value.field == field
    assert error.value.remedy


def test_numpy_scalars_are_numbers():
    params = SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.int32(4))
    assert (params.max_tokens, params.temperature, params.top_k) == (3, 0.5, 4)


def test_defaults_are_greedy_and_unpenalised():
    params = SamplingParams()
    assert params.greedy and not params.penalised
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(presence_penalty=0.1).penalised


def test_parameters_can_be_hashed_and_do_not_change():
    bias = {np.int64(7): np.float32(1.5), 3: -100}
    params = SamplingParams(logit_bias=bias, min_tokens=3, constraint=Constraint("regex", "a"))
    bias[9] = 1.0
    assert dict(params.logit_bias) == {3: -100.0, 7: 1.5}
    assert [type(value) for pair in params.logit_bias.items() for value in pair] == [int, float] * 2
    same = SamplingParams(logit_bias={3: -100, 7: 1.5}, min_tokens=3, constraint=Constraint("regex", "a"))
    assert params == same and hash(params) == hash(same)
    assert params == dataclasses.replace(params) == copy.deepcopy(params)
    assert params != SamplingParams(logit_bias={3: -100}, min_tokens=3)


@pytest.mark.parametrize(
    "changes", [{"logit_bias": {1: 1.0}}, {"min_tokens": 1}, {"constraint": Constraint("json_object")}]
)
def test_rules_need_logits(changes):
    assert SamplingParams().plain and not SamplingParams().ruled
    assert SamplingParams(**changes).ruled and not SamplingParams(**changes).plain
