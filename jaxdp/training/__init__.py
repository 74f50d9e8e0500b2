"""A training run: its options, its compiled program, its checkpoints and its record."""
