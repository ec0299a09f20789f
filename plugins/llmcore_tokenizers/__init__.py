"""Tokenizers: Hugging Face's ``tokenizer.json``, SentencePiece's ``tokenizer.model``, and those inside GGUF files."""
