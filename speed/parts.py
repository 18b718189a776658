"""The other half of bench.py (sections 4.1, 4.2): what does not belong to a step. Training pairs read per second, heatmaps per
second, and scoring beside loops written from the metrics' definitions.
"""

import contextlib
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

import metrics
from cache import prepare
from data import SAMPLE_RATE, VGGSound, read_audio, read_image, training_loader
from media import RESIZE_BEFORE_CROP
from model import encode_image
from speed.costs import clock, count_vision


# ------------------------------------------------------------------------------------------------
# Section `load`: training pairs per second
# ------------------------------------------------------------------------------------------------

def write_pairs(root, count, seconds):
    """A training set of drawn noise in VGGSound's layout and sizes: 640 x 360 JPEGs, mono 16-bit sounds at 16 kHz."""
    random, folder = np.random.default_rng(0), Path(root, 'vggsound')
    for part in ('frames', 'audio'):
        (folder / part).mkdir(parents=True)
    for k in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (18, 32, 3), np.uint8)).resize((640, 360), Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (360, 640, 3))                  # about 80 KB a file, as a detailed photograph has
        Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(folder / f'frames/{k:04}.jpg', quality=90)
        soundfile.write(folder / f'audio/{k:04}.wav', random.uniform(-0.5, 0.5, round(seconds * SAMPLE_RATE)), SAMPLE_RATE)
    (folder / 'train.csv').write_text(''.join(f'{k:04}\n' for k in range(count)))


def measure_loading(image_size, seconds, count=96):
    """What one process reads in a second, from the files and from `data.py prepare`'s. -> dict

    The files have just been written: this is the work of decoding, not the speed of a disk.
    """
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)                                        # as PyTorch's loading processes do
    with tempfile.TemporaryDirectory() as root:
        write_pairs(root, count, seconds)
        dataset = VGGSound(root, 'train', image_size, seconds, augmented=True)
        batches = [list(range(i, min(i + 16, count))) for i in range(0, count, 16)]
        stage, spent = clock('cpu')
        with stage('frame'):
            frames = [read_image(dataset.frames / f'{i}.jpg') for i in dataset.ids]
        side = int(RESIZE_BEFORE_CROP * image_size)
        with stage('resize'):
            for frame in frames:
                frame.resize((side, side), Image.Resampling.BICUBIC)
        with stage('sound'):
            for i in dataset.ids:
                read_audio(dataset.audio / f'{i}.wav', seconds)
        with stage('files'):
            list(training_loader(dataset, batches))
        with contextlib.redirect_stdout(io.StringIO()):
            dataset.prepared = prepare(Path(root, 'prepared'), dataset)
        with stage('prepared'):
            list(training_loader(dataset, batches))
    torch.set_num_threads(threads)
    for name in ('frame', 'resize', 'sound'):
        found[f'{name}, ms'] = 1000 * spent[name] / count
    for name in ('files', 'prepared'):
        found[f'pairs/s, {name}'] = count / spent[name]
    return found


# ------------------------------------------------------------------------------------------------
# Section `evaluate`: heatmaps per second
# ------------------------------------------------------------------------------------------------

@torch.no_grad()
def measure_evaluation(model, random_batch, repeats):
    """Heatmaps at 224 x 224 per second for B images under N sounds each. random_batch(B) -> dict. -> a list of dicts"""
    rows, device = [], next(model.parameters()).device
    for B, N in ((1, 1), (8, 1), (1, 8), (8, 8)):
        image, wav = random_batch(B)['image'], random_batch(N if N > 1 else B)['wav']

        def localise():
            A = model.embed_audio(wav)
            A = A.expand(B, N, -1) if N > 1 else A.unsqueeze(1)     # (B, N, D)
            return model.heatmaps(encode_image(model.clipseg, image), A, (224, 224))
        passes, times = count_vision(model, localise), []           # and warms up
        for _ in range(repeats):
            stage, seconds = clock(device)
            with stage('all'):
                localise()
            times.append(seconds['all'])
        rows.append({'images': B, 'audios': N, 'sounds': len(wav), 'vision_passes': passes,
                     'seconds': statistics.median(times), 'pairs_per_second': B * N / statistics.median(times)})
    return rows


# ------------------------------------------------------------------------------------------------
# Section `metrics`: scoring, beside loops written from the definitions
# ------------------------------------------------------------------------------------------------

def loop_iou(heat, truth, cut, strict):
    """IoU of one map (H, W) at one threshold, from its definition."""
    predicted = (heat > cut if strict else heat >= cut).float()
    return ((predicted * truth).sum() / (truth.sum() + (predicted * (truth == 0)).sum())).item()


def loop_scores(heatmaps, truths):
    """Single source and segmentation, sample by sample, threshold by threshold. -> cIoU (19), mIoU (19), F, per cent"""
    single, segmented, f = [], [], torch.zeros(len(metrics.F_THRESHOLDS), dtype=torch.float64)
    for heat, truth in zip(heatmaps, truths):
        single.append([loop_iou(heat, truth, cut, strict=False) for cut in metrics.SWEEP])
        segmented.append([loop_iou(heat, truth, cut, strict=True) for cut in metrics.SWEEP])
        for _ in ('single source', 'segmentation'):                 # each has its adaptive column
            cut = heat.flatten().sort().values[heat.numel() - int((truth > 0).sum())]
            loop_iou(heat, truth, cut, strict=True)
        for k, cut in enumerate(metrics.F_THRESHOLDS):
            predicted = (heat >= cut).float()
            right = (predicted * truth).sum()
            precision, recall = right / predicted.sum().clamp(min=1e-12), right / truth.sum()
            weighed = metrics.BETA_SQUARED * precision + recall
            f[k] += (1 + metrics.BETA_SQUARED) * precision * recall / weighed.clamp(min=1e-12)
    share = [100 * sum(row[t] >= 0.5 for row in single) / len(single) for t in range(len(metrics.SWEEP))]
    return share, [100 * statistics.fmean(column) for column in zip(*segmented)], 100 * (f / len(heatmaps)).max().item()


def streamed_scores(heatmaps, truths):
    """The same by metrics.py, in batches of 16 as evaluate.py feeds them."""
    single, segmentation = metrics.SingleSource('sweep'), metrics.Segmentation('sweep')
    for heat, truth in zip(heatmaps.split(16), truths.split(16)):
        single.update(heat, truth)
        segmentation.update(heat, truth)
    return single.compute()['cIoU'], segmentation.compute()['mIoU'], segmentation.compute()['F']


def measure_metrics(N):
    """Seconds of both for N maps of 224 x 224 on one CPU thread, and that they agree. -> dict"""
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.randn(N, 1, 14, 14, generator=generator)
    heatmaps = F.interpolate(coarse, size=(224, 224), mode='bicubic').sigmoid()[:, 0]
    truths = torch.zeros(N, 224, 224)
    for truth, (x, y, w, h) in zip(truths, torch.randint(20, 110, (N, 4), generator=generator).tolist()):
        truth[y:y + h, x:x + w] = 1
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    for name, scores in (('metrics.py', streamed_scores), ('loop', loop_scores)):
        stage, seconds = clock('cpu')
        with stage('all'):
            answer = scores(heatmaps, truths)
        found[name] = {'seconds': seconds['all'], 'cIoU': answer[0], 'mIoU': answer[1], 'F': answer[2]}
    torch.set_num_threads(threads)
    ours, loop = found.values()
    gap = max(abs(a - b) for a, b in zip([*ours['cIoU'], *ours['mIoU'], ours['F']],
                                         [*loop['cIoU'], *loop['mIoU'], loop['F']]))
    if not gap <= 100 / N + 1e-3:                                   # one IoU may round to the other side of 0.5
        raise ValueError(f'metrics.py and the loop written from the definitions differ by {gap} points')
    return {'heatmaps': N, **{f'{name}, seconds': value['seconds'] for name, value in found.items()},
            'ratio': loop['seconds'] / ours['seconds'], 'largest_difference': gap}
