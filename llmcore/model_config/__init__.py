"""From a model's ``config.json`` to its :class:`~llmcore.model_spec.ModelSpec`: nothing is passed over in silence.

A key is *implemented* when something reads it, *harmless* when it changes no logits, *neutral* when its value switches
off a feature that we lack; :mod:`llmcore.model_config.keys` lists the last two kinds. Any other key is refused by name.
"""

from llmcore.model_config.decoder import decoder_spec
from llmcore.model_config.keys import IGNORABLE
from llmcore.model_config.reader import ConfigReader

__all__ = ["IGNORABLE", "ConfigReader", "decoder_spec"]
