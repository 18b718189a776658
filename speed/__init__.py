"""What a step, an evaluation and a score cost: python -m speed.bench. Nothing imports it."""
