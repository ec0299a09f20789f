"""The sampling references against transformers' warpers and against their definitions, token by token."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from llmcore import ops
from llmcore.ops.sampling_cases import BELOW_ONE, SIXTEENTHS


def probs(rows: int = 4, vocab: int = 50) -> torch.Tensor:
    return (3 * torch.randn(rows, vocab)).softmax(-1)


def filled(value: float, rows: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((rows,), value, dtype=dtype)


@pytest.mark.parametrize("k", [1, 3, 49, 50])
def test_top_k_is_that_of_transformers(k: int) -> None:
    from transformers import TopKLogitsWarper

    given = probs()
    want = TopKLogitsWarper(k)(None, given.log()).softmax(-1)
    torch.testing.assert_close(ops.get("top_k").reference(given, filled(k, dtype=torch.int32)), want)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(p: float) -> None:
    from transformers import TopPLogitsWarper

    given = probs()
    want = TopPLogitsWarper(p)(None, given.log()).softmax(-1)
    torch.testing.assert_close(ops.get("top_p").reference(given, filled(p)), want)


@pytest.mark.parametrize("p", [0.01, 0.3, 1.0])
def test_min_p_is_that_of_transformers(p: float) -> None:
    from transformers import MinPLogitsWarper

    given = probs()
    want = MinPLogitsWarper(p)(None, given.log()).softmax(-1)
    torch.testing.assert_close(ops.get("min_p").reference(given, filled(p)), want)


def kept(op: str, value: float, dtype: torch.dtype = torch.float32) -> set[int]:
    """Which of the SIXTEENTHS survive; also checks that what survives is renormalised."""
    row = torch.tensor([SIXTEENTHS]) / 16
    y = ops.get(op).reference(row, filled(value, 1, dtype))[0]
    chosen = {int(index) for index in y.nonzero()}
    torch.testing.assert_close(y, torch.where(y > 0, row[0], 0.0) / sum(SIXTEENTHS[i] / 16 for i in chosen))
    return chosen


EVERY = {index for index, weight in enumerate(SIXTEENTHS) if weight}


@pytest.mark.parametrize(
    ("k", "want"),
    [(-1, EVERY), (0, EVERY), (1, {1, 3}), (2, {1, 3}), (3, {1, 3, 5}), (4, {1, 2, 3, 5, 6}), (6, EVERY), (99, EVERY)],
)
def test_top_k_keeps_all_that_tie(k: int, want: set[int]) -> None:
    assert kept("top_k", k, torch.int32) == want


@pytest.mark.parametrize(
    ("p", "want"),
    [
        (0.0, {1, 3}),
        (0.25, {1, 3}),
        (0.5, {1, 3}),
        (0.5 + 2.0**-20, {1, 3, 5}),
        (0.6875, {1, 3, 5}),
        (0.6875 + 2.0**-20, {1, 2, 3, 5, 6}),
        (0.9375, {1, 2, 3, 5, 6}),
        (0.9375 + 2.0**-20, EVERY),
        (1.0, EVERY),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, want: set[int]) -> None:
    assert kept("top_p", p) == want


@pytest.mark.parametrize(
    ("p", "want"),
    [(0.0, EVERY), (-1.0, EVERY), (0.5, {1, 2, 3, 5, 6}), (0.75, {1, 3, 5}), (0.76, {1, 3}), (1.0, {1, 3})],
)
def test_min_p_keeps_what_is_a_share_of_the_best(p: float, want: set[int]) -> None:
    assert kept("min_p", p) == want


@pytest.mark.parametrize("u", [0.0, 0.0625, 0.0625 - 2.0**-28, 0.3, 0.875, 0.9999, BELOW_ONE])
def test_sample_takes_the_first_token_beyond_u(u: float) -> None:
    row = torch.tensor([SIXTEENTHS]) / 16
    got = int(ops.get("sample").reference(row, filled(u, 1))[0])
    total, want = Fraction(0), -1
    while total <= Fraction(u):  # exact arithmetic
        want += 1
        total += Fraction(SIXTEENTHS[want], 16)
    assert got == want
    assert SIXTEENTHS[got] > 0


def test_samples_follow_the_distribution() -> None:
    row = torch.tensor(SIXTEENTHS) / 16
    u = (torch.arange(1600) + 0.5) / 1600  # evenly spread, so that counts are exact
    ids = ops.get("sample").reference(row.expand(1600, -1), u)
    assert torch.bincount(ids.long(), minlength=8).tolist() == [100 * weight for weight in SIXTEENTHS]


def test_softmax_divides_by_each_rows_temperature() -> None:
    logits, temperature = 5 * torch.randn(3, 20), torch.tensor([1.0, 0.3, 4.0])
    exact = np.exp(logits.double().numpy() / temperature.double().numpy()[:, None])
    got = ops.get("softmax").reference(logits, temperature).numpy()
    np.testing.assert_allclose(got, exact / exact.sum(-1, keepdims=True), rtol=1e-5)


def test_softmax_of_banned_tokens_is_zero() -> None:
    got = ops.get("softmax").reference(torch.tensor([[1e4, -torch.inf, 1e4]]), torch.ones(1))
    assert got.tolist() == [[0.5, 0.0, 0.5]]


def test_argmax_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [-torch.inf, -2.0, -5.0], [1.0, 1.0, 1.0]])
    got = ops.get("argmax").reference(logits)
    assert got.dtype == torch.int32
    assert got.tolist() == [1, 1, 0]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("row", "want"),
    [([NAN, NAN], -1), ([NAN, 1.0, NAN, 3.0], -1), ([-INF, -INF], 0), ([INF, NAN], -1), ([1.0, INF, INF], 1)],
)
def test_argmax_of_broken_rows(row: list[float], want: int) -> None:
    assert ops.get("argmax").reference(torch.tensor([row])).tolist() == [want]


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([NAN, NAN], [0.0, 0.0]),
        ([-INF, -INF], [0.0, 0.0]),
        ([NAN, 2.0, NAN, 2.0], [0.0, 0.5, 0.0, 0.5]),
        ([INF, 1.0, INF, -INF], [0.5, 0.0, 0.5, 0.0]),
    ],
)
def test_softmax_of_broken_rows(row: list[float], want: list[float]) -> None:
    assert ops.get("softmax").reference(torch.tensor([row]), torch.ones(1)).tolist() == [want]


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45])
def test_softmax_of_a_tiny_temperature_is_greedy(temperature: float) -> None:
    got = ops.get("softmax").reference(torch.tensor([[30.0, 1.0, 30.0, -30.0]]), filled(temperature, 1))
    assert got.tolist() == [[0.5, 0.0, 0.5, 0.0]]


@pytest.mark.parametrize(
    ("row", "want"),
    [([0.0, 0.0], 0), ([NAN, NAN], 0), ([NAN, 0.0, 0.5], 2), ([0.0, 0.25, 0.0, NAN], 1)],
)
@pytest.mark.parametrize("u", [0.0, 0.5, BELOW_ONE])
def test_sample_of_broken_rows(row: list[float], want: int, u: float) -> None:
    assert ops.get("sample").reference(torch.tensor([row]), filled(u, 1)).tolist() == [want]


@pytest.mark.parametrize(("op", "value"), [("top_k", 1), ("top_p", 0.5), ("min_p", 0.5), ("top_k", 0), ("top_p", 1.0)])
def test_filters_leave_rows_of_nothing(op: str, value: float) -> None:
    limit = filled(value, 3, torch.int32 if op == "top_k" else torch.float32)
    rows = torch.tensor([[0.0, 0.0, 0.0], [NAN, NAN, NAN], [NAN, 0.0, 0.25]])
    assert ops.get(op).reference(rows, limit).tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]]
