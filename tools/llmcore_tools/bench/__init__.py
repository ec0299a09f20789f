"""``llmcore bench``: how fast a model runs here, op by op too, under load, and beside another engine."""
