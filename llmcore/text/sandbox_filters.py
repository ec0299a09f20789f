"""The filters and tests that a chat template may use, each bounded before it makes anything large.

Chat templates in use need these; what else jinja offers (``pprint``, ``urlize``, ``attr`` …) is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.tests import TESTS as JINJA_TESTS

from llmcore.text.budget import Budget, Exhausted

if TYPE_CHECKING:
    from jinja2.runtime import Context

    from llmcore.text.sandbox import Sandbox

Filter = Callable[..., Any]
PRINTED = 10  # how many characters one can take when it is printed (``\\U0010ffff``)
MAX_INDENT = 64
# A number of three digits in a format is a width or precision that no chat template needs; ``*`` takes it from a value.
WIDE = re.compile(r"%[^a-zA-Z%]*(\d{3}|\*)|\{[^{}]*:[^{}]*(\d{3}|\{)")
CHEAP = {"count", "d", "default", "first", "last", "length"}  # they look at no more than one element
READING = {
    *(
        "abs",
        "capitalize",
        "dictsort",
        "escape",
        "e",
        "float",
        "groupby",
        "int",
        "items",
        "list",
        "lower",
        "map",
        "max",
    ),
    *("min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "string", "trim"),
    *("unique", "upper"),
}
TESTS = {
    name: test
    for name, test in JINJA_TESTS.items()
    if name
    in {
        *("boolean", "callable", "defined", "divisibleby", "even", "false", "float", "integer", "iterable", "lower"),
        *("mapping", "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined", "upper"),
        *(
            "eq",
            "equalto",
            "==",
            "ne",
            "!=",
            "in",
            "gt",
            "greaterthan",
            ">",
            "ge",
            ">=",
            "lt",
            "lessthan",
            "<",
            "le",
            "<=",
        ),
    }
}


def _jinja(name: str, cheap: bool = False) -> Filter:
    """Jinja's filter ``name``, which makes nothing much larger than what it is given."""
    function = JINJA_FILTERS[name]
    wants = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    def filtered(sandbox: Sandbox, context: Context, *args: Any, **kwargs: Any) -> Any:
        if not cheap:
            sandbox.budget.spend(sum(map(sandbox.budget.size, (*args, *kwargs.values()))))
        given = {"": (), "context": (context,), "eval_context": (context.eval_ctx,), "environment": (sandbox,)}[wants]
        return function(*given, *args, **kwargs)

    return filtered


def _replace(sandbox: Sandbox, context: Context, text: Any, old: Any, new: Any, count: int | None = None) -> Any:
    check_method(sandbox.budget, str(text).replace, [str(old), str(new)])
    return _jinja("replace")(sandbox, context, text, old, new, count)


def _title(sandbox: Sandbox, context: Context, text: Any) -> Any:
    sandbox.budget.spend(PRINTED * sandbox.budget.size(text))  # word by word, in Python
    return _jinja("title")(sandbox, context, text)


def _indent(sandbox: Sandbox, context: Context, text: Any, width: int | str = 4, *args: Any, **kwargs: Any) -> Any:
    step = width if isinstance(width, int) else len(width)
    sandbox.budget.allow(len(str(text)) + step * (1 + str(text).count("\n")))
    return _jinja("indent")(sandbox, context, text, width, *args, **kwargs)


def _join(sandbox: Sandbox, context: Context, values: Any, d: str = "", attribute: Any = None) -> Any:
    values = sandbox.budget.keep(list(values))
    sandbox.budget.allow(PRINTED * sandbox.budget.size(values) + len(values) * len(str(d)))
    return _jinja("join")(sandbox, context, values, d, attribute)


def _format(sandbox: Sandbox, context: Context, text: Any, *args: Any, **kwargs: Any) -> Any:
    check_format(sandbox.budget, str(text), [*args, *kwargs.values()])
    return _jinja("format")(sandbox, context, text, *args, **kwargs)


def _round(sandbox: Sandbox, context: Context, value: Any, precision: int = 0, method: Any = "common") -> Any:
    if abs(precision) > MAX_INDENT:
        raise Exhausted(f"rounds to {precision} digits")
    return _jinja("round")(sandbox, context, value, precision, method)


def _tojson(
    sandbox: Sandbox,
    _context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates expect it: nothing is escaped for HTML, and characters stay as they are."""
    budget = sandbox.budget
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= MAX_INDENT):
        raise Exhausted(f"indents JSON by {indent!r}")
    extra = (indent or 0) * budget.depth(value) + sum(map(len, separators or ()))
    budget.allow(budget.size(value) * (1 + extra))
    budget.spend(budget.size(value))
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


FILTERS: dict[str, Filter] = {
    **{name: _jinja(name) for name in READING},
    **{name: _jinja(name, cheap=True) for name in CHEAP},
    "replace": _replace,
    "title": _title,
    "indent": _indent,
    "join": _join,
    "format": _format,
    "round": _round,
    "tojson": _tojson,
}


def check_format(budget: Budget, text: str, values: Sequence[Any]) -> None:
    """Raises :class:`Exhausted` where ``text`` may become too long when ``%`` or ``format`` puts ``values`` in."""
    if WIDE.search(text):
        raise Exhausted("formats to a width that no chat template needs")
    fields = text.count("%") + text.count("{")
    largest = sum(map(budget.size, values))
    budget.allow(len(text) + PRINTED * fields * largest)
    budget.spend(len(text))


def check_method(budget: Budget, method: Any, args: Sequence[Any]) -> None:
    """Raises :class:`Exhausted` where ``method(*args)``, if it is a string's, may make too long a one."""
    owner: Any = getattr(method, "__self__", None)
    name = getattr(method, "__name__", "")
    if isinstance(owner, (list, tuple)):
        budget.spend(budget.size(owner))  # index and count compare everything in it
    if not isinstance(owner, (str, bytes)):
        return
    budget.spend(len(owner))
    match name, args:
        case "center" | "ljust" | "rjust" | "zfill", [int(width), *_]:
            budget.allow(width)
        case "expandtabs", [int(tab)]:
            budget.allow(len(owner) * max(tab, 1))
        case "replace", [old, new, *_]:
            budget.allow(len(owner) + _occurrences(owner, old) * budget.size(new))
        case "join", [values]:
            budget.allow(budget.size(values) * (1 + len(owner)))
        case "translate", [Mapping() as table]:
            budget.allow(len(owner) * max(map(budget.size, table.values()), default=1))
        case _:
            pass


def _occurrences(text: Any, part: Any) -> int:
    try:
        return int(text.count(part))
    except TypeError:  # then the call that this is asked for fails too, and says why
        return 0
