"""Draw a clip of the miniature's world: two objects that sound in turn, for videos/heat.py.

    python -m videos.drawn clip.mp4
"""

import argparse
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from launch import run_script, some_path
from miniature.drawings import background, sprite
from miniature.sounds import SAMPLE_RATE, sound

NAMES = ('dog', 'bell')         # on the left and on the right, in the order in which they sound
COLOURS = ('brown', 'yellow')
TURN = 4.0                      # seconds for which each sounds
RATE = 25                       # frames a second
SIDE = 384                      # pixels; the model's frames have 96
OBJECT = 170                    # pixels, the longer side of an object
SEED = 3
SOUND_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000)    # of AAC and MP2, in Hz


def draw_clip(path):
    """Write the clip, 8 s. -> (2, H, W) bool: the pixels that each object covers in every frame"""
    rng = np.random.default_rng(SEED)
    place = Image.fromarray(background('open field', SIDE, rng))
    sprites = [sprite(name, colour, OBJECT, rng, pose=False)
               for name, colour in zip(NAMES, COLOURS)]
    wav = np.concatenate([sound(name, rng, TURN) for name in NAMES])
    always = np.ones((2, SIDE, SIDE), bool)         # covered in all frames so far
    with av.open(str(path), 'w') as container:
        picture, track = add_streams(container, SIDE, SIDE, RATE, 1, SAMPLE_RATE)
        for k in range(round(2 * TURN * RATE)):
            image = place.copy()
            for i, drawn in enumerate(sprites):
                sway = np.sin(2 * np.pi * (k / RATE / TURN + i / 2))
                x = SIDE * (1 + 2 * i) // 4 - drawn.width // 2
                y = round(SIDE / 2 + 30 * sway) - drawn.height // 2
                image.paste(drawn, (x, y), drawn)
                shape = np.zeros((SIDE, SIDE), bool)
                shape[y:y + drawn.height, x:x + drawn.width] = np.asarray(drawn)[..., 3] > 127
                always[i] &= shape
            frame = av.VideoFrame.from_image(image)
            frame.pts = k
            frame.time_base = Fraction(1, RATE)
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        encode_sound(container, track, wav[None], SAMPLE_RATE)
    return always


def add_streams(container, width, height, rate, channels, sound_rate):
    """H.264 and AAC where this PyAV has them, else MPEG-4 and MP2. -> video and audio stream"""
    codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
    picture = container.add_stream(codec, rate=rate)
    picture.width = width
    picture.height = height
    picture.pix_fmt = 'yuv420p'
    codec = 'aac' if 'aac' in av.codecs_available else 'mp2'
    rate = sound_rate if sound_rate in SOUND_RATES else SOUND_RATES[0]
    return picture, container.add_stream(codec, rate=rate, layout=f'{channels}c')


def encode_sound(container, track, samples, rate):
    """Write (channels, samples) float32 to the audio stream `track`, a second at a time."""
    for begin in range(0, samples.shape[1], rate):
        part = np.ascontiguousarray(samples[:, begin:begin + rate])
        frame = av.AudioFrame.from_ndarray(part, 'fltp', f'{len(samples)}c')
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = begin
        container.mux(track.encode(frame))
    container.mux(track.encode())


def main():
    parser = argparse.ArgumentParser('python -m videos.drawn', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('clip', type=some_path, help='file to write')
    draw_clip(parser.parse_args().clip)


if __name__ == '__main__':
    run_script('videos.drawn', main, 'interrupted')
