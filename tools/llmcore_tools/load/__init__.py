"""Load on an OpenAI-compatible HTTP server: prompts, a light client, arrivals in time, and what the times amount to."""
