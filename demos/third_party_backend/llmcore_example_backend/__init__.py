"""Two kernels for llmcore, as anybody could write them."""
