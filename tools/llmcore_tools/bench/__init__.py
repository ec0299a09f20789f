"""``llmcore bench``: how fast a model runs here, op by op too, and beside another engine on the same file."""
