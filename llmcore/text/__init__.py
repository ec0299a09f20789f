"""Text to tokens and back: the tokenizer protocol, chat templates, incremental detokenizing."""
