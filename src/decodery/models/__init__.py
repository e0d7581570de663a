"""Models: the engine, its weights and cache, tokenizers, table models and scorers."""
