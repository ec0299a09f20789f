"""What form an answer must have: JSON, JSON of a schema, a regular expression or a grammar."""

from __future__ import annotations

from dataclasses import dataclass

from llmcore.errors import RequestError, near

KINDS = ("json_object", "json_schema", "regex", "lark")
MAX_BYTES = 1 << 16  # of a schema or grammar


@dataclass(frozen=True)
class Constraint:
    """The form of one request's answer.

    Attributes:
        kind: ``json_object`` (any), ``json_schema``, ``regex`` (Rust's syntax; the whole answer matches) or ``lark``
            (llguidance's dialect).
        text: the schema as JSON, the expression or the grammar; empty for ``json_object``.

    Raises:
        RequestError: an unknown kind, or a text that is missing, too long or not Unicode; the field is
            ``response_format``. What the text says is looked at when the request is added.
    """

    kind: str
    text: str = ""

    def __post_init__(self) -> None:
        """Checks both fields."""
        if self.kind not in KINDS:
            raise _wrong(f"the kind of constraint is {self.kind!r}", near(str(self.kind), KINDS))
        if not isinstance(self.text, str):
            raise _wrong(f"the {self.kind} is a {type(self.text).__name__}", "give it as text")
        if bool(self.text) == (self.kind == "json_object"):
            wrong = "takes no text" if self.text else "is empty"
            raise _wrong(f"the {self.kind} {wrong}", "json_object has no text, all other kinds have one")
        try:
            size = len(self.text.encode())
        except UnicodeEncodeError as error:
            raise _wrong(f"the {self.kind} holds a lone surrogate", "give it as Unicode text") from error
        if size > MAX_BYTES:
            raise _wrong(f"the {self.kind} has {size} bytes", f"it may have {MAX_BYTES}")


def _wrong(message: str, remedy: str) -> RequestError:
    return RequestError(message, field="response_format", remedy=remedy)
