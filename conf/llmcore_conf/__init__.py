"""The settings of the commands, as Hydra config groups; found as ``pkg://llmcore_conf``."""
