"""The jinja environment of chat templates: Hugging Face's conventions, with a price on everything.

Jinja's own sandbox keeps a template from reaching Python; it does not keep it from running for ever or filling the
memory. Here every operation goes through the :class:`~llmcore.text.budget.Budget` of its rendering: operators, calls,
filters and output by the sandbox's hooks; loops, literals, slices, ``~`` and comparisons by nodes put into the syntax
tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from types import CodeType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from llmcore.text.budget import CONTAINER, OPERATION, Budget, Exhausted, check_integer
from llmcore.text.sandbox_filters import FILTERS, TESTS, check_format, check_method

FILENAME = "<chat template>"
MAX_NODES = 6_000  # the largest in use have 1,300
# Filters for the nodes that Guard adds; no template can write such names.
STEP, KEEP, TOUCH, JOIN = "<step>", "<keep>", "<touch>", "<join>"


class Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks an assistant's text for training; here it is just its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own type)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, budget: Budget) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, Generation],
            optimized=False,  # nothing is computed at compile time, where nothing is counted
            finalize=pass_context(lambda _context, value: self._output(value)),
        )
        self.budget = budget
        self.filters = {name: self._priced(make) for name, make in FILTERS.items()}
        self.filters |= {STEP: self._step, KEEP: budget.keep, TOUCH: budget.touch, JOIN: self._join}
        self.tests = {name: self._priced_test(test) for name, test in TESTS.items()}
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002
        sizes = self.budget.size(left), self.budget.size(right)
        self.budget.spend(OPERATION + sum(sizes))
        match operator, left, right:
            case "*", int(), int():
                check_integer(sizes[0] + sizes[1])
            case "*", _, int():
                self.budget.allow(sizes[0] * max(right, 0))
            case "*", int(), _:
                self.budget.allow(sizes[1] * max(left, 0))
            case "**", int(), int():
                check_integer(sizes[0] * abs(right))
            case "%", str(), _:
                check_format(self.budget, left, [right])
            case _:
                pass
        return self.budget.keep(self.binop_table[operator](left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        budget.spend(OPERATION + sum(map(budget.size, (*args, *kwargs.values()))))
        check_method(budget, __obj, [*args, *kwargs.values()])
        return budget.keep(super().call(__context, __obj, *args, **kwargs))

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is not for templates")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            check_format(self.budget, value.__self__, [*args, *kwargs.values()])
            return inner(*args, **kwargs)

        return bounded

    def _priced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter of :mod:`sandbox_filters`, given its environment and context, and paid for."""

        @pass_context
        def priced(context: Context, *args: Any, **kwargs: Any) -> Any:
            self.budget.spend(OPERATION)
            return self.budget.keep(function(self, context, *args, **kwargs))

        return priced

    def _priced_test(self, test: Any) -> Callable[..., bool]:
        def priced(*args: Any) -> bool:
            self.budget.spend(OPERATION // 4 + sum(map(self.budget.size, args)))
            return bool(test(*args))

        return priced

    def _output(self, value: Any) -> Any:
        self.budget.spend(OPERATION // 4 + self.budget.size(value))
        return value

    def _step(self, nodes_run: int) -> bool:
        self.budget.spend(OPERATION + max(0, int(nodes_run)))
        return True

    def _join(self, values: list[Any]) -> str:
        self.budget.allow(sum(map(self.budget.size, values)))
        text: str = self.budget.keep("".join(map(str, values)))
        return text


class Guard(NodeTransformer):
    """Adds to a template's tree what the sandbox has no hook for, and marks control tokens in its own text.

    Args:
        marks: text of a control token → the character that stands for it. Only literal text of the template is
            replaced: what a message says is never a control token, in whatever way a template cuts and joins it.
    """

    def __init__(self, marks: Mapping[str, str]) -> None:
        texts = sorted(marks, key=len, reverse=True)
        self._marks = marks
        self._any = re.compile("|".join(map(re.escape, texts))) if texts else None

    def _filter(self, node: nodes.Expr, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)

    def _charge(self, node: nodes.Node) -> nodes.Filter:
        """An expression that pays for one run through ``node``."""
        weight = sum(1 for _ in node.find_all(nodes.Node))
        return self._filter(nodes.Const(weight, lineno=node.lineno, environment=node.environment), STEP)

    def _text(self, node: nodes.Expr, text: str) -> nodes.Const:
        if self._any is not None:
            text = self._any.sub(lambda found: self._marks[found[0]], text)
        return nodes.Const(text, lineno=node.lineno, environment=node.environment)

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return self._text(node, node.data)  # as a constant, for output pays for those

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        return self._text(node, node.value) if isinstance(node.value, str) else node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        charge = self._charge(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(charge, node.test, lineno=node.lineno)
        return node

    def _visit_body(self, node: Any) -> nodes.Node:
        charge = self._charge(node)
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(charge, lineno=node.lineno))
        checked: nodes.Node = node
        return checked

    visit_Macro = visit_CallBlock = _visit_body

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        values = nodes.List(node.nodes, lineno=node.lineno, environment=node.environment)
        return self._filter(values, JOIN)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        holders: list[Any] = [node, *node.ops]
        for holder in holders:
            if not isinstance(holder.expr, nodes.Const):
                holder.expr = self._filter(holder.expr, TOUCH)
        return node

    def _visit_literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        made: nodes.Node = node
        return self._filter(node, KEEP) if getattr(node, "ctx", "load") == "load" else made

    visit_List = visit_Tuple = visit_Dict = _visit_literal

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, KEEP) if isinstance(node.arg, nodes.Slice) else node

    def _refuse(self, node: nodes.Node) -> NoReturn:
        name = type(node).__name__.lower()
        raise jinja2.TemplateSyntaxError(f"'{name}' has no place in a chat template", node.lineno, filename=FILENAME)

    visit_Include = visit_Extends = visit_Import = visit_FromImport = visit_Block = _refuse


def compile_template(source: str, marks: Mapping[str, str]) -> CodeType:
    """Byte code of the template ``source``, guarded, for any :class:`Sandbox` to run.

    Raises:
        jinja2.TemplateSyntaxError: it is not a template, or too large a one.
    """
    environment = Sandbox(Budget())
    tree = environment.parse(source, filename=FILENAME)
    if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
        raise jinja2.TemplateSyntaxError(f"has more than {MAX_NODES} nodes", 1, filename=FILENAME)
    guarded = Guard(marks).visit(tree)
    return environment.compile(guarded, filename=FILENAME)


def run_template(code: CodeType, variables: Mapping[str, Any]) -> str:
    """What the template makes of ``variables``, plain data that nothing else changes meanwhile.

    Raises:
        Exhausted: it wants to do too much.
        Exception: whatever goes wrong in it; :func:`line_of` says where.
    """
    budget = Budget(*variables.values())
    environment = Sandbox(budget)
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    chunks, length = [], 0
    for chunk in template.root_render_func(template.new_context(dict(variables))):
        length += len(chunk)
        budget.allow(length)
        chunks.append(chunk)
    return "".join(chunks)


def line_of(error: BaseException) -> int | None:
    """The line of the template at which ``error`` was raised, if it was raised in one."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            lines.append((trace.tb_frame.f_globals, trace.tb_lineno))
        trace = trace.tb_next
    if not lines:
        return None
    names, line = lines[-1]
    pairs = (pair.split("=") for pair in names.get("debug_info", "").split("&") if pair)
    before = [int(template) for template, compiled in pairs if int(compiled) <= line]
    return before[-1] if before else 1


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    if re.search(r"\d{3}", layout) or len(layout) > 4 * CONTAINER:  # the C library would pad to any width
        raise Exhausted("asks for a date that is too long")
    return datetime.now().strftime(layout)
