"""``llama_infer``: answers a prompt with a Llama model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llmcore.cli.infer import infer_main


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns its exit code."""
    return infer_main("llama_infer", "llama", argv)


if __name__ == "__main__":
    sys.exit(main())
