"""What a step, an evaluation and a score cost (bench.py); a faster data root (prepare.py)."""
