"""The checkpoint protocol: lazily mapped tensors, their formats, and strict claiming of them."""

from llmcore.weights.checkpoint import Checkpoint, TokenizerSource, open_checkpoint
from llmcore.weights.claims import claim
from llmcore.weights.formats import FORMATS, TensorFormat, quantize
from llmcore.weights.tensor import Tensor, check_finite

__all__ = [
    "FORMATS",
    "Checkpoint",
    "Tensor",
    "TensorFormat",
    "TokenizerSource",
    "check_finite",
    "claim",
    "open_checkpoint",
    "quantize",
]
