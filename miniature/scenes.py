"""One scene of the miniature: one to three drawn objects on a textured place, with exact masks.

Objects are those of drawings.py, places those of backgrounds.py. Every sample draws from its own
generator, seeded with (seed, split, index), so any scene can be drawn again alone, and no two
splits share one.
"""

import csv
import io
from dataclasses import dataclass

import numpy as np
import soundfile
from PIL import Image

from miniature.backgrounds import PLACES, background
from miniature.drawings import CLASSES, COLOURS, SOUNDING, sprite
from miniature.sounds import SAMPLE_RATE, sound

IMAGE_SIZE = 96                                     # pixels, square
OBJECTS_PER_SCENE = {1: 0.35, 2: 0.40, 3: 0.25}     # share of the scenes
# An object's longer side, as a share of the image's, by the number of objects in the scene
OBJECT_SIZE = {1: (0.5, 0.92), 2: (0.40, 0.62), 3: (0.32, 0.5)}
SMALL = (0.26, 0.36)                # size of an object much smaller than its scene's others
SMALL_SHARE = 0.08                  # of the objects
OVERLAP = 0.04                      # of two boxes, as a share of the smaller one
OCCLUDED_OVERLAP = 0.30             # the same in scenes that allow more
OCCLUDED_SHARE = 0.15               # of the scenes
MIN_VISIBLE_PIXELS = 60


@dataclass
class DrawnObject:
    name: str
    colour: str
    mask: np.ndarray            # (H, W) bool, the visible part
    box: tuple                  # (x0, y0, x1, y1) pixels around it, right and bottom excluded


@dataclass
class Scene:
    image: np.ndarray           # (H, W, 3) uint8
    objects: list               # DrawnObject, in drawing order: later ones cover earlier ones
    place: str

    def sounding(self):
        """The names of its objects that can sound."""
        return [thing.name for thing in self.objects if thing.name in SOUNDING]


def sample_generator(seed, split, index):
    """The random generator of one sample: the same on every machine, another for each sample."""
    return np.random.default_rng([seed, *split.encode(), index])


def draw_scene(rng, names=None, size=IMAGE_SIZE, sizes=None, overlap=None):
    """A scene of given classes, or of one to three random ones. -> Scene, size x size pixels.

    sizes: least and most length of each object, as a share of the image's. overlap: the most that
    two boxes may share, as a share of the smaller. Without them the constants above hold.
    """
    if names is None:
        count = rng.choice(list(OBJECTS_PER_SCENE), p=list(OBJECTS_PER_SCENE.values()))
        names = list(rng.choice(CLASSES, count, replace=False))
    place = str(rng.choice(PLACES))
    picture = Image.fromarray(background(place, size, rng))
    colours = [str(rng.choice(list(COLOURS))) for _ in names]
    sprites = [sprite(name, colour, object_pixels(len(names), size, rng, sizes), rng)
               for name, colour in zip(names, colours)]
    scene = compose(picture, place, names, colours, sprites, rng, overlap)
    # an object was hidden behind another one: draw again
    return scene or draw_scene(rng, names, size, sizes, overlap)


def draw_sounding_scene(rng):
    """A random scene in which at least one object can sound."""
    scene = draw_scene(rng)
    while not scene.sounding():
        scene = draw_scene(rng)
    return scene


def compose(picture, place, names, colours, sprites, rng, overlap=None):
    """Paste sprites on a picture, later ones over earlier ones. -> Scene, None if one is hidden"""
    size = picture.width
    sprites, corners = arrange(sprites, size, rng, overlap)
    owner = np.zeros((size, size), np.uint8)        # 1 + index of the object seen at each pixel
    for i, (drawn, (x, y)) in enumerate(zip(sprites, corners)):
        picture.paste(drawn, (x, y), drawn)
        shape = np.asarray(drawn.getchannel('A')) > 127
        owner[y:y + drawn.height, x:x + drawn.width][shape[:size - y, :size - x]] = i + 1
    image = photograph(np.asarray(picture, np.float32), rng)
    objects = []
    for i, (name, colour) in enumerate(zip(names, colours)):
        mask = owner == i + 1
        if mask.sum() < MIN_VISIBLE_PIXELS:
            return None
        objects.append(DrawnObject(str(name), colour, mask, box_of(mask)))
    return Scene(image, objects, place)


def object_pixels(count, size, rng, sizes):
    """The longer side of an object, in a scene of `count` objects and `size` pixels."""
    if not sizes:
        sizes = SMALL if rng.random() < SMALL_SHARE else OBJECT_SIZE[count]
    return max(12, round(rng.uniform(*sizes) * size))


def arrange(sprites, size, rng, overlap):
    """Corners for the sprites so that no two boxes overlap too much. -> sprites, corners

    Sprites that do not fit in 15 attempts are made smaller.
    """
    if overlap is None:
        overlap = OCCLUDED_OVERLAP if rng.random() < OCCLUDED_SHARE else OVERLAP
    while True:
        for _ in range(15):
            boxes = [random_box(one, size, rng) for one in sprites]
            pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1:]]
            if all(overlap_share(a, b) <= overlap for a, b in pairs):
                return sprites, [box[:2] for box in boxes]
        sprites = [smaller(one) for one in sprites]


def random_box(image, size, rng):
    """A place for a sprite in a scene of `size` pixels. -> (x0, y0, x1, y1)"""
    x, y = (int(rng.integers(0, max(1, size - side + 1))) for side in image.size)
    return x, y, x + image.width, y + image.height


def smaller(image):
    """A sprite reduced to 92% of each side."""
    shape = tuple(max(8, int(side * 0.92)) for side in image.size)
    return image.resize(shape, Image.Resampling.LANCZOS)


def overlap_share(a, b):
    """Shared area of two boxes as a share of the smaller one's."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    return width * height / min(areas)


def photograph(pixels, rng):
    """Contrast, brightness and grain of a camera. (H, W, 3) float -> uint8"""
    pixels = (pixels - 128) * rng.uniform(0.8, 1.1) + 128 + rng.uniform(-18, 18)
    pixels = pixels + rng.standard_normal(pixels.shape) * rng.uniform(0, 5)
    return pixels.clip(0, 255).astype(np.uint8)


def box_of(mask):
    """(H, W) bool -> (x0, y0, x1, y1), right and bottom excluded; zeros for an empty mask."""
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------

def write_bytes(path, content):
    """Write a file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def save_image(path, array):
    """(H, W) or (H, W, 3) uint8 -> a file, by its suffix a PNG or a JPEG of good quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {'quality': 95, 'subsampling': 0} if path.suffix == '.jpg' else {}
    Image.fromarray(array).save(path, **options)


def save_mask(path, mask):
    """(H, W) bool -> an image of 0 and 255."""
    save_image(path, mask.astype(np.uint8) * 255)


def save_wav(path, wav):
    """(n,) or (n, channels) in -1..1 -> a wav file of 16 bits."""
    memory = io.BytesIO()       # soundfile waits for the disk after each file that it writes itself
    soundfile.write(memory, wav, SAMPLE_RATE, format='WAV', subtype='PCM_16')
    write_bytes(path, memory.getvalue())


def save_sound(path, name, rng):
    """Two seconds of a sound, or of 'silence' -> a wav file."""
    save_wav(path, sound(name, rng))


def write_text(path, text):
    """The same bytes on every system."""
    write_bytes(path, text.encode('utf-8'))


def write_csv(path, rows):
    """Rows of texts -> a file of comma-separated lines, quoted where a text holds a comma."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    write_text(path, text.getvalue())


def record(sample, scene, sounding):
    """What a sample shows and sounds: its line of scenes.jsonl."""
    things = [{'name': thing.name, 'colour': thing.colour, 'box': thing.box}
              for thing in scene.objects]
    return {'id': sample, 'place': scene.place, 'objects': things, 'sounding': sounding}
