"""Speed of what surrounds the training step: reading pairs, heatmaps, scores (4.1, 4.2)."""

import contextlib
import io
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
    folder = Path(root, 'vggsound')
    ids = [f'{k:04}' for k in range(count)]
    for part in ('frames', 'audio'):
        (folder / part).mkdir(parents=True)
    (folder / 'train.csv').write_text('\n'.join(ids), encoding='utf-8')
    for name in ids:
        coarse = Image.fromarray(random.integers(0, 256, (18, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 360), Image.Resampling.BICUBIC))
        frame = (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(frame).save(folder / f'frames/{name}.jpg', quality=90)
        wav = random.uniform(-0.5, 0.5, round(seconds * data.SAMPLE_RATE))
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
        with contextlib.redirect_stdout(io.StringIO()):
            prepare(files, prepared, image_size, seconds)
        for root in (files, prepared):
            pairs = data.VGGSound(root, 'train', image_size, seconds, augmented=True)
            spent, _ = seconds_of(lambda: list(data.loader(pairs, batch_size=16)))
            rates[f'pairs/s, {root.name}'] = count / spent
    return rates


# ---- section `evaluate` -----------------------------------------------------------------------

@torch.no_grad()
def measure_evaluation(model, images, wavs, repeats):
    """Seconds of heatmaps at 224 x 224 for B images under N sounds each. -> a list of dicts"""
    rows = []
    for B, N in ((1, 1), (8, 1), (1, 8), (8, 8)):
        image = images[:B]                                              # (B, 3, H, W)
        wav = wavs[:N if N > 1 else B]      # N = 1: each image under a sound of its own

        def localise():
            A = model.embed_audio(wav)
            A = A.unsqueeze(1) if N == 1 else A.expand(B, N, -1)        # (B, N, D)
            model.heatmaps(encode_image(model.clipseg, image), A, (224, 224))
        passes = count_vision(model, localise)                          # and warms up
        spent = statistics.median(seconds_of(localise, image.device)[0] for _ in range(repeats))
        rows.append({'images': B, 'audios': N, 'vision_passes': passes, 'seconds': spent,
                     'pairs_per_second': B * N / spent})
    return rows


# ---- section `metrics`: scoring, beside loops written from the definitions --------------------

def loop_iou(heat, truth, cut, strict):
    """IoU of one map (H, W) at one threshold, from its definition."""
    predicted = (heat > cut if strict else heat >= cut).float()
    union = truth.sum() + (predicted * (truth == 0)).sum()
    return ((predicted * truth).sum() / union).item()


def loop_scores(heatmaps, truths):
    """cIoU (19), mIoU (19) and F in per cent, map by map, threshold by threshold. -> (39,)

    heatmaps, truths: (N, H, W)
    """
    hits = torch.zeros(19)
    ious = torch.zeros(19)
    f = torch.zeros(len(metrics.F_THRESHOLDS))
    for heat, truth in zip(heatmaps, truths):
        for k, cut in enumerate(metrics.SWEEP):
            hits[k] += loop_iou(heat, truth, cut, strict=False) >= 0.5
            ious[k] += loop_iou(heat, truth, cut, strict=True)
        for _ in ('cIoU', 'mIoU'):      # adaptive thresholds: metrics.py computes these scores too
            cut = heat.flatten().sort().values[heat.numel() - int((truth > 0).sum())]
            loop_iou(heat, truth, cut, strict=True)
        for k, cut in enumerate(metrics.F_THRESHOLDS):
            predicted = (heat >= cut).float()
            right = (predicted * truth).sum()
            precision = right / predicted.sum().clamp(min=1e-12)
            recall = right / truth.sum()
            weighted = metrics.BETA_SQUARED * precision + recall
            f[k] += (1 + metrics.BETA_SQUARED) * precision * recall / weighted.clamp(min=1e-12)
    return 100 * torch.cat([hits, ious, f.max()[None]]) / len(heatmaps)


def streamed_scores(heatmaps, truths):
    """The same scores by metrics.py, in batches of 16 as evaluate.py passes them."""
    single = metrics.SingleSource('sweep')
    segmentation = metrics.Segmentation('sweep')
    for heat, truth in zip(heatmaps.split(16), truths.split(16)):
        single.update(heat, truth)
        segmentation.update(heat, truth)
    scores = segmentation.compute()
    return torch.tensor([*single.compute()['cIoU'], *scores['mIoU'], scores['F']])


def measure_metrics(N):
    """Seconds of metrics.py and of the loop for N maps, on one CPU thread. -> dict

    ValueError where their scores differ.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.randn(N, 1, 14, 14, generator=generator)
    heatmaps = F.interpolate(coarse, size=(224, 224), mode='bicubic').sigmoid()[:, 0]  # (N, H, W)
    truths = torch.zeros(N, 224, 224)
    boxes = torch.randint(20, 110, (N, 4), generator=generator).tolist()
    for truth, (x, y, w, h) in zip(truths, boxes):
        truth[y:y + h, x:x + w] = 1
    with one_thread():
        ours, scores = seconds_of(partial(streamed_scores, heatmaps, truths))
        loop, expected = seconds_of(partial(loop_scores, heatmaps, truths))
    gap = (scores - expected).abs().max().item()
    if not gap <= 100 / N + 1e-3:               # one IoU may round to the other side of 0.5
        raise ValueError(f'metrics.py and the loop of the definitions differ by {gap} points')
    return {'heatmaps': N, 'metrics.py, seconds': ours, 'loop, seconds': loop,
            'ratio': loop / ours, 'largest_difference': gap}
