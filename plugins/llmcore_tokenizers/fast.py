"""A tokenizer run by the ``tokenizers`` library, whether its data came as JSON or out of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmcore.errors import TokenizerError
from llmcore.text.tokenizer import Part, Tokenizer, check_unicode

if TYPE_CHECKING:
    import tokenizers

Decode = Callable[[str], bytes]


class FastTokenizer(Tokenizer):
    """Two ``tokenizers.Tokenizer`` over one model: one reads control tokens in text, the other never does.

    The library's switch for that (``encode_special_tokens``) is part of a tokenizer's state, so it must not be turned
    per call: two threads would see each other's.
    """

    def __init__(
        self,
        parsing: tokenizers.Tokenizer,
        decode_piece: Decode,
        *,
        bos_id: int | None,
        eos_ids: Iterable[int],
        strips_space: bool,
        prefix: Sequence[int],
        suffix: Sequence[int],
    ) -> None:
        """Takes over ``parsing``; ``decode_piece`` gives the bytes of a token that is not an added one.

        Raises:
            TokenizerError: the ids of the added tokens have gaps that the library does not keep.
        """
        parsing.no_truncation()  # both may be set in a tokenizer.json, left from training
        parsing.no_padding()
        added = parsing.get_added_tokens_decoder()
        super().__init__(
            max([parsing.get_vocab_size(), *(token + 1 for token in added)]),
            bos_id=bos_id,
            eos_ids=eos_ids,
            special_ids=[token for token, entry in added.items() if entry.special],
            strips_space=strips_space,
            prefix=prefix,
            suffix=suffix,
        )
        self._added: dict[int, str] = {token: entry.content for token, entry in added.items()}
        self._decode_piece = decode_piece
        self._parsing = parsing
        self._plain = _plain(parsing, parsing.pre_tokenizer)
        self._later = _plain(parsing, _without_first_space(parsing.pre_tokenizer))
        unknown = getattr(parsing.model, "unk_token", None)
        self._unknown: int | None = parsing.token_to_id(unknown) if unknown else None

    def id_of(self, token: str) -> int | None:
        found: int | None = self._parsing.token_to_id(token)
        return found

    def encode_parts(self, parts: Sequence[Part]) -> list[int]:
        # What stands before a text can matter to how it is split (a space put first, white space that a control token
        # swallows). So the whole is encoded at once wherever that finds exactly the control tokens that are meant.
        texts = [self._added.get(part, "") if isinstance(part, int) else part for part in parts]
        for text in texts:
            check_unicode(text)
        whole = self._parsing.encode("".join(texts), add_special_tokens=False)
        return list(whole.ids) if self._agrees(whole, parts, texts) else super().encode_parts(parts)

    def _agrees(self, whole: Any, parts: Sequence[Part], texts: Sequence[str]) -> bool:
        """Whether the control tokens of ``whole`` are those of ``parts``, in their places."""
        expected, place = [], 0
        for part, text in zip(parts, texts, strict=True):
            if isinstance(part, int):
                expected.append((part, place))
            place += len(text)
        spans = zip(whole.ids, whole.offsets, strict=True)
        found = [(token, start, end) for token, (start, end) in spans if token in self.special_ids]
        return len(found) == len(expected) and all(
            token == meant and start <= place < end  # it may have swallowed white space before it
            for (token, start, end), (meant, place) in zip(found, expected, strict=True)
        )

    def _parse(self, text: str) -> list[int]:
        return list(self._parsing.encode(text, add_special_tokens=False).ids)

    def _encode_text(self, text: str, *, first: bool) -> list[int]:
        ids: list[int] = (self._plain if first else self._later).encode(text, add_special_tokens=False).ids
        if self.special_ids.isdisjoint(ids):
            return ids
        return [each for token in ids for each in self._spelled(token)]

    def _spelled(self, token: int) -> list[int]:
        """``token``; or its characters one by one, where merges made a control token out of plain text."""
        if token not in self.special_ids or token == self._unknown:
            return [token]
        single = (self.id_of(character) for character in self._added[token])
        known = (self._unknown if each is None else each for each in single)
        return [each for each in known if each is not None]

    def _token_bytes(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._parsing.id_to_token(token)
        return b"" if piece is None else self._decode_piece(piece)


def _plain(parsing: tokenizers.Tokenizer, pre_tokenizer: Any) -> tokenizers.Tokenizer:
    """A tokenizer over the same model (not a copy of it) that takes control tokens for the text that they are."""
    import tokenizers

    plain = tokenizers.Tokenizer(parsing.model)
    if parsing.normalizer is not None:
        plain.normalizer = parsing.normalizer
    if pre_tokenizer is not None:
        plain.pre_tokenizer = pre_tokenizer
    added = parsing.get_added_tokens_decoder()
    plain.add_tokens([added[token] for token in sorted(added)])  # in this order they get the same ids
    if any(plain.token_to_id(entry.content) != token for token, entry in added.items()):
        raise TokenizerError("the ids of its added tokens have gaps", remedy="number them on from the vocabulary's end")
    plain.encode_special_tokens = True
    return plain


def _without_first_space(pre_tokenizer: Any) -> Any:
    """``pre_tokenizer`` for text that does not begin a sequence."""
    from tokenizers import pre_tokenizers

    if isinstance(pre_tokenizer, pre_tokenizers.Metaspace) and pre_tokenizer.prepend_scheme == "first":
        mark, split = pre_tokenizer.replacement, pre_tokenizer.split
        return pre_tokenizers.Metaspace(replacement=mark, prepend_scheme="never", split=split)
    return pre_tokenizer
