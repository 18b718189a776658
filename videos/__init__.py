"""From videos to data (extract.py) and from a video to its heatmaps (heat.py)."""
