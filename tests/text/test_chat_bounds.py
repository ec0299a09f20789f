"""Hostile chat templates: each ends in an error before it has used much time or memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmcore.errors import ChatTemplateError
from llmcore.text.chat import ChatTemplate

MEGABYTES = 200
LONG = "{% set x = 'a' * 100000 %}"


def grown(step: str, show: str = "ns.x") -> str:
    """A template that makes its value larger 60 times over."""
    return (
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = "
        + step
        + " %}{% endfor %}{{ "
        + show
        + " }}"
    )


def repeated(body: str, before: str = "") -> str:
    """A template that does something dear 99,999 times."""
    return before + "{% for i in range(99999) %}" + body + "{% endfor %}"


# Those that would take time rather than memory; they are left out where memory is measured.
ONLY_SLOW = {
    "nested loops",
    "filtered loops",
    "recursive loop",
    "forking macro",
    "lazy filter",
    "refund",
    "sort",
    "is in",
}
HOSTILE = {
    # loops and calls
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": repeated(repeated("")),
    "filtered loops": repeated("{% for j in range(99999) if j < 0 %}{% endfor %}"),
    "recursive loop": "{% for x in 'a' recursive %}{% if loop.depth<6 %}{{ loop(range(9999)) }}{% endif %}{% endfor %}",
    "endless macro": "{% macro f(n) %}{{ f(n - 1) }}{% endmacro %}{{ f(30) }}",
    "forking macro": "{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "forking caller": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 18
    + "x" * 999
    + "{% endcall %}" * 18,
    "lazy filter": repeated("{% set x = range(99999) | select('undefined') %}"),
    "refund": "{% set _ = [-10**15] | map('<step>') | list %}" + repeated(repeated("")),
    # values
    "text times": "{{ 'a' * 10**9 }}",
    "list times": "{{ 10**9 * [0] }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "squares": grown("(ns.x if ns.x is number else 7) * (ns.x if ns.x is number else 7)"),
    "plus": grown("ns.x + ns.x"),
    "tilde": grown("ns.x ~ ns.x"),
    "list of itself": grown("[ns.x, ns.x]"),
    "tuple of itself": grown("(ns.x, ns.x)"),
    "dictionary of itself": grown("{'a': ns.x, 'b': ns.x}", "ns.x | tojson"),
    "dict of itself": grown("dict(a=ns.x, b=ns.x)"),
    "join of itself": grown("[ns.x, ns.x] | join"),
    "format of itself": grown("'%s%s' % (ns.x, ns.x)"),
    "macro of itself": "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}" + grown("d(ns.x)"),
    "namespace in a list": "{% set n = namespace() %}{% set l = [n] %}{% set n.a = l %}{{ l }}",
    "namespace in itself": "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
    "namespaces": "{% set n0 = namespace() %}"
    + "".join(f"{{% set n{i + 1} = namespace(a=n{i}, b=n{i}) %}}" for i in range(60))
    + "{{ n60 }}",
    "big block": "{% set x %}" + repeated("y" * 100_000) + "{% endset %}",
    "big output": repeated("{{ x }}", LONG),
    "printed": "{% set x = '\U0010ffff' * 1000000 %}{{ [x] | string }}",
    # methods and filters that make much of little
    "center": "{{ 'a'.center(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\\t'.expandtabs(tabsize=10**9) }}",
    "replace method": LONG + "{{ x.replace('a', x) }}",
    "replace nothing": LONG + "{{ x.replace('', x) }}",
    "replace filter": LONG + "{{ x | replace(old='a', new=x) }}",
    "join method": LONG + "{{ x.join(x) }}",
    "join filter": LONG + "{{ range(99999) | join(x) }}",
    "indent": "{{ 'a\\nb' | indent(width=10**9) }}",
    "json indent": "{{ [1] | tojson(indent=10**9) }}",
    "round": "{{ 1.5 | round(10**8, 'ceil') }}",
    "date": "{{ strftime_now('%1000000000d') }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent filter": "{{ '%1000000000d' | format(1) }}",
    "percent again": LONG + "{{ ('%(a)s' * 9999) % {'a': x} }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format argument": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format again": LONG + "{{ ('{0}' * 9999).format(x) }}",
    "format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    # dear things done often
    "count": repeated("{% if x.count('ba') %}{% endif %}", LONG),
    "in": repeated("{% if 'zz' in x %}{% endif %}", LONG),
    "is in": repeated("{% if 'zz' is in x %}{% endif %}", "{% set x = ['a'] * 9999 %}"),
    "slice": repeated("{% set y = x[1:] %}", LONG),
    "title": repeated("{% set y = x | title %}", LONG),
    "sort": repeated("{% set y = x | sort %}", "{% set x = range(9999) | list %}"),
    "keep lists": repeated("{% set ns.x = ns.x + [range(9999) | list] %}", "{% set ns = namespace(x=[]) %}"),
    "equal giants": grown("[ns.x, ns.x]", "[ns.x] == [ns.x]"),
    # ways out
    "class": "{{ ''.__class__ }}",
    "class by item": "{{ ''['__class__'] }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "class by map": "{{ [''] | map(attribute='__class__') | list }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "append": "{% set x = [] %}{{ x.append(1) }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block a %}{{ self.a() }}{% endblock %}",
    # the source itself
    "unfinished": "{% for x in y %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "sum": "{{ " + "+".join("1" * 20_000) + " }}",
    "ifs": "{% if x %}" * 500 + "{% endif %}" * 500,
    "fors": "{% for x in y %}" * 50 + "{% endfor %}" * 50,
    "long": "a" * 70_000,
    "many nodes": "{{x}}" * 9_000,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_ends_in_an_error(name: str) -> None:
    with pytest.raises(ChatTemplateError) as caught:
        ChatTemplate(HOSTILE[name]).render([{"role": "user", "content": "hi"}])
    assert "MemoryError" not in str(caught.value)


def test_they_take_little_memory() -> None:
    code = (
        "import resource, sys\n"
        "from llmcore.errors import ChatTemplateError\n"
        "from llmcore.text.chat import ChatTemplate\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "ChatTemplate('{{ 1 }}').render([{'role': 'user', 'content': ''}])\n"
        "before = peak()\n"
        "for source in sys.stdin.read().split('\\0'):\n"
        "    try: ChatTemplate(source).render([{'role': 'user', 'content': ''}])\n"
        "    except ChatTemplateError: pass\n"
        "print(peak() - before)\n"
    )
    sources = "\0".join(source for name, source in HOSTILE.items() if name not in ONLY_SLOW)
    done = subprocess.run([sys.executable, "-c", code], input=sources, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEGABYTES


def test_a_long_conversation_is_no_hostile_template() -> None:
    source = (
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content | trim) }}"
        "{% if loop.index0 > ns.last and 'x' in m.content %}!{% endif %}{{ m | tojson }}{% endfor %}"
    )
    turns = [{"role": role, "content": "hello " * 20} for role in ("user", "assistant")] * 1000
    assert ChatTemplate(source).render(turns).count("hello") == 2000 * 40
    assert len(
        ChatTemplate("{{ messages[0].content | trim | upper }}").render([{"role": "user", "content": "é" * 4_000_000}])
    )
