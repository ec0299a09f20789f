"""A tokenizer run by the ``sentencepiece`` library, from ``tokenizer.model`` or from a GGUF file's pieces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore.errors import TokenizerError
from llmcore.text.tokenizer import Part, Tokenizer
from llmcore.weights.checkpoint import TokenizerSource
from llmcore_tokenizers import pieces
from llmcore_tokenizers.model_proto import NO_DUMMY_PREFIX

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

MAX_BYTES = 1 << 26  # the largest in use are about 5 MB
REMEDY = "download the model's tokenizer again"


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece, with the space that it puts before a text in our hands.

    The library adds it to every text or to none; a prompt is made of several texts, with control tokens between.
    """

    def __init__(
        self,
        model: bytes,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        prefix: Iterable[int],
        suffix: Iterable[int],
        added: Mapping[int, tuple[str, bool]] | None = None,
        space_first: bool | None = None,
        space_each: bool = True,
    ) -> None:
        """Makes a tokenizer of a serialized ``ModelProto``.

        Args:
            added: id → (text, special) of tokens that the model itself lacks.
            space_first: put a space before a text; None: as the model says.
            space_each: put it after every control token too, not only where a prompt begins.

        Raises:
            TokenizerError: ``model`` is damaged.
        """
        self._processor = _processor(model + NO_DUMMY_PREFIX)
        self._spaces = _processor(model).normalize("a") != "a" if space_first is None else space_first
        self._space_each = space_each
        self._pieces = _pieces(self._processor)
        size = len(self._pieces)
        control = [token for token in range(size) if self._processor.is_control(token)]
        control += [token for token in range(size) if self._processor.is_unknown(token)]
        self._added = {token: text for token, (text, _) in (added or {}).items() if token >= size}
        special = {token for token, (_, is_special) in (added or {}).items() if is_special and token in self._added}
        super().__init__(
            max([size, *(token + 1 for token in self._added)]),
            bos_id=bos_id,
            eos_ids=eos_ids,
            special_ids={*control, *special},
            strips_space=self._spaces,
            prefix=tuple(prefix),
            suffix=tuple(suffix),
        )
        names = {self._pieces[token]: token for token in control} | {text: token for token, text in self._added.items()}
        self._ids = names
        self._all = _any_of(names)
        self._plain = _any_of(text for text, token in names.items() if token not in self.special_ids)

    def id_of(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        found: int = self._processor.piece_to_id(token)
        return found if self._pieces[found] == token else None

    def _split(self, text: str, at: re.Pattern[str] | None) -> list[Part]:
        """``text`` with the tokens that ``at`` finds in it taken out."""
        found = [text] if at is None else at.split(text)  # every second one is a match; the others may look like one
        return [self._ids[part] if index % 2 else part for index, part in enumerate(found) if part]

    def _parse(self, text: str) -> list[int]:
        return self.encode_parts(self._split(text, self._all))

    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        ids: list[int] = []
        for part in self._split(text, self._plain):
            if isinstance(part, int):
                ids.append(part)
                continue
            space = " " if self._spaces and (self._space_each or (first and not ids)) else ""
            ids += self._processor.encode(space + part)
        return ids

    def _token_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        if token >= len(self._pieces):
            return b""
        piece = self._pieces[token]
        return pieces.sentencepiece(piece) if token not in self.special_ids else piece.encode("utf-8", "replace")


def load(source: TokenizerSource) -> Tokenizer:
    """The tokenizer in the file ``source.path``, with the settings of its ``tokenizer_config.json``.

    Raises:
        TokenizerError: the file is damaged or too large.
    """
    assert source.path is not None
    config = source.config
    try:
        model = _read(source.path)
        processor = _processor(model)
        _pieces(processor)
        bos, eos = (_named(processor, source, role) for role in ("bos", "eos"))
        return SentencePieceTokenizer(
            model,
            bos_id=bos,
            eos_ids=() if eos is None else (eos,),
            prefix=[bos] if config.get("add_bos_token", True) and bos is not None else [],
            suffix=[eos] if config.get("add_eos_token", False) and eos is not None else [],
            added=_added_tokens(config),
            space_each=config.get("legacy", True) is not False,  # HF's older behaviour, which Llama 2 was trained with
        )
    except TokenizerError as error:
        raise TokenizerError(f"{source.path}: {error.message}", remedy=error.remedy) from error


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TokenizerError(f"is larger than {MAX_BYTES} bytes", remedy=REMEDY)
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot be read: {error.strerror}", remedy=REMEDY) from error


def _processor(model: bytes) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except (RuntimeError, TypeError, ValueError, OSError) as error:
        raise TokenizerError(
            f"is not a SentencePiece model that the library reads: {str(error)[:200]}", remedy=REMEDY
        ) from error
    return processor


def _pieces(processor: SentencePieceProcessor) -> list[str]:
    """The text of every token; raises :class:`TokenizerError` where one is not UTF-8."""
    try:
        return list(processor.id_to_piece(list(range(processor.get_piece_size()))))
    except UnicodeDecodeError as error:
        raise TokenizerError(f"holds a piece that is not UTF-8: {error.object!r:.80}", remedy=REMEDY) from error


def _named(processor: SentencePieceProcessor, source: TokenizerSource, role: str) -> int | None:
    """The id of the token with ``role``: the one that the config names, or the model's own."""
    text = source.special_tokens.get(f"{role}_token")
    added = {name: token for token, (name, _) in _added_tokens(source.config).items()}
    if text is not None and (text in added or processor.id_to_piece(processor.piece_to_id(text)) == text):
        return added.get(text, processor.piece_to_id(text))
    own: int = processor.bos_id() if role == "bos" else processor.eos_id()
    return own if own >= 0 else None


def _added_tokens(config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Id → (text, special) of the config's ``added_tokens_decoder``."""
    table = config.get("added_tokens_decoder")
    if not isinstance(table, dict):
        return {}
    try:
        return {int(token): (str(entry["content"]), bool(entry.get("special"))) for token, entry in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(
            f"'added_tokens_decoder' in tokenizer_config.json is damaged: {error!r}", remedy=REMEDY
        ) from error


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches (and captures) any of ``texts``, the longest where several fit; None if there are none."""
    found = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, found))})") if found else None
