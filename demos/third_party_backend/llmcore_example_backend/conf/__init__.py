"""Config files that this package adds to llmcore's groups."""
