"""Backgrounds of the miniature: seven kinds of place, each in two random colours.

python -m miniature.drawings shows every kind of object on each of them.
"""

import numpy as np
from PIL import Image

PLACES = ('plain wall', 'evening sky', 'striped curtain', 'checkered floor', 'cloudy sky',
          'open field', 'spotted carpet')


def pattern(place, size, rng):
    """How much of the second colour each pixel of `place` takes: (size, size) in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size] / size                                      # (H, W) each
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)                                       # (H, W)
    if place == 'plain wall':
        return np.full((size, size), rng.random())
    if place == 'evening sky':
        return (along - along.min()) / (np.ptp(along) + 1e-6)
    if place == 'striped curtain':
        return (np.sin(along * 2 * np.pi * rng.uniform(2, 9)) > 0).astype(float)
    if place == 'checkered floor':
        tiles = rng.uniform(3, 8)
        return (np.floor(x * tiles) + np.floor(y * tiles)) % 2
    if place == 'cloudy sky':
        coarse = rng.random((rng.integers(3, 9), rng.integers(3, 9)))
        clouds = Image.fromarray((coarse * 255).astype(np.uint8))
        return np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC)) / 255  # (H, W)
    if place == 'open field':
        return (y > rng.uniform(0.35, 0.75)).astype(float)
    if place == 'spotted carpet':
        cx = rng.random((8, 1, 1))
        cy = rng.random((8, 1, 1))
        area = rng.uniform(0.005, 0.04, (8, 1, 1))
        inside = (x - cx) ** 2 + (y - cy) ** 2 < area                           # (8, H, W)
        return inside.any(0).astype(float)                                      # (H, W)
    raise ValueError(f'no background is called {place!r}; the places are {", ".join(PLACES)}')


def background(place, size, rng):
    """Paint one background in two random colours with a little noise.

    place   one of PLACES, else ValueError
    size    pixels a side
    rng     numpy.random.Generator
    Returns uint8 (size, size, 3).
    """
    share = pattern(place, size, rng)[..., None]                                        # (H, W, 1)
    first = rng.integers(40, 225, 3)
    second = np.clip(first + rng.integers(-70, 70, 3), 0, 255)
    image = first + (second - first) * share                                            # (H, W, 3)
    image += rng.standard_normal((size, size, 1)) * rng.uniform(0, 12)  # grain in brightness
    image += rng.standard_normal((size, size, 3)) * rng.uniform(0, 5)  # grain in colour
    return np.clip(image, 0, 255).astype(np.uint8)
