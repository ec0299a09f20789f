"""An HTTP server that speaks OpenAI's API: ``llmcore serve``."""
