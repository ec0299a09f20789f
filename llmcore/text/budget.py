"""How much a chat template may do: a count of work and memory that holds whatever the template tries.

A template comes with a model, from anyone. It gets no wall clock (which would make an answer depend on the machine's
load) but a number of units, of which everything costs: a character touched is one, an operation 64, so 8 million units
are well under a second and 100 MB. No value may be larger than a limit either, where a nested value counts
with all that it holds, as often as it holds it: ten nested lists of two can print as a thousand.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2.utils import Namespace

UNITS = 8_000_000
UNITS_PER_INPUT = 128  # more messages may need more work
VALUE = 1 << 20
VALUE_PER_INPUT = 8
OPERATION = 64
CONTAINER = 64
ELEMENT = 8
DEPTH = 64
DIGITS = 4000


class Exhausted(Exception):
    """The template has used up what it may use."""


def check_integer(digits: int) -> None:
    """Raises :class:`Exhausted` for a number of so many digits, before it is computed."""
    if digits > DIGITS:
        raise Exhausted(f"computes a number of {digits} digits")


class Budget:
    """What one rendering may still spend, and the sizes of the values that it has seen.

    Containers are measured once: in an immutable sandbox they never change. Each stays referenced here, so its ``id``
    stays its own.
    """

    def __init__(self, *inputs: Any) -> None:
        """Allows in proportion to ``inputs``, the data that is rendered."""
        self.left = 1 << 62
        self.limit = 1 << 62
        self._known: dict[int, tuple[Any, int, int]] = {}  # id → the container, its size, its depth
        size = sum(map(self.size, inputs))
        self.left = UNITS + UNITS_PER_INPUT * size
        self.limit = VALUE + VALUE_PER_INPUT * size

    def spend(self, units: int) -> None:
        """Takes ``units`` away; raises :class:`Exhausted` where so many are not left."""
        self.left -= units
        if self.left < 0:
            raise Exhausted("does more work than a chat template may")

    def allow(self, size: int) -> None:
        """Raises :class:`Exhausted` for a value of ``size``, before it is made, if that is too large."""
        if size > self.limit:
            raise Exhausted(f"makes a value of {size} characters; {self.limit} are allowed")

    def size(self, value: Any) -> int:
        """Characters and elements in ``value``, nested ones counted as often as they occur."""
        return self._measure(value, 0)[0]

    def depth(self, value: Any) -> int:
        """How deep ``value`` is nested."""
        return self._measure(value, 0)[1]

    def touch(self, value: Any) -> Any:
        """``value``, paid for as something that is read from end to end."""
        self.spend(OPERATION // 4 + self.size(value))
        return value

    def keep(self, value: Any) -> Any:
        """``value``, paid for as something that was made; an iterator is made a list, for what it yields costs too."""
        if isinstance(value, Iterator):
            value = list(self._paid(value))
        size = self.size(value)
        self.allow(size)
        self.spend(OPERATION + (size if isinstance(value, (str, bytes)) else 0))
        return value

    def _paid(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(OPERATION)
            yield value

    def _measure(self, value: Any, level: int) -> tuple[int, int]:
        """Size and depth of ``value``, found ``level`` containers deep."""
        if isinstance(value, (str, bytes)):
            return len(value), 0
        if isinstance(value, int):
            return 1 + value.bit_length() // 3, 0
        if isinstance(value, range):
            self.spend(ELEMENT * len(value))
            return ELEMENT * len(value), 1
        if isinstance(value, (list, tuple, Mapping, set, frozenset)):
            return self._measure_container(value, level)
        if isinstance(value, (KeysView, ValuesView, ItemsView)):
            return self._sum(value, level)
        if isinstance(value, Namespace):  # it can change, so it is measured every time
            return self._sum(list(object.__getattribute__(value, "_Namespace__attrs").values()), level)
        return 1, 0

    def _measure_container(self, value: Any, level: int) -> tuple[int, int]:
        known = self._known.get(id(value))
        if known is None:
            pairs = (each for pair in value.items() for each in pair) if isinstance(value, Mapping) else value
            size, depth = self._sum(pairs, level, len(value))
            known = self._known[id(value)] = (value, size, depth)
        return known[1:]

    def _sum(self, values: Iterable[Any], level: int, count: int | None = None) -> tuple[int, int]:
        if level >= DEPTH:
            raise Exhausted(f"nests values more than {DEPTH} deep")
        self.spend(CONTAINER + ELEMENT * (len(values) if count is None else count))  # type: ignore[arg-type]
        size, depth = CONTAINER, 0
        for value in values:
            if count is not None and isinstance(value, Namespace):
                raise Exhausted("puts a namespace into a list or a dictionary, where it could not be measured")
            inner_size, inner_depth = self._measure(value, level + 1)
            size, depth = size + ELEMENT + inner_size, max(depth, inner_depth)
        return size, depth + 1
