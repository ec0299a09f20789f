"""The Llama family: Llama 2 and 3, and the many models that share their architecture."""
