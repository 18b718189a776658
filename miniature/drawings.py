"""Drawings of the miniature: eighteen kinds of object.

The miniature stands in for VGGSound (section 4.1) on a laptop. Twelve kinds of object sound
(SOUNDING, see sounds.py) and six do not (SILENT); every object comes in ten colours, and no two
drawings are alike. Nothing here learns and nothing is downloaded.

See every kind of object on every kind of background:
    python -m miniature.drawings out.png

Coordinates inside a drawing run from 0 to 1, x to the right and y downwards, angles in degrees
clockwise from three o'clock. The shapes are chunky on purpose: localization is scored against an
object's outline and against its bounding box, and a thin tail that doubles the box would make the
two disagree.
"""

import argparse

import numpy as np
from PIL import Image, ImageDraw

from miniature.backgrounds import PLACES, background

COLOURS = {
    'red': (210, 45, 45), 'orange': (235, 135, 35), 'yellow': (235, 205, 50),
    'green': (60, 160, 70), 'blue': (50, 95, 205), 'purple': (130, 65, 175),
    'pink': (235, 130, 175), 'brown': (135, 85, 50), 'gray': (135, 135, 140),
    'white': (238, 238, 235),
}
SOUNDING = ('bell', 'drum', 'siren', 'bird', 'dog', 'cat', 'car', 'clock', 'whistle', 'guitar',
            'telephone', 'frog')
SILENT = ('tree', 'house', 'cup', 'umbrella', 'ball', 'flower')
CLASSES = SOUNDING + SILENT

CANVAS = 160            # pixels a side at which an object is drawn before it is reduced
OUTLINE = 5             # pixels of outline at that size
COLOUR_JITTER = 18      # a colour's red, green and blue each move by up to this much, of 255
ROTATION = 15           # degrees an object may lean either way
GUITAR_ROTATION = 60    # a guitar is held at any slant
SQUEEZE = 0.88          # the least width, as a share of the drawn width
ALPHA_INSIDE = 100      # alpha above this belongs to the object, of 255

INK = (25, 25, 30)
CREAM = (248, 244, 230)
WOOD = (115, 75, 40)
DARK_WOOD = (62, 40, 24)
GLASS = (185, 218, 238)
STEEL = (188, 190, 196)
BEAK = (240, 155, 30)
LEAF = (65, 150, 70)
GOLD = (245, 200, 40)


# --------------------------------------- a sheet to draw on ---------------------------------------

class Canvas:
    """A transparent square with drawing methods in unit coordinates.

    image: RGBA, CANVAS x CANVAS
    """

    def __init__(self):
        self.image = Image.new('RGBA', (CANVAS, CANVAS), (0, 0, 0, 0))
        self.pen = ImageDraw.Draw(self.image)

    def ellipse(self, cx, cy, rx, ry, fill, outline=INK):
        self.pen.ellipse(around(cx, cy, rx, ry), fill, outline, OUTLINE)

    def box(self, left, top, right, bottom, fill, outline=INK, corner=0.0):
        corners = pixels([(left, top), (right, bottom)])
        self.pen.rounded_rectangle(corners, corner * CANVAS, fill, outline, OUTLINE)

    def polygon(self, points, fill, outline=INK):
        self.pen.polygon(pixels(points), fill=fill)
        if outline:
            self.line(points + points[:2], outline, OUTLINE / CANVAS)

    def line(self, points, fill=INK, width=0.03):
        self.pen.line(pixels(points), fill=fill, width=max(1, round(width * CANVAS)), joint='curve')

    def wedge(self, cx, cy, rx, ry, start, end, fill, outline=INK):
        self.pen.pieslice(around(cx, cy, rx, ry), start, end, fill, outline, OUTLINE)

    def arc(self, cx, cy, rx, ry, start, end, fill=INK, width=0.03):
        self.pen.arc(around(cx, cy, rx, ry), start, end, fill=fill,
                     width=max(1, round(width * CANVAS)))


def pixels(points):
    return [(x * CANVAS, y * CANVAS) for x, y in points]


def around(cx, cy, rx, ry):
    return pixels([(cx - rx, cy - ry), (cx + rx, cy + ry)])


def on_circle(cx, cy, radius, degrees):
    return cx + radius * np.cos(np.radians(degrees)), cy + radius * np.sin(np.radians(degrees))


def darker(colour, share=0.65):
    return tuple(int(value * share) for value in colour)


def lighter(colour, share=0.55):
    return tuple(int(value + (255 - value) * share) for value in colour)


def contrasting(colour):
    """Cream for a dark or strong colour, dark blue for a colour that is nearly cream already."""
    return (55, 75, 140) if min(colour) > 190 else CREAM


# ----------------- the twelve that sound: (canvas, colour, rng) draws one of them -----------------

def bell(canvas, colour, rng):
    canvas.ellipse(0.5, 0.88, 0.13, 0.11, darker(colour, 0.55))
    canvas.box(0.40, 0.02, 0.60, 0.22, darker(colour, 0.75), corner=0.09)
    shoulder = rng.uniform(0.30, 0.35)
    left = [(0.36, 0.12), (0.5 - shoulder * 0.9, 0.22), (0.5 - shoulder, 0.36), (0.12, 0.66),
            (0.04, 0.82)]
    right = [(1 - x, y) for x, y in reversed(left)]
    canvas.polygon(left + right, colour)
    canvas.box(0.01, 0.72, 0.99, 0.87, darker(colour, 0.8), corner=0.06)
    canvas.line([(0.33, 0.32), (0.27, 0.62)], lighter(colour), 0.07)


def drum(canvas, colour, rng):
    canvas.ellipse(0.5, 0.80, 0.46, 0.17, colour)
    canvas.box(0.04, 0.30, 0.96, 0.80, colour, outline=None)
    for x in (0.055, 0.945):
        canvas.line([(x, 0.30), (x, 0.80)])
    across = np.linspace(0.08, 0.92, 2 * rng.integers(3, 6) + 1)
    canvas.line([(x, 0.52 if k % 2 else 0.86) for k, x in enumerate(across)], contrasting(colour),
                0.045)
    canvas.ellipse(0.5, 0.32, 0.46, 0.19, darker(colour))
    canvas.ellipse(0.5, 0.29, 0.46, 0.18, CREAM)
    for hand in (-1, 1):                                 # two sticks, their round heads on the skin
        canvas.line([(0.5 + hand * 0.40, 0.10), (0.5 + hand * 0.08, 0.30)], WOOD, 0.06)
        canvas.ellipse(0.5 + hand * 0.08, 0.30, 0.06, 0.06, WOOD)


def siren(canvas, colour, rng):
    canvas.box(0.11, 0.03, 0.89, 0.95, colour, corner=0.36)
    glow = (255, 250, 190) if contrasting(colour) == CREAM else BEAK
    turn = rng.uniform(-12, 12)  # of the rays about the lamp inside the dome
    for degrees in range(180, 361, 45):
        start = on_circle(0.5, 0.50, 0.18, degrees + turn)
        end = on_circle(0.5, 0.50, 0.30, degrees + turn)
        canvas.line([start, end], glow, 0.055)
    canvas.box(0.38, 0.38, 0.62, 0.80, glow, corner=0.12)
    canvas.box(0.02, 0.71, 0.98, 0.96, (62, 64, 74), corner=0.06)
    canvas.box(0.10, 0.80, 0.90, 0.86, STEEL, outline=None)


def bird(canvas, colour, rng):
    canvas.polygon([(0.26, 0.50), (0.05, 0.32), (0.07, 0.68)], darker(colour))
    for x in (0.42, 0.58):
        canvas.line([(x, 0.88), (x, 0.97), (x + 0.10, 0.97)], BEAK, 0.06)
    canvas.ellipse(0.46, 0.59, 0.37, 0.34, colour)
    canvas.ellipse(0.65, 0.30, 0.25, 0.25, colour)
    canvas.ellipse(0.50, 0.57, 0.30, 0.29, colour, outline=None)
    canvas.ellipse(0.65, 0.31, 0.21, 0.21, colour, outline=None)
    canvas.polygon([(0.82, 0.25), (0.99, 0.35), (0.82, 0.45)], BEAK)
    canvas.ellipse(0.60, 0.70, 0.17, 0.14, lighter(colour), outline=None)
    canvas.ellipse(0.70, 0.25, 0.065, 0.065, CREAM)
    canvas.ellipse(0.715, 0.25, 0.03, 0.03, INK)
    tip = rng.uniform(0.58, 0.80)                        # how far the wing hangs
    canvas.polygon([(0.20, 0.44), (0.58, 0.46), (0.52, 0.62), (0.24, tip)], darker(colour))


def dog(canvas, colour, rng):
    dark = darker(colour, 0.55)
    canvas.line([(0.12, 0.50), (0.055, 0.26)], INK, 0.12)
    canvas.line([(0.12, 0.50), (0.06, 0.28)], colour, 0.07)
    for x in (0.06, 0.23, 0.46, 0.60):
        canvas.box(x, 0.62, x + 0.16, 0.98, colour, corner=0.05)
    canvas.box(0.05, 0.40, 0.76, 0.80, colour, corner=0.13)
    for _ in range(rng.integers(0, 4)):
        canvas.ellipse(rng.uniform(0.17, 0.46), rng.uniform(0.51, 0.68), 0.06, 0.05, dark,
                       outline=None)
    canvas.box(0.48, 0.05, 0.86, 0.56, colour, corner=0.13)
    canvas.box(0.66, 0.26, 0.98, 0.53, lighter(colour), corner=0.10)
    canvas.ellipse(0.93, 0.31, 0.065, 0.055, INK)
    canvas.line([(0.76, 0.44), (0.93, 0.44)], INK, 0.025)
    canvas.ellipse(0.73, 0.20, 0.035, 0.045, INK)
    canvas.box(0.42, 0.06, 0.59, 0.50, dark, corner=0.08)           # a hanging ear
    canvas.line([(0.54, 0.58), (0.77, 0.58)], (205, 45, 45), 0.07)  # a collar


def cat(canvas, colour, rng):
    canvas.arc(0.76, 0.74, 0.19, 0.22, 250, 120, INK, 0.13)
    canvas.arc(0.76, 0.74, 0.17, 0.20, 252, 118, colour, 0.08)
    canvas.ellipse(0.46, 0.78, 0.31, 0.21, colour)
    for x in (0.33, 0.59):
        canvas.ellipse(x, 0.93, 0.11, 0.06, lighter(colour))
    for side in (-1, 1):
        ear = [(0.5 + side * 0.40, 0.36), (0.5 + side * 0.38, 0.02), (0.5 + side * 0.08, 0.18)]
        canvas.polygon(ear, colour)
        inner = [(0.5 + side * 0.34, 0.26), (0.5 + side * 0.335, 0.11), (0.5 + side * 0.20, 0.19)]
        canvas.polygon(inner, (235, 150, 165), outline=None)
    canvas.ellipse(0.5, 0.39, 0.43, 0.28, colour)
    for x in rng.uniform(0.42, 0.58, rng.integers(0, 4)):           # some cats are tabbies
        canvas.line([(x, 0.14), (x, 0.23)], darker(colour), 0.03)
    eyes = COLOURS['yellow'] if rng.random() < 0.5 else (160, 220, 90)
    for side in (-1, 1):
        canvas.ellipse(0.5 + side * 0.17, 0.35, 0.085, 0.085, eyes)
        canvas.ellipse(0.5 + side * 0.17, 0.35, 0.025, 0.07, INK)
        for y in (0.46, 0.54):
            canvas.line([(0.5 + side * 0.12, 0.48), (0.5 + side * 0.40, y)], INK, 0.016)
    canvas.polygon([(0.44, 0.44), (0.56, 0.44), (0.5, 0.51)], (235, 120, 140))


def car(canvas, colour, rng):
    roof = rng.uniform(0.16, 0.22)
    canvas.polygon([(0.08, 0.48), (0.22, roof), (0.70, roof), (0.88, 0.48)], colour)
    tint = lighter(GLASS, rng.uniform(0, 0.5)) if rng.random() < 0.7 else (70, 85, 105)
    canvas.polygon([(0.18, 0.45), (0.27, roof + 0.06), (0.44, roof + 0.06), (0.44, 0.45)], tint)
    canvas.polygon([(0.50, 0.45), (0.50, roof + 0.06), (0.66, roof + 0.06), (0.78, 0.45)], tint)
    canvas.box(0.01, 0.42, 0.99, 0.75, colour, corner=0.09)
    canvas.box(0.88, 0.48, 0.98, 0.59, (252, 238, 140), corner=0.03)
    canvas.box(0.02, 0.48, 0.09, 0.59, (225, 60, 50), corner=0.03)
    canvas.line([(0.48, 0.46), (0.48, 0.70)], darker(colour), 0.025)
    for x in (0.24, 0.76):
        canvas.ellipse(x, 0.74, 0.15, 0.15, (38, 38, 42))
        canvas.ellipse(x, 0.74, 0.07, 0.07, STEEL)


def clock(canvas, colour, rng):
    for side in (-1, 1):                                 # an alarm clock: two feet, two gongs
        canvas.line([(0.5 + side * 0.20, 0.80), (0.5 + side * 0.34, 0.96)], INK, 0.10)
        canvas.ellipse(0.5 + side * 0.28, 0.17, 0.20, 0.15, darker(colour, 0.8))
    canvas.ellipse(0.5, 0.54, 0.44, 0.44, colour)
    canvas.ellipse(0.5, 0.54, 0.33, 0.33, CREAM)
    for degrees in range(0, 360, 90 if rng.random() < 0.5 else 30):
        canvas.line([on_circle(0.5, 0.54, 0.25, degrees), on_circle(0.5, 0.54, 0.30, degrees)],
                    INK, 0.03)
    canvas.line([(0.5, 0.54), on_circle(0.5, 0.54, 0.16, rng.uniform(0, 360))], INK, 0.06)
    canvas.line([(0.5, 0.54), on_circle(0.5, 0.54, 0.24, rng.uniform(0, 360))], INK, 0.04)


def whistle(canvas, colour, rng):
    mouthpiece = rng.uniform(0.50, 0.54)                 # height at which it meets the chamber
    canvas.box(0.34, 0.16, 0.99, mouthpiece, colour, corner=0.03)
    canvas.box(0.86, 0.16, 0.99, mouthpiece, darker(colour, 0.6), corner=0.03)
    canvas.ellipse(0.36, 0.51, 0.35, 0.35, colour)
    canvas.box(0.38, 0.19, 0.66, mouthpiece - 0.03, colour, outline=None)
    canvas.box(0.52, 0.14, 0.68, 0.30, INK)
    canvas.ellipse(0.36, 0.53, 0.19, 0.19, darker(colour, 0.5))
    canvas.ellipse(0.36 + rng.uniform(-0.05, 0.05), 0.57, 0.09, 0.09, (225, 180, 120))  # the pea
    canvas.arc(0.36, 0.51, 0.28, 0.28, 160, 235, lighter(colour), 0.045)


def guitar(canvas, colour, rng):
    canvas.box(0.41, 0.10, 0.59, 0.50, WOOD)
    canvas.box(0.36, 0.01, 0.64, 0.15, DARK_WOOD, corner=0.04)
    waist = rng.uniform(0.20, 0.25)                      # half width between the two bouts
    canvas.ellipse(0.5, 0.48, 0.27, 0.18, colour)
    canvas.ellipse(0.5, 0.76, 0.35, 0.23, colour)
    canvas.box(0.5 - waist, 0.45, 0.5 + waist, 0.75, colour, outline=None)
    canvas.ellipse(0.5, 0.60, 0.13, 0.13, INK)
    canvas.box(0.445, 0.12, 0.555, 0.50, WOOD, outline=None)
    canvas.box(0.33, 0.81, 0.67, 0.88, DARK_WOOD)
    for x in (0.465, 0.5, 0.535):
        canvas.line([(x, 0.05), (x, 0.84)], CREAM, 0.012)


def telephone(canvas, colour, rng):
    canvas.polygon([(0.25, 0.36), (0.75, 0.36), (0.97, 0.95), (0.03, 0.95)], colour)
    for x in (0.33, 0.57):
        canvas.box(x, 0.26, x + 0.10, 0.42, darker(colour, 0.7))
    canvas.ellipse(0.5, 0.67, 0.26, 0.23, CREAM)
    turn = rng.uniform(0, 40)                            # how far the dial stands turned
    for degrees in range(0, 360, 45):
        x, y = on_circle(0.5, 0.67, 0.165, degrees + turn)
        canvas.ellipse(x, y * 0.9 + 0.067, 0.035, 0.035, INK)
    canvas.ellipse(0.5, 0.67, 0.08, 0.08, colour)
    handset = darker(colour, 0.75)
    for left in (0.01, 0.73):
        canvas.box(left, 0.08, left + 0.26, 0.43, handset, corner=0.08)
    canvas.box(0.03, 0.06, 0.97, 0.26, handset, corner=0.09)


def frog(canvas, colour, rng):
    dark = darker(colour, 0.75)
    belly = lighter(colour, 0.6)
    for side in (-1, 1):
        canvas.ellipse(0.5 + side * 0.33, 0.75, 0.17, 0.19, dark)
        canvas.ellipse(0.5 + side * 0.34, 0.93, 0.16, 0.06, dark)
        canvas.ellipse(0.5 + side * 0.24, 0.19, 0.17, 0.17, colour)
    canvas.ellipse(0.5, 0.66, 0.34, 0.31, colour)
    canvas.ellipse(0.5, 0.77, 0.22, 0.18, belly, outline=None)
    canvas.ellipse(0.5, 0.42, 0.46, 0.25, colour)
    for side in (-1, 1):
        canvas.ellipse(0.5 + side * 0.24, 0.18, 0.115, 0.115, CREAM)
        canvas.ellipse(0.5 + side * 0.24, 0.19, 0.05, 0.06, INK)
        canvas.ellipse(0.5 + side * 0.11, 0.94, 0.10, 0.05, colour)
    canvas.arc(0.5, 0.38, 0.34, 0.20, 15, 165, INK, 0.04)


# ------------------------------------ the six that are silent -------------------------------------

def tree(canvas, colour, rng):
    canvas.box(0.38, 0.55, 0.62, 0.99, WOOD)
    crown = [(0.26, 0.50, 0.24), (0.74, 0.50, 0.24), (0.32, 0.28, 0.24), (0.68, 0.28, 0.24),
             (0.5, 0.24, 0.23), (0.5, 0.50, 0.24)]       # clumps of leaves: x, y, radius
    crown = [(x, y + rng.uniform(-0.03, 0.03), radius * rng.uniform(0.9, 1.05))
             for x, y, radius in crown]
    for x, y, radius in crown:
        canvas.ellipse(x, y, radius, radius, colour)
    for x, y, radius in crown:
        canvas.ellipse(x, y, radius - 0.032, radius - 0.032, colour, outline=None)
    for x, y in zip(rng.uniform(0.22, 0.78, 5), rng.uniform(0.15, 0.60, 5)):
        canvas.arc(x, y, 0.08, 0.07, 20, 160, darker(colour), 0.035)


def house(canvas, colour, rng):
    canvas.box(0.70, 0.06, 0.85, 0.40, (130, 75, 65))
    canvas.box(0.08, 0.40, 0.92, 0.98, colour)
    roof = darker(colour, 0.5) if rng.random() < 0.5 else (150, 60, 50)
    canvas.polygon([(0.02, 0.46), (0.5, 0.03), (0.98, 0.46)], roof)
    door = rng.uniform(0.38, 0.44)
    canvas.box(door, 0.62, door + 0.18, 0.98, (85, 55, 35))
    for left in (0.15, 0.66):
        canvas.box(left, 0.56, left + 0.19, 0.76, GLASS)
        canvas.line([(left + 0.095, 0.57), (left + 0.095, 0.75)], INK, 0.02)


def cup(canvas, colour, rng):
    canvas.arc(0.72, 0.52, 0.26, 0.25, 270, 90, INK, 0.15)
    canvas.arc(0.72, 0.52, 0.23, 0.22, 270, 90, darker(colour, 0.85), 0.09)
    canvas.ellipse(0.41, 0.88, 0.29, 0.10, colour)
    canvas.polygon([(0.03, 0.17), (0.79, 0.17), (0.70, 0.88), (0.12, 0.88)], colour)
    canvas.ellipse(0.41, 0.88, 0.27, 0.08, colour, outline=None)
    band = rng.uniform(0.45, 0.60)
    canvas.box(0.10, band, 0.72, band + 0.13, contrasting(colour), outline=None)
    canvas.ellipse(0.41, 0.17, 0.39, 0.12, CREAM)
    canvas.ellipse(0.41, 0.19, 0.31, 0.07, (90, 55, 30), outline=None)


def umbrella(canvas, colour, rng):
    canvas.line([(0.5, 0.55), (0.5, 0.86)], DARK_WOOD, 0.10)
    canvas.arc(0.40, 0.86, 0.15, 0.13, 0, 180, DARK_WOOD, 0.10)
    canvas.box(0.45, 0.00, 0.55, 0.10, DARK_WOOD)
    panel = contrasting(colour) if rng.random() < 0.5 else lighter(colour, 0.4)
    canvas.wedge(0.5, 0.66, 0.48, 0.62, 180, 360, colour)
    canvas.wedge(0.5, 0.66, 0.20, 0.61, 180, 360, panel)
    canvas.wedge(0.5, 0.66, 0.48, 0.10, 0, 180, colour, outline=None)
    for cx, half in ((0.16, 0.16), (0.5, 0.20), (0.84, 0.16)):      # a scalloped rim
        canvas.wedge(cx, 0.68, half, 0.09, 180, 360, darker(colour, 0.5))


def ball(canvas, colour, rng):
    turn = rng.uniform(0, 120)
    pole = on_circle(0.5, 0.5, rng.uniform(0, 0.12), rng.uniform(0, 360))
    canvas.ellipse(0.5, 0.5, 0.48, 0.48, colour)
    for start in (turn, turn + 120, turn + 240):         # three segments, sides meeting at the pole
        edge = [on_circle(0.5, 0.5, 0.46, degrees) for degrees in np.linspace(start, start + 52, 8)]
        canvas.polygon([pole] + edge, contrasting(colour))
    canvas.ellipse(*pole, 0.11, 0.11, colour)


def flower(canvas, colour, rng):
    canvas.line([(0.5, 0.60), (0.5, 0.99)], INK, 0.13)
    canvas.line([(0.5, 0.60), (0.5, 0.97)], LEAF, 0.08)
    for side in (-1, 1):
        canvas.ellipse(0.5 + side * 0.19, 0.89, 0.17, 0.09, LEAF)
    petals = int(rng.integers(5, 9))
    turn = rng.uniform(0, 72)
    for degrees in np.arange(petals) * 360 / petals + turn:
        canvas.ellipse(*on_circle(0.5, 0.41, 0.25, degrees), 0.17, 0.17, colour)
    canvas.ellipse(0.5, 0.41, 0.17, 0.17, GOLD)


DRAW = {
    'bell': bell, 'drum': drum, 'siren': siren, 'bird': bird, 'dog': dog, 'cat': cat, 'car': car,
    'clock': clock, 'whistle': whistle, 'guitar': guitar, 'telephone': telephone, 'frog': frog,
    'tree': tree, 'house': house, 'cup': cup, 'umbrella': umbrella, 'ball': ball, 'flower': flower,
}


# --------------------------------------- one object, posed ----------------------------------------

def sprite(name, colour, size, rng, pose=True):
    """Draw one object, cropped to itself.

    name    one of CLASSES, else ValueError
    colour  one of COLOURS, else ValueError; jittered by up to COLOUR_JITTER
    size    pixels of the longer side
    rng     numpy.random.Generator; the same state gives the same drawing
    pose    mirror, lean and squeeze the drawing at random; False leaves it upright
    Returns a PIL image, RGBA, (H, W) with max(H, W) = size; alpha > ALPHA_INSIDE is the object.
    """
    if name not in DRAW:
        raise ValueError(f'no drawing is called {name!r}; the classes are {", ".join(CLASSES)}')
    if colour not in COLOURS:
        raise ValueError(f'no colour is called {colour!r}; the colours are {", ".join(COLOURS)}')
    jitter = rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    canvas = Canvas()
    paint = np.clip(COLOURS[colour] + jitter, 0, 255)
    DRAW[name](canvas, tuple(int(value) for value in paint), rng)
    image = canvas.image
    squeeze = 1.0
    if pose:
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        limit = GUITAR_ROTATION if name == 'guitar' else ROTATION
        image = image.rotate(rng.uniform(-limit, limit), Image.Resampling.BILINEAR, expand=True)
        squeeze = rng.uniform(SQUEEZE, 1.0)
    inside = np.asarray(image.getchannel('A')) > ALPHA_INSIDE                           # (H, W)
    image = image.crop(Image.fromarray(inside).getbbox())
    width = image.width * squeeze
    height = image.height
    scale = size / max(width, height)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(shape, Image.Resampling.LANCZOS)


# ----------------------------------------- contact sheet ------------------------------------------

def contact_sheet(path, tile=72, seed=0):
    """Save a picture of every class on every place, in several colours; two classes a row.

    tile  pixels a side of one cell
    """
    rng = np.random.default_rng(seed)
    sheet = Image.new('RGB', (2 * len(PLACES) * tile, len(CLASSES) // 2 * tile))
    for k, name in enumerate(CLASSES):
        for column, place in enumerate(PLACES):
            cell = Image.fromarray(background(place, tile, rng))
            thing = sprite(name, str(rng.choice(list(COLOURS))),
                           int(tile * rng.uniform(0.65, 0.9)), rng)
            cell.paste(thing, ((tile - thing.width) // 2, (tile - thing.height) // 2), thing)
            sheet.paste(cell, ((k % 2 * len(PLACES) + column) * tile, k // 2 * tile))
    sheet.save(path)


def main():
    parser = argparse.ArgumentParser('python -m miniature.drawings',
                                     description='Draw every class on every place.')
    parser.add_argument('path', nargs='?', default='drawings.png', help='(default: drawings.png)')
    contact_sheet(parser.parse_args().path)


if __name__ == '__main__':
    from launch import run_script           # here, not above: drawing processes need no torch
    run_script('miniature.drawings', main, 'interrupted')
