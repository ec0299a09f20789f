"""The KV cache: page ids and who holds them; the bytes belong to the runner."""
