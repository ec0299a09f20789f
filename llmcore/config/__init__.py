"""Settings: their schema and ranges, where config files come from, and how the commands compose them with Hydra.

Importing the package imports no Hydra; :mod:`llmcore.config.compose` does.
"""

from llmcore.config.schema import Config

__all__ = ["Config"]
