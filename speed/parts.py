"""Speed of what surrounds the training step: reading pairs, videos, heatmaps, scores (4.1, 4.2)."""

import contextlib
import shutil
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

import data
import metrics
from model import encode_image
from speed.costs import count_vision, seconds_of
from speed.prepare import prepare
from videos.drawn import draw_clip
from videos.extract import extract


@contextlib.contextmanager
def one_thread():
    """For a with statement: torch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---- section `load` ---------------------------------------------------------------------------

def write_pairs(root, count, seconds):
    """Noise in VGGSound's layout and sizes: 640 x 360 JPEGs of 80 KB, mono 16-bit sounds."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (54, 96, 3), np.uint8))
    frame = coarse.resize((640, 360), Image.Resampling.BICUBIC)
    wav = random.uniform(-0.5, 0.5, round(seconds * data.SAMPLE_RATE))
    folder = Path(root, 'vggsound')
    for part in ('frames', 'audio'):
        (folder / part).mkdir(parents=True)
    ids = [f'{k:04}' for k in range(count)]
    (folder / 'train.csv').write_text('\n'.join(ids), encoding='utf-8')
    for name in ids:
        frame.save(folder / f'frames/{name}.jpg', quality=90)
        soundfile.write(folder / f'audio/{name}.wav', wav, data.SAMPLE_RATE)


def measure_loading(image_size, seconds, count=96):
    """Pairs that one process reads in a second, from the files and from `data.py prepare`'s.

    The files have just been written, so this is the time of decoding, not of a disk. -> dict
    """
    rates = {}
    with tempfile.TemporaryDirectory() as folder, one_thread():     # as a loading process
        files = Path(folder, 'files')
        prepared = Path(folder, 'prepared')
        write_pairs(files, count, seconds)
        prepare(files, prepared, image_size, seconds)
        for root in (files, prepared):
            pairs = data.VGGSound(root, 'train', image_size, seconds, augmented=True)
            spent, _ = seconds_of(lambda: list(data.loader(pairs, batch_size=16)))
            rates[f'pairs/s, {root.name}'] = count / spent
    return rates


# ---- section `videos` -------------------------------------------------------------------------

def measure_videos(count=64):
    """Copies of a drawn clip (8 s, 384 x 384, 25 frames a second), by 1 and by 2 processes. -> dict

    A second run, over finished files, takes as long as the processes need to start. That time is
    subtracted: it does not grow with the number of videos.
    """
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, 'clips')
        clips.mkdir()
        draw_clip(clips / '0.mp4')
        for k in range(1, count):
            shutil.copy(clips / '0.mp4', clips / f'{k}.mp4')
        for processes in (1, 2):
            work = partial(extract, clips, Path(folder, f'by{processes}'), processes=processes)
            first, _ = seconds_of(work)
            start, _ = seconds_of(work)
            rates.append(count / (first - start))
    one, two = rates
    return {'videos': count, 'videos/s, 1 process': one, 'videos/s, 2 processes': two,
            'ratio': two / one, 'seconds to start 2': start}


# ---- section `evaluate` -----------------------------------------------------------------------

@torch.no_grad()
def measure_evaluation(model, images, wavs, repeats):
    """Seconds of heatmaps at 224 x 224, for each of B images under each of N sounds. -> dicts"""
    rows = []
    for B, N in ((1, 1), (8, 1), (1, 8), (8, 8)):
        def localise():
            vision = encode_image(model.clipseg, images[:B])
            A = model.embed_audio(wavs[:N])                             # (N, D)
            model.heatmaps(vision, A.expand(B, N, -1), (224, 224))      # (B, N, 224, 224)
        passes = count_vision(model, localise)                          # and warms up
        spent = statistics.median(seconds_of(localise, images.device)[0] for _ in range(repeats))
        rows.append({'images': B, 'audios': N, 'vision_passes': passes, 'seconds': spent,
                     'pairs_per_second': B * N / spent})
    return rows


# ---- section `metrics`: Table 6's scores, beside a loop written from their definitions ---------

def loop_scores(heatmaps, masks):
    """mIoU (19 thresholds) and F in per cent, one map and one threshold at a time. -> (20,)

    heatmaps: (N, H, W); masks: (N, H, W) of 0 and 1
    """
    iou = torch.zeros(len(metrics.SWEEP))
    f = torch.zeros(len(metrics.F_THRESHOLDS))
    for heat, mask in zip(heatmaps, masks):
        for k, cut in enumerate(metrics.SWEEP):
            predicted = (heat > cut).float()
            iou[k] += (predicted * mask).sum() / (predicted + mask).clamp(max=1).sum()
        for k, cut in enumerate(metrics.F_THRESHOLDS):
            predicted = (heat >= cut).float()
            right = (predicted * mask).sum()
            precision = right / predicted.sum().clamp(min=1)
            recall = right / mask.sum()
            weighted = metrics.BETA_SQUARED * precision + recall
            f[k] += (1 + metrics.BETA_SQUARED) * precision * recall / weighted.clamp(min=1e-12)
    return 100 * torch.cat([iou, f.max()[None]]) / len(heatmaps)


def streamed_scores(heatmaps, masks):
    """The same scores by metrics.py, in batches of 16 as evaluate.py passes them."""
    metric = metrics.Segmentation('sweep')
    for batch in zip(heatmaps.split(16), masks.split(16)):
        metric.update(*batch)
    scores = metric.compute()
    return torch.tensor([*scores['mIoU'], scores['F']])


def measure_metrics(N):
    """Seconds of metrics.py and of the loop for N maps, on one CPU thread. -> dict

    ValueError where their scores differ.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.randn(N, 1, 14, 14, generator=generator)
    heatmaps = F.interpolate(coarse, size=(224, 224), mode='bicubic').sigmoid()[:, 0]  # (N, H, W)
    masks = torch.zeros(N, 224, 224)
    boxes = torch.randint(20, 110, (N, 4), generator=generator).tolist()
    for mask, (x, y, w, h) in zip(masks, boxes):
        mask[y:y + h, x:x + w] = 1
    with one_thread():
        ours, scores = seconds_of(partial(streamed_scores, heatmaps, masks))
        loop, expected = seconds_of(partial(loop_scores, heatmaps, masks))
    gap = (scores - expected).abs().max().item()
    if not gap <= 1e-3:
        raise ValueError(f'metrics.py and the loop of the definitions differ by {gap} points')
    return {'heatmaps': N, 'metrics.py, seconds': ours, 'loop, seconds': loop,
            'ratio': loop / ours, 'largest_difference': gap}
