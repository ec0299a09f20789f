"""Samples: their order, their middle, and ratios of pairs."""

from __future__ import annotations

import pytest

from llmcore_tools.bench.measure import Ratio, Series, figure, in_turns, rates


def test_a_series_knows_its_middle_and_ends() -> None:
    series = Series((3.0, 1.0, 2.0, 10.0))
    assert (series.median, series.low, series.high) == (2.5, 1.0, 10.0)
    assert series.as_json() == {"median": 2.5, "min": 1.0, "max": 10.0, "samples": [3.0, 1.0, 2.0, 10.0]}
    assert str(series) == "2.50 (1.00–10.0)"
    assert series.cells == ("2.50", "1.00", "10.0")


def test_rates_divide_by_each_time() -> None:
    assert rates(10, [2.0, 4.0]).samples == (5.0, 2.5)


def test_a_ratio_is_that_of_medians_and_its_spread_that_of_pairs() -> None:
    ratio = Ratio(Series((2.0, 4.0, 9.0)), Series((1.0, 4.0, 3.0)))
    assert ratio.value == pytest.approx(4 / 3)
    assert ratio.pairs == (2.0, 1.0, 3.0)
    assert str(ratio) == "1.33 (1.00–3.00)"
    assert ratio.as_json()["ratio"] == {"of_medians": ratio.value, "min": 1.0, "max": 3.0}


def test_tasks_take_turns() -> None:
    order: list[str] = []
    tasks = {name: lambda name=name: order.append(name) or len(order) for name in "AB"}
    assert in_turns(tasks, 3) == {"A": [1, 3, 5], "B": [2, 4, 6]}
    assert order == ["A", "B"] * 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5, "0.50"), (9.94, "9.94"), (9.96, "10.0"), (99.4, "99.4"), (99.6, "100"), (1234.5, "1,234")],
)
def test_figures_have_three_digits_or_all_whole_ones(value: float, text: str) -> None:
    assert figure(value) == text
