"""``model=`` takes references that Hydra's grammar has no place for, and gives Hydra values that mean exactly those."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from llmcore.config.quoting import quoted, uninterpolated
from llmcore.config.references import References, unquoted

TEXT = st.text(st.sampled_from("\\'\"${}a, \n:#=~[]()"), min_size=1, max_size=10)


@given(TEXT)
@example("${oc.env:HOME}")
@example("\\${x}\\")
@example("a\\'b")
def test_quoted_text_comes_back(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert OmegaConf.create({"key": override.value()}).key == text


@given(TEXT)
def test_uninterpolated_text_comes_back(text: str) -> None:
    assert OmegaConf.create({"key": uninterpolated(text)}).key == text


def references(sweep: bool = False) -> References:
    return References(["smollm2", "custom"], lambda text: any(c in text for c in "/~#:"), sweep)


@pytest.mark.parametrize(
    "argument",
    ["model=smollm2", "model=smolm", "seed=1", "model=a,b", "model=choice(a/b,c)", "+model=/x"],
)
def test_left_to_hydra(argument: str) -> None:
    assert references().rewrite([argument]) == [argument]


@pytest.mark.parametrize(
    ("ref", "beside"), [("model.ref=/x", "seed=1"), ("++model.ref=/x", "model.ignore_config_keys=[a]")]
)
def test_a_reference_by_itself_leaves_the_default_model(ref: str, beside: str) -> None:
    assert references().rewrite([beside, ref]) == ["model=custom", beside, ref]


@pytest.mark.parametrize("beside", ["model=smollm2", "model.sha256=null", "~model.sha256", "++model.sha256=abc"])
def test_a_reference_beside_a_model_or_its_digest(beside: str) -> None:
    assert references().rewrite(["model.ref=/x", beside]) == ["model.ref=/x", beside]


@pytest.mark.parametrize(
    ("value", "reference"),
    [
        ("~/my models/x.gguf", "~/my models/x.gguf"),
        ("org/name:Q4_K_M", "org/name:Q4_K_M"),
        ("pypi:a==1#b/c.gguf", "pypi:a==1#b/c.gguf"),
        ("/a,b/it's.gguf", "/a,b/it's.gguf"),
        ("/a,/b.gguf", "/a,/b.gguf"),
        ("'/a b'", "/a b"),
        ("/${x}", "/${x}"),
    ],
)
def test_one_reference_becomes_two_overrides(value: str, reference: str) -> None:
    before, group, ref, after = references().rewrite(["seed=1", f"model={value}", "threads=2"])
    assert (before, group, after) == ("seed=1", "model=custom", "threads=2")
    override = OverridesParser.create().parse_override(ref)
    assert override.key_or_group == "model.ref"
    assert OmegaConf.create({"ref": override.value()}).ref == reference


def test_a_sweep_stores_each_reference() -> None:
    found = references(sweep=True)
    assert found.rewrite(["model=smollm2,/a#b,'org/x,y',nothing"]) == ["model=smollm2,reference1,reference2,nothing"]
    assert found.stored == {"reference1": {"ref": "/a#b"}, "reference2": {"ref": "org/x,y"}}


def test_a_sweep_of_one() -> None:
    assert references(sweep=True).rewrite(["model=/a"]) == ["model=custom", "model.ref='/a'"]


@pytest.mark.parametrize(
    ("text", "bare"), [("'a'", "a"), ('"a"', "a"), ("'a", "'a"), ("'", "'"), (r"'a\'b'", "a'b"), (" a ", "a")]
)
def test_unquoted(text: str, bare: str) -> None:
    assert unquoted(text) == bare
