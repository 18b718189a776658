"""Draw a clip of the miniature's world: two objects that sound in turn, for videos/heat.py.

    python -m videos.drawn clip.mp4
"""

import argparse
import io
import itertools
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from launch import run_script, some_path, write_file
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

    def pictures():
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
            yield k / RATE, np.asarray(image)

    file = io.BytesIO()
    write_mp4(file, pictures(), wav[None], SAMPLE_RATE)
    write_file(path, file.getvalue())
    return always


def write_mp4(file, pictures, sound, rate):
    """Write a video: H.264 and AAC where this PyAV has them, else MPEG-4 and MP2.

    file: open for writing. pictures: iterator of (seconds, (H, W, 3) uint8), at least one.
    sound: (channels, samples) float32, `rate` of them a second.
    """
    ticks = Fraction(1, 90_000)
    first = next(pictures)
    height, width, _ = first[1].shape
    layout = f'{len(sound)}c'                       # FFmpeg's usual one for so many channels
    with av.open(file, 'w', 'mp4') as container:
        codec = 'libx264' if 'libx264' in av.codecs_available else 'mpeg4'
        # 30 frames a second are nominal: each frame has its own time stamp
        picture = container.add_stream(codec, rate=30, width=width, height=height)
        picture.pix_fmt = 'yuv420p'
        picture.codec_context.time_base = ticks
        codec = 'aac' if 'aac' in av.codecs_available else 'mp2'
        coded_rate = rate if rate in SOUND_RATES else SOUND_RATES[0]
        track = container.add_stream(codec, rate=coded_rate, layout=layout)
        for seconds, pixels in itertools.chain([first], pictures):
            frame = av.VideoFrame.from_ndarray(pixels, 'rgb24')
            frame.pts = round(seconds / ticks)
            frame.time_base = ticks
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        for begin in range(0, sound.shape[1], rate):            # a second at a time
            part = np.ascontiguousarray(sound[:, begin:begin + rate])
            frame = av.AudioFrame.from_ndarray(part, 'fltp', layout)
            frame.sample_rate = rate
            frame.pts = begin
            frame.time_base = Fraction(1, rate)
            container.mux(track.encode(frame))
        container.mux(track.encode())


def main():
    parser = argparse.ArgumentParser('python -m videos.drawn', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('clip', type=some_path, help='file to write')
    draw_clip(parser.parse_args().clip)


if __name__ == '__main__':
    run_script('videos.drawn', main, 'interrupted')
