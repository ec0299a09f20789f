"""safetensors checkpoints: strict bounded headers, shards, and the files beside them."""
