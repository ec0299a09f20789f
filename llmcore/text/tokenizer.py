"""What a tokenizer is here: text to ids, ids to bytes, bytes to text.

Every family decodes by one rule: the bytes of the tokens are joined and read as UTF-8, each broken sequence becoming
one U+FFFD (Unicode's "maximal subpart" practice), and the first space that SentencePiece adds is dropped. The
incremental :class:`~llmcore.text.detokenizer.Detokenizer` follows the same rule, so that what is streamed is what is
decoded at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from llmcore.errors import TokenizerError, near
from llmcore.weights.checkpoint import TokenizerSource

if TYPE_CHECKING:
    from llmcore.plugins import Plugins

Part = str | int
"""A piece of a prompt: plain text, or the id of a control token."""


class Tokenizer(ABC):
    """Base of all tokenizers; a family supplies how a text is split, and the bytes of a token.

    Control tokens ("special": ``<s>``, ``<|im_end|>`` …) are never made of text unless ``parse_special`` is asked for.
    Tokens that a vocabulary adds without calling them special (``<think>``) are part of text, as their models expect.

    Attributes:
        vocab_size: one more than the highest id; a model's embedding may be larger.
        bos_id: the token that begins a sequence, if there is one.
        eos_ids: the tokens that end an answer.
        special_ids: all control tokens.
        strips_space: whether one space at the beginning of a decoded text is an artefact to be dropped.
        prefix, suffix: what ``add_special`` puts before and after.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        special_ids: Iterable[int],
        strips_space: bool = False,
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
    ) -> None:
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_ids = tuple(dict.fromkeys(eos_ids))
        self.special_ids = frozenset(special_ids)
        self.strips_space = strips_space
        self.prefix = tuple(prefix)
        self.suffix = tuple(suffix)
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of ``text``.

        Args:
            add_special: put the tokens around it with which the model was trained (often a BOS).
            parse_special: read the texts of control tokens as these tokens; only for text that is trusted.

        Raises:
            TokenizerError: ``text`` holds a lone surrogate, which no UTF-8 text can.
        """
        check_unicode(text)
        ids = self._parse(text) if parse_special else self._encode_text(text, first=True)
        return [*self.prefix, *ids, *self.suffix] if add_special else ids

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        """The ids of plain texts and control tokens in turn: text in ``parts`` never becomes a control token.

        Where no text looks like a control token, the ids equal those of ``encode`` with ``parse_special`` on the whole.

        Raises:
            TokenizerError: a text holds a lone surrogate.
        """
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif part:
                check_unicode(part)
                ids += self._encode_text(part, first=not ids)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ``ids``; control tokens are left out, or spelled out where ``skip_special`` is false."""
        skipped = self.special_ids if skip_special else frozenset()
        text = b"".join(self.token_bytes(token) for token in ids if token not in skipped).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_space else text

    def token_bytes(self, token: int) -> bytes:
        """What ``token`` adds to a text: nothing where an id has no token (a padded embedding has such rows)."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self._token_bytes(token) if 0 <= token < self.vocab_size else b""
        return found

    def token_text(self, token: int) -> str | None:
        """What ``token`` adds to a text that ends with a whole character; None for control tokens and broken UTF-8."""
        text = self._texts.get(token)
        if text is None and token not in self.special_ids:
            try:
                text = self._texts[token] = self.token_bytes(token).decode()
            except UnicodeDecodeError:
                return None
        return text

    def special_texts(self) -> dict[str, int]:
        """Text → id of every control token."""
        named = ((self.token_bytes(token).decode("utf-8", "replace"), token) for token in sorted(self.special_ids))
        return {text: token for text, token in named if text}

    @abstractmethod
    def id_of(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary (``"<|im_end|>"``, ``"Ġthe"``); None if there is none."""

    @abstractmethod
    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        """The ids of plain ``text``; ``first`` where nothing stands before it."""

    @abstractmethod
    def _parse(self, text: str) -> list[int]:
        """The ids of ``text`` with control tokens read."""

    @abstractmethod
    def _token_bytes(self, token: int) -> bytes:
        """What :meth:`token_bytes` remembers, for an id within the vocabulary."""


def load_tokenizer(source: TokenizerSource, plugins: Plugins | None = None) -> Tokenizer:
    """Builds the tokenizer that ``source`` describes, with the plugin for its kind.

    Raises:
        TokenizerError: there is no tokenizer, no plugin for its kind, or its data is damaged.
    """
    from llmcore.plugins import plugins as installed
    from llmcore.plugins import resolve

    if source.kind == "none":
        raise TokenizerError(
            "the checkpoint has no tokenizer", remedy="put tokenizer.json or tokenizer.model beside its weights"
        )
    known: Mapping[str, object] = (installed() if plugins is None else plugins).tokenizers
    if source.kind not in known:
        raise TokenizerError(f"there is no tokenizer plugin for {source.kind!r}", remedy=near(source.kind, known))
    tokenizer: Tokenizer = resolve((installed() if plugins is None else plugins).tokenizers[source.kind].target)(source)
    return tokenizer


def check_unicode(text: str) -> None:
    """Raises :class:`TokenizerError` where ``text`` holds a lone surrogate, which no UTF-8 text can."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is a lone surrogate (U+{ord(text[error.start]):04X})",
            remedy="decode the text with errors='replace'",
        ) from error
