"""The commands: ``llmcore`` and its subcommands, and what ``llama_infer`` and ``qwen_infer`` share."""
