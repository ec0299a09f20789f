"""Sampling parameters: every field is checked, and the error names it."""

import math

import numpy as np
import pytest

from llmcore import SamplingParams
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
