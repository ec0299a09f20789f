"""What a token's text in a vocabulary means in bytes."""

from __future__ import annotations

import re

SPACE = "▁"  # U+2581: how SentencePiece writes a space
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_characters() -> dict[int, int]:
    """The printable character (its code point) → byte of GPT-2's byte-level BPE.

    Bytes that Latin-1 prints stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: byte for byte in printable}, **{256 + index: byte for index, byte in enumerate(others)}}


BYTE_OF = _byte_characters()
CHARACTER_OF = {byte: chr(character) for character, byte in BYTE_OF.items()}


def byte_level(piece: str) -> bytes:
    """The bytes of a byte-level BPE token; a token in other characters is its own text."""
    try:
        return bytes(BYTE_OF[ord(character)] for character in piece)
    except KeyError:
        return piece.encode("utf-8", "replace")


def byte_level_text(text: str) -> str:
    """``text`` as byte-level BPE writes it."""
    return "".join(CHARACTER_OF[byte] for byte in text.encode())


def sentencepiece(piece: str) -> bytes:
    """The bytes of a SentencePiece token: spaces are written ``▁``, single bytes ``<0xAB>``."""
    byte = BYTE_PIECE.fullmatch(piece)
    if byte is not None:
        return bytes([int(byte[1], 16)])
    return piece.replace(SPACE, " ").encode("utf-8", "replace")
