"""GGUF checkpoints: our own bounded reader, and metadata as Hugging Face config keys."""
