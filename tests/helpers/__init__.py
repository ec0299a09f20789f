"""Shared by the tests: tiny checkpoints of every family, as safetensors and as GGUF."""
