"""Heatmaps of a video under its own sound, frame by frame (3.7, on any video of yours).

    python -m videos.heat --out heat.mp4                    # the miniature's drawn clip
    python -m videos.heat clip.mp4 --out heat.mp4 --preset paper --checkpoint FILE
    python -m videos.heat clip.mp4 --out heat.gif --side-by-side

Each frame is grounded with the sound around it. A moment is a multiple of --every; its A is that of
the --window seconds centred at it. A frame between two moments gets a linear blend of the heatmaps
under both. So BEATs runs once per moment, and CLIP's image encoder once per frame. The video keeps
its time stamps and its sound; a .gif has five frames a second and no sound.

Shapes: K moments, B frames, D embedding, H W pixels of a frame.
"""

import argparse
import io
import itertools
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from evaluate import load
from figures.pictures import heat_colours, overlay
from launch import (between, check_outputs, overwritten, pick_device, run_script, some_path,
                    write_file)
from media import SAMPLE_RATE, evaluation_image
from model import PRESETS, encode_image
from videos.drawn import draw_clip, write_mp4
from videos.extract import mono_16_khz, open_stream, read_sound, time_of, upright

LONGEST_SIDE = 1280         # pixels of the written video
BATCH = 8                   # frames, and moments, that go through the model at once
GIF_EVERY = 0.2             # seconds between the frames of a .gif
GIF_SIDE = 240              # its height at most, in pixels
GIF_COLOURS = 64


# ============ The sound around each moment ============

@torch.no_grad()
def embed_moments(model, wav, every, window, seconds):
    """A of the windows of sound centred at 0, every, 2 * every, ... seconds -> (K, D)

    wav: (samples,) at 16 kHz. window: seconds of sound in a window. seconds: of the model's input,
    to which a window is zero-padded at its end, as media.read_audio does.
    """
    length = round(window * SAMPLE_RATE)
    step = round(every * SAMPLE_RATE)
    rest = round(seconds * SAMPLE_RATE) - length
    padded = torch.nn.functional.pad(wav, (length // 2, length))
    windows = padded.unfold(0, length, step)[:len(wav) // step + 1]             # (K, length)
    A = []
    for batch in windows.split(BATCH):              # an hour of windows would need 12 GB
        batch = torch.nn.functional.pad(batch, (0, rest)).to(model.prompt_before.device)
        A.append(model.embed_audio(batch))                                      # (BATCH, D)
    return torch.cat(A)


@torch.no_grad()
def heatmaps(model, frames, times, A, every, image_size):
    """Heatmaps of B frames (PIL images of one size) at their times. -> (B, H, W) in 0..1

    A: (K, D), see embed_moments. Between two moments their heatmaps are blended.
    """
    position = torch.tensor(times) / every                                      # (B,), in moments
    before = position.floor().long().clamp(0, len(A) - 1)                       # (B,)
    after = (before + 1).clamp(max=len(A) - 1)                                  # (B,)
    around = torch.stack([A[before], A[after]], 1)                              # (B, 2, D)
    images = torch.stack([evaluation_image(frame, image_size) for frame in frames])
    vision = encode_image(model.clipseg, images.to(A.device))
    width, height = frames[0].size
    maps = model.heatmaps(vision, around, (height, width)).cpu()                # (B, 2, H, W)
    weight = (position - before).clamp(0, 1)[:, None, None]                     # (B, 1, 1)
    return ((1 - weight) * maps[:, 0] + weight * maps[:, 1]).numpy()


# ============ Frames in, frames out ============

def read_frames(path):
    """Yield (seconds, PIL image) of each frame, upright, sides even and at most LONGEST_SIDE."""
    with open_stream(path, 'video') as (container, stream, first):
        stream.thread_type = 'AUTO'
        seconds = (container.duration or 0) / av.time_base
        count = stream.frames or round(seconds * float(stream.average_rate or 0)) or None
        size = None                     # of all frames, though a stream may change its size
        for frame in tqdm(container.decode(stream), 'heatmaps', count, unit=' frames'):
            image = upright(frame)
            scale = min(1, LONGEST_SIDE / max(image.size))
            size = size or tuple(max(2, round(side * scale / 2) * 2) for side in image.size)
            yield time_of(frame) - first, image.resize(size)


def draw_frame(frame, heat, side_by_side):
    """One picture of the video: overlay, or frame | heatmap | overlay. -> (H, W or 3 W, 3)"""
    pixels = np.asarray(frame)
    if side_by_side:
        return np.concatenate([pixels, heat_colours(heat), overlay(pixels, heat)], 1)
    return overlay(pixels, heat)


def write_gif(file, pictures):
    """Write an animation of five pictures a second, at most GIF_SIDE high.

    pictures: as of write_mp4.
    """
    images = []
    for seconds, pixels in pictures:
        if seconds >= len(images) * GIF_EVERY:
            image = Image.fromarray(pixels)
            image.thumbnail((image.width, GIF_SIDE))
            images.append(image.quantize(GIF_COLOURS, dither=Image.Dither.NONE))
    images[0].save(file, 'GIF', save_all=True, append_images=images[1:], loop=0,
                   duration=round(1000 * GIF_EVERY))


def heat_video(model, config, source, path, every, window, side_by_side=False):
    """Write `source` with its heatmaps to `path`. SampleError where it cannot be read."""
    sound, rate = read_sound(source, 0.0, 24 * 3600)                    # (channels, samples)
    wav = mono_16_khz(sound, rate, source)                              # (samples,)
    every = round(every * SAMPLE_RATE) / SAMPLE_RATE        # as far apart as the windows of sound
    A = embed_moments(model, wav, every, window, config.seconds)        # (K, D)

    def pictures():
        frames = read_frames(source)
        while batch := list(itertools.islice(frames, BATCH)):
            times, images = zip(*batch)
            maps = heatmaps(model, images, times, A, every, config.image_size)
            for seconds, image, heat in zip(times, images, maps):
                yield seconds, draw_frame(image, heat, side_by_side)

    file = io.BytesIO()
    if Path(path).suffix.lower() == '.gif':
        write_gif(file, pictures())
    else:
        write_mp4(file, pictures(), sound, rate)
    write_file(path, file.getvalue())


# ============ The command line ============

def parse_args(argv=None):
    parser = argparse.ArgumentParser('python -m videos.heat', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('clip', type=some_path, nargs='?', help='a video (default: one of the miniature, drawn)')
    add('--out', type=some_path, default='heat.mp4', help='.mp4 or .gif (default: heat.mp4)')
    add('--preset', choices=list(PRESETS), help="default: the checkpoint's")
    add('--variant', choices=['av', 'av_llm'], help='of the shipped checkpoints (default: av)')
    add('--checkpoint', type=some_path, help="of train.py, or the authors' (default: shipped)")
    add('--every', type=between(float, 0.01, 3600), default=0.2,
        help='seconds between two moments (default: 0.2)')
    add('--window', type=float, help='seconds of sound around a moment (default: the 10 s, in the '
        'miniature 2 s, that the model hears)')
    style = parser.add_mutually_exclusive_group()
    style.add_argument('--overlay', action='store_true', help='the heatmap over the frame '
                       '(default)')
    style.add_argument('--side-by-side', action='store_true', help='frame | heatmap | overlay')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    args = parser.parse_args(argv)
    if Path(args.out).suffix.lower() not in ('.mp4', '.gif'):
        parser.error(f'--out {args.out} must end in .mp4 or .gif')
    if sentence := overwritten([('--out', args.out)], [('the clip', args.clip),
                                                       ('--checkpoint', args.checkpoint)]):
        parser.error(sentence)
    return args


def main(argv=None):
    args = parse_args(argv)
    check_outputs([args.out], [])
    model, _, preset, _, _ = load(pick_device(args.device), args.checkpoint, args.variant,
                                  args.preset, untrained=False)
    config = PRESETS[preset]
    window = config.seconds if args.window is None else args.window
    if not 0.1 <= window <= config.seconds:
        raise ValueError(f'--window {window:g} must be 0.1 to {config.seconds:g} seconds, which '
                         'the model hears at a time')
    with tempfile.TemporaryDirectory() as folder:
        clip = args.clip or Path(folder, 'clip.mp4')
        if not args.clip:
            draw_clip(clip)
        heat_video(model, config, clip, args.out, args.every, window, args.side_by_side)
    print(f'{args.out}: heatmaps of {args.clip or "a drawn clip"}')


if __name__ == '__main__':
    run_script('videos.heat', main, 'interrupted')
