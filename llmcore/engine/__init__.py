"""The engine: requests, scheduling, one ragged step at a time, sampling."""
