"""What the benchmarks share: worker processes, statistics, prompts, facts of the machine."""
