"""Reading small JSON files that we did not write: bounded in bytes and values, duplicate keys refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from llmcore.errors import CheckpointError

BYTES_LIMIT = 16 << 20  # the largest real file of this kind, the index of a 163-shard model, has 9 MB
VALUES_LIMIT = 500_000  # bounds what parsing allocates: some 100 MB


class JsonRefused(ValueError):
    """JSON that parses but that we do not take: a duplicate key, NaN, an infinity."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``object_pairs_hook`` that refuses a key given twice: readers disagree on which of the two counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonRefused(f"key {twice!r} appears twice")
    return found


def refuse_constant(name: str) -> NoReturn:
    """``parse_constant`` that refuses NaN and the infinities, which are not JSON."""
    raise JsonRefused(f"{name} is not JSON")


def read_text(path: Path, limit: int = BYTES_LIMIT) -> str:
    """The UTF-8 text of the regular file ``path``.

    Raises:
        CheckpointError: it cannot be read, is longer than ``limit`` bytes, or is not UTF-8.
    """
    if not path.is_file():
        raise CheckpointError("is missing, or not a regular file", file=path)
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", file=path) from error
    if len(raw) > limit:
        raise CheckpointError(
            f"is longer than {limit} bytes", file=path, offset=limit, remedy="is this the right file?"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError("is not UTF-8 text", file=path, offset=error.start) from error


def read_json_object(path: Path, limit: int = BYTES_LIMIT) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: not readable, too long, more than :data:`VALUES_LIMIT` values, not JSON, not an object, nested
            too deep, or with a key twice; names the file and, where there is one, the place.
    """
    text = read_text(path, limit)
    # Every value but the first of a container follows a comma, and every container opens with a bracket.
    if sum(map(text.count, ",[{")) > VALUES_LIMIT:
        raise CheckpointError(f"holds more than {VALUES_LIMIT} values", file=path, remedy="is this the right file?")
    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
    except RecursionError as error:
        raise CheckpointError("is nested too deep", file=path) from error
    except json.JSONDecodeError as error:
        place = len(text[: error.pos].encode())
        raise CheckpointError(f"is not JSON: {error.msg} in line {error.lineno}", file=path, offset=place) from error
    except ValueError as error:  # JsonRefused, or a number of thousands of digits
        raise CheckpointError(f"is not JSON that we read: {error}", file=path) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"holds a {type(value).__name__}, not an object", file=path, offset=0)
    return value
