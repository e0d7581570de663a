"""What users call: load a model, plan a run from names and values, generate, stream."""
