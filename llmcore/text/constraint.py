"""Which tokens may come next in an answer that must have a form, by the llguidance library.

A constraint's text comes from anyone. The library counts what it does and gives up in time, but not everywhere; so
a text that is new is compiled in a process of its own first, which may die of it. What is left out of reach of that
trial, a later step, has only work in it that is counted: ``no_forcing`` switches off the part that would follow
``a{1000000}`` to its end.
"""

from __future__ import annotations

import json
import re
import sys
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from llmcore.errors import RequestError
from llmcore.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Array = np.ndarray[Any, Any]
LIMITS = {"verbose_errors": False, "precompute_large_lexemes": False, "max_lexer_states": 20_000}  # 2 kB a state
LARK_LIMITS = {**LIMITS, "max_items_in_row": 300}  # an ambiguous grammar's steps take its square: 25 ms
TRIAL = {"seconds": 2, "bytes": 1 << 30}
TRIAL_CLOCK = 60.0  # seconds, for systems without limits on processor time
KEPT = 32  # compiled constraints
OPTIONS = '%llguidance {"no_forcing": true}\n'
BLANKS = r"(\x20|\n[\x20\t]{0,20})"  # between two tokens of JSON: no answer is an endless gap
PLACE = re.compile(r"^at 2\(8\): (failed to compile JSON schema: )?")  # where we have put the text
INVALID = 0xFF  # a byte that no UTF-8 text has, and that marks control tokens in the library's trie


class Matcher:
    """How far one answer has come in its constraint.

    Attributes:
        allowed: which tokens may come next, bool ``[tokens]``; control tokens never may.
        may_end: whether the text so far is a whole answer.
        complete: whether it is one and nothing can follow.
        error: why the library has given up, or empty; nothing is allowed then.
    """

    def __init__(self, inner: LLMatcher, control: Array, tokens: int) -> None:
        """Takes over ``inner``, which has an end token of its own at ``tokens``; ``control`` are token ids."""
        self._inner = inner
        self._control = control
        self._tokens = tokens
        self._look()

    def advance(self, token: int) -> None:
        """Takes note of the chosen token."""
        self._inner.consume_token(token)
        self._look()

    def fresh(self) -> Matcher:
        """Another one, that has come as far and goes its own way."""
        return Matcher(self._inner.deep_copy(), self._control, self._tokens)

    def _look(self) -> None:
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little")[: self._tokens + 1].view(np.bool_)
        mask[self._control] = False
        self.error = _line(self._inner.get_error())
        self.allowed = mask[:-1]
        self.may_end = not self.error and bool(mask[-1])
        if self.error:
            self.allowed[:] = False
        self.complete = self.may_end and not self.allowed.any()


class ConstraintCompiler:
    """Makes matchers for one vocabulary; the last constraints are kept, refused ones too."""

    def __init__(self, tokenizer: Tokenizer, vocab: int) -> None:
        """Args: ``vocab`` is how many tokens the model knows; the library's trie is made when first needed."""
        self._tokenizer = tokenizer
        self._tokens = min(tokenizer.vocab_size, vocab)
        self._control = np.array(sorted(t for t in tokenizer.special_ids if t < self._tokens), np.int64)
        self._kept: OrderedDict[tuple[str, str], Matcher | str] = OrderedDict()
        self._lock = Lock()  # around what is kept, and the trie
        self._trie: LLTokenizer | None = None

    def knows(self, kind: str, text: str) -> bool:
        """Whether :meth:`matcher` has its answer at once; it is kept for longer then."""
        with self._lock:
            known = (kind, text) in self._kept
            if known:
                self._kept.move_to_end((kind, text))
            return known

    def matcher(self, kind: str, text: str) -> Matcher:
        """A matcher at the beginning of an answer; ``kind`` and ``text`` are a ``Constraint``'s. May take seconds.

        Raises:
            RequestError: llguidance is missing; or the text is no schema, expression or grammar that it can follow,
                allows no answer, or takes too much to compile. The field is ``response_format``.
        """
        _library()
        with self._lock:
            found = self._kept.get((kind, text))
        if found is None:
            found = self._compile(kind, text)
        with self._lock:
            self._kept[kind, text] = found
            self._kept.move_to_end((kind, text))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            if isinstance(found, Matcher):
                return found.fresh()
        raise RequestError(
            f"the {kind} is refused: {found}",
            field="response_format",
            remedy="see llguidance's documentation for what it supports, and make the text simpler",
        )

    def _compile(self, kind: str, text: str) -> Matcher | str:
        """A matcher at the beginning, or what is wrong."""
        llguidance = _library()
        try:
            grammar = _grammar(kind, text)
        except (ValueError, RecursionError) as error:
            return f"it cannot be read: {error}"
        limits = LARK_LIMITS if kind == "lark" else LIMITS
        wrong = _trial(grammar, limits)
        if wrong:
            return wrong
        bounds = llguidance.LLParserLimits(**limits)
        inner = llguidance.LLMatcher(self._vocabulary(), grammar, log_level=0, limits=bounds)
        if inner.is_error():
            return _line(inner.get_error())
        matcher = Matcher(inner, self._control, self._tokens)
        if matcher.error or not matcher.allowed.any():
            return matcher.error or "it allows no answer but an empty one"
        return matcher

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._trie is None:
                text = map(self._tokenizer.token_bytes, range(self._tokens))
                tokens = [each if INVALID not in each else b"" for each in text]
                for token in self._control:
                    tokens[token] = b""
                self._trie = _library().LLTokenizer(Vocabulary(tokens))
            return self._trie


class Vocabulary:
    """Tokens as llguidance takes them: their bytes, and one more for the end. An empty one is never allowed."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)

    def __call__(self, text: str) -> NoReturn:
        """Nothing is ever tokenized: no token is forced."""
        raise AssertionError(text)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            "answers of a given form need the llguidance package",
            field="response_format",
            remedy="pip install llmcore[server]",
        ) from error
    return llguidance


def _grammar(kind: str, text: str) -> str:
    """The constraint in llguidance's dialect of Lark.

    Raises:
        ValueError: a schema that is not JSON, or no schema.
        RecursionError: one that is nested too deep.
    """
    if kind == "lark":
        return f"{text}\n{OPTIONS}"
    if kind == "regex":
        whole = json.loads(_library().LLMatcher.grammar_from_regex(text))
        return f"{OPTIONS}{whole['grammars'][0]['lark_grammar']}"
    schema = {"type": "object"} if kind == "json_object" else json.loads(text)
    schema = {} if schema is True else schema
    if not isinstance(schema, dict) or "x-guidance" in schema:
        raise ValueError("a schema is an object, without x-guidance")
    whole = {**schema, "x-guidance": {"whitespace_pattern": BLANKS}}
    return f"{OPTIONS}start: %json {json.dumps(whole, allow_nan=False)}"


def _trial(grammar: str, limits: dict[str, Any]) -> str:
    """What is wrong with ``grammar``, found out in a process of its own; empty if nothing is."""
    import subprocess

    place = str(Path(_library().__file__).parent.parent)
    job = json.dumps({"path": place, "grammar": grammar, "limits": limits, **TRIAL})
    command = [sys.executable, "-I", str(Path(__file__).with_name("constraint_trial.py"))]
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, text=True, encoding="utf-8", timeout=TRIAL_CLOCK, check=False
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {TRIAL_CLOCK:.0f} s to compile"
    if done.returncode == 0:
        return _line(json.loads(done.stdout))
    return f"it takes more than {TRIAL['seconds']} s or {TRIAL['bytes'] >> 20} MiB to compile"


def _line(message: str) -> str:
    """The library's message in one line, without what it repeats of the text."""
    message = PLACE.sub("", message.partition("\n<non-verbose")[0])
    message = re.split(r"\n *\d+ \| ", message, maxsplit=1)[0]
    return " ".join(message.replace("NoExtensionBias", "nothing may follow").split())[:300]
