"""The commands that answer: ``llama_infer``, ``qwen_infer``."""
