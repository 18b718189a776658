"""What a step, an evaluation and a score cost: python -m speed.bench. Nothing of the method imports this folder."""
