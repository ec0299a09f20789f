"""RoPE's parameters: ``rope_parameters`` as transformers 5 writes them, or ``rope_scaling`` beside ``rope_theta``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmcore.model_config.keys import LIMIT
from llmcore.model_config.reader import ConfigReader, shown
from llmcore.model_spec import RopeKind, RopeSpec

KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn")
DEFAULT_THETA = 10000.0
HARMLESS = frozenset({"finetuned"})  # tells whether the model was trained with its scaling
NEUTRAL: Mapping[str, tuple[object, ...]] = {"attn_factor": (1.0,), "extrapolation_factor": (1.0,)}


def rope_spec(reader: ConfigReader, head_dim: int) -> tuple[RopeSpec, int]:
    """RoPE for heads of ``head_dim`` elements, and the context in tokens that the model was made for.

    Raises:
        UnsupportedModelError: a variant or parameter that is not implemented; ``key`` names it.
        CheckpointError: a parameter is missing, of the wrong type, or impossible.
    """
    positions = reader.count("max_position_embeddings")
    section = _section(reader)
    kind = _kind(section)
    dim = _dim(reader, section, head_dim)
    values: dict[str, Any] = {}
    context = positions
    if kind == "linear":
        values["factor"] = section.number("factor", least=1.0)
    elif kind == "dynamic":
        if dim == 2:
            raise reader.damaged("head_dim", "is 2, for which dynamic rope has no exponent")
        values |= {"factor": section.number("factor", least=1.0), "original_positions": positions}
        context = _scaled(positions, values["factor"])  # this variant's configs hold the context before scaling
    elif kind == "llama3":
        values |= _llama3(reader, section, positions)
    elif kind == "yarn":
        values |= _yarn(reader, section, positions)
        context = max(positions, _scaled(values["original_positions"], values["factor"]))
    theta = _theta(reader, section)
    section.finish(HARMLESS, NEUTRAL)
    interleaved, divisors = reader.flag("rope_interleaved", False), _freq_factors(reader, dim)
    spec = RopeSpec(dim, theta, kind, interleaved=interleaved, freq_factors=divisors, **values)
    return spec, context


def _scaled(positions: int, factor: float) -> int:
    return int(min(positions * factor, LIMIT - 1))


def _section(reader: ConfigReader) -> ConfigReader:
    """The object that holds the parameters; an empty one where the config has none."""
    new, old = reader.section("rope_parameters"), reader.section("rope_scaling")
    if new is not None and old is not None:
        raise reader.unsupported("rope_scaling", old.values, "beside rope_parameters is not supported: keep one")
    return new or old or ConfigReader({}, prefix="rope_scaling.")


def _kind(section: ConfigReader) -> RopeKind:
    """``rope_type``, which older files call ``type``; some have both."""
    newer, older = section.get("rope_type"), section.get("type")
    if newer is not None and older is not None and newer != older:
        raise section.damaged("type", f"is {shown(older)}, but rope_type is {shown(newer)}")
    key, named = ("rope_type", newer) if newer is not None else ("type", older)
    for kind in KINDS:
        if named == kind:
            return kind
    if named is None:
        return "default"
    raise section.unsupported(key, named, f"is not supported (known: {', '.join(KINDS)})")


def _holder(reader: ConfigReader, section: ConfigReader, key: str) -> ConfigReader:
    """Whoever has ``key``: some files keep it beside the section, some inside, some in both, which must agree."""
    outer, inner = reader.get(key), section.get(key)
    if outer is not None and inner is not None and outer != inner:
        raise section.damaged(key, f"is {shown(inner)}, but {reader.prefix}{key} is {shown(outer)}")
    return reader if inner is None else section


def _theta(reader: ConfigReader, section: ConfigReader) -> float:
    holder = _holder(reader, section, "rope_theta")
    theta = holder.number("rope_theta", DEFAULT_THETA)
    if theta <= 1:
        raise holder.damaged("rope_theta", f"is {theta:g}, not above 1")
    return theta


def _dim(reader: ConfigReader, section: ConfigReader, head_dim: int) -> int:
    """Rotated elements of each head: all of them, or the leading part that ``partial_rotary_factor`` says."""
    holder = _holder(reader, section, "partial_rotary_factor")
    part = holder.number("partial_rotary_factor", 1.0)
    dim = int(head_dim * part)
    if part > 1 or (part < 1 and (dim % 2 or not dim)):
        raise holder.damaged("partial_rotary_factor", f"is {part:g}: {dim} of {head_dim} elements cannot be rotated")
    if dim % 2:
        raise reader.damaged("head_dim", f"is {head_dim}, which is odd: its elements are rotated in pairs")
    return dim


def _original(reader: ConfigReader, section: ConfigReader, positions: int) -> int:
    """The context before scaling."""
    key = "original_max_position_embeddings"
    return _holder(reader, section, key).count(key, positions)


def _llama3(reader: ConfigReader, section: ConfigReader, positions: int) -> dict[str, Any]:
    low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
    if high <= low:
        raise section.damaged("high_freq_factor", f"is {high:g}, not above low_freq_factor {low:g}")
    return {
        "factor": section.number("factor", least=1.0),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_positions": _original(reader, section, positions),
    }


def _yarn(reader: ConfigReader, section: ConfigReader, positions: int) -> dict[str, Any]:
    original = _original(reader, section, positions)
    factor = section.number("factor", max(positions / original, 1.0), least=1.0)
    fast, slow = section.number("beta_fast", 32.0), section.number("beta_slow", 1.0)
    if fast < slow:
        raise section.damaged("beta_fast", f"is {fast:g}, below beta_slow {slow:g}")
    return {
        "factor": factor,
        "original_positions": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "attention_factor": _attention_factor(section, factor),
        "truncate": section.flag("truncate", True),
    }


def _attention_factor(section: ConfigReader, factor: float) -> float:
    """What cosine and sine are multiplied by: as given, or 0.1 ln(factor) + 1 (arXiv:2309.00071, section 3.4).

    ``mscale`` and ``mscale_all_dim`` weigh the logarithm above and below a fraction (DeepSeek-V2, arXiv:2405.04434);
    one alone, or zero, means nothing.
    """

    def grown(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    inferred = grown(1.0)
    if all([section.get("mscale"), section.get("mscale_all_dim")]):
        inferred = grown(section.number("mscale")) / grown(section.number("mscale_all_dim"))
    return section.number("attention_factor", inferred)


def _freq_factors(reader: ConfigReader, dim: int) -> tuple[float, ...]:
    """Divisors of the frequencies, which GGUF files store ready-made."""
    factors = reader.get("rope_freq_factors")
    if factors is None:
        return ()
    good = isinstance(factors, list) and all(type(each) in (int, float) and 0 < each < math.inf for each in factors)
    if not good or len(factors) != dim // 2:
        raise reader.damaged("rope_freq_factors", f"is not a list of {dim // 2} numbers above 0")
    return tuple(map(float, factors))
