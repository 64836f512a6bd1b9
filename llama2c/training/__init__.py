"""Training: text becomes a vocabulary and shards of tokens, and these a model."""
