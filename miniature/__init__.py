"""The laptop-size stand-in for the paper's data and backbones: a drawn world, tiny weights."""
