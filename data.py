"""Datasets of section 4.1 as PyTorch reads them: training pairs, test sets, batches.

    <root>/vggsound/{frames/<id>.jpg, audio/<id>.wav, train.csv, val.csv}     pairs; lines: FORMS
    <root>/{vggss, flickr, is4, vpo_ss, vpo_ms, avsbench, ade20k, vgg_instruments, vgg_duet}      benchmarks.py

    train = VGGSound('data', 'train', 352, 10.0, augmented=True)
    test = Benchmark('vggss', 'data', 352, 10.0)                              # any name of BENCHMARKS

    python data.py prepare --preset paper           # decode and resize every training pair once; train.py --prepared

<id> is youtubeid_startsecond; a frame is the annotated one, the 125th of a 25 fps clip. The miniature writes the same
files (miniature/world.py). How a single file becomes a tensor: media.py.

Samples come out as dicts: 'id', 'image' (3, H, W) CLIP-normalised, 'wav' (samples,) at 16 kHz in -1..1; test samples
hold more (Benchmark). A file that cannot be used is a SampleError, one sentence that names it; loaders hand it over
under 'error', so that the reader of the batch decides what it means.
"""

import argparse
import copy
import os
import re
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import BENCHMARKS
from benchmarks.lists import WHERE, csv_lines, utf8_text
from media import (GROUND_TRUTH_SIZE, SAMPLE_RATE, SOUNDS, SampleError, box_from_mask, box_map, box_pixels,
                   displayable, evaluation_image, noise, normalise, read_audio, read_channels, read_image, read_mask,
                   read_pickled_mask, side_by_side, sound_file, training_image)

__all__ = ['BENCHMARKS', 'GROUND_TRUTH_SIZE', 'SAMPLE_RATE', 'Benchmark', 'SampleError', 'VGGSound', 'displayable',
           'epoch_batches', 'evaluation_image', 'evaluation_loader', 'normalise', 'read_audio', 'read_image',
           'training_loader', 'undisturbed']    # the scripts read single files too, and find all of it here

MIX_GAIN = 0.5                          # of either waveform of a mixture


# ------------------------------------------------------------------------------------------------
# Training pairs
# ------------------------------------------------------------------------------------------------

# a line of train.csv or val.csv
FORMS = ('"<youtubeid>_<start second in six digits>", alone, with ".mp4" or with ",label", or '
         '"youtubeid,second,label,split"')
HEADINGS = ('id', 'file', 'video', 'videoid', 'youtubeid', 'ytid')     # of a first column


def read_list(path):
    """The lines of a list of pairs, in any of FORMS. -> [(id, split, or None where it names none)]

    VGGSound's authors have published the last two forms. Labels are not read, so their commas need
    no quotes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no split file {path}: {WHERE}')
    listed = []
    remedy = 'write that line again'
    for number, fields in csv_lines(path, utf8_text(path, 'write it again'), remedy):
        name = re.sub('[ _-]', '', fields[0].lower())
        if not listed and (name in HEADINGS or fields[0].startswith('#')):
            continue
        if not fields[0]:
            raise ValueError(f'{path}, line {number} names no id: {remedy}')
        if len(fields) == 4 and re.fullmatch(r'\d{1,9}(\.0*)?', fields[1], re.ASCII):
            # youtubeid,second,label,split
            listed.append((f'{fields[0]}_{int(float(fields[1])):06d}', fields[3].lower()))
        else:
            listed.append((re.sub(r'\.(mp4|mkv|webm|wav|flac|jpe?g|png)$', '', fields[0]), None))
    if not listed:
        raise ValueError(f'{path} lists no sample: write one id per line')
    if twice := [i for i, times in Counter(i for i, _ in listed).items() if times > 1]:
        raise ValueError(f'{path} names {len(twice)} pairs more than once, the first {twice[0]}: '
                         'keep one line of each')
    return listed


def read_ids(path, training=False):
    """The ids of a list; for training, where its lines name a split, those of "train" only.

    ValueError where there is none.
    """
    ids = [i for i, split in read_list(path) if not training or split in (None, 'train')]
    if not ids:
        raise ValueError(f'{path} has no line of the split "train": take VGGSound\'s own list, or '
                         'one without a split')
    return ids


def tell_other_splits(path):
    """Say how many lines of a list are not for training."""
    if others := sum(split not in (None, 'train') for _, split in read_list(path)):
        print(f'{path}: left out {others} lines of other splits than "train"')


def _names_in(folder):
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'no folder {folder}: {WHERE}')
    return set(os.listdir(folder))


class VGGSound(Dataset):
    """Pairs of a frame and a sound for training and validation.

    split: 'train' or 'val', read from <root>/vggsound/<split>.csv; augmented: crop and flip at random. A sample's
    randomness is drawn from (seed, epoch, index) alone, so neither the number of workers nor a restart changes it;
    set `epoch` before each pass. skip_bad: leave out ids without files (and say how many) instead of stopping.
    prepared, features: a cache.Prepared that spares decoding, a cache.AudioFeatures whose rows (T, 3 * width) float16
    come along under 'features', None where it has none; either may be set later, as both are made from a dataset.
    """

    def __init__(self, root, split, image_size, seconds, augmented=False, seed=0, skip_bad=False, prepared=None,
                 features=None):
        folder = Path(root) / 'vggsound'
        self.frames, self.audio, self.list = folder / 'frames', folder / 'audio', folder / f'{split}.csv'
        self.image_size, self.seconds, self.augmented = image_size, seconds, augmented
        self.seed, self.epoch, self.prepared, self.features = seed, 0, prepared, features
        frames = _names_in(self.frames)
        sounds = {name[:-len(suffix)] for name in _names_in(self.audio) for suffix in SOUNDS if name.endswith(suffix)}
        ids = read_ids(self.list, split == 'train')
        self.ids = [i for i in ids if f'{i}.jpg' in frames and i in sounds]
        self.absent = [i for i in ids if not (f'{i}.jpg' in frames and i in sounds)]
        if not self.ids:
            raise ValueError(f'none of the {len(ids)} samples of {self.list} has frames/<id>.jpg '
                             f'and audio/<id>.wav, the first being {ids[0][:60]!r}: a line '
                             f'is {FORMS}')
        if self.absent and not skip_bad:
            raise ValueError(f'{self.list} names {len(self.absent)} of {len(ids)} samples without frames/<id>.jpg or '
                             f'audio/<id>.wav, the first {self.absent[0]}: fetch them, or train without them by '
                             '--skip-bad-samples')

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        sample = self.ids[index]
        # validation squashes the frame from its own size, not from the prepared one
        ready = self.prepared.get(sample) if self.prepared and self.augmented else None
        try:
            image, wav = ready or (read_image(self.frames / f'{sample}.jpg'),
                                   read_audio(sound_file(self.audio, sample), self.seconds))
        except SampleError as error:
            return {'id': sample, 'error': error}
        extra = {} if self.features is None else {'features': self.features.get(sample)}
        if not self.augmented:
            return {'id': sample, 'image': evaluation_image(image, self.image_size), 'wav': wav, **extra}
        state = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) >> 1)
        return {'id': sample, 'image': training_image(image, self.image_size, generator), 'wav': wav, **extra}


# ------------------------------------------------------------------------------------------------
# Test sets
# ------------------------------------------------------------------------------------------------

class Benchmark(Dataset):
    """A test set: the samples that are there, and an account of those that are not.

    expected: how many the annotations name; missing: ids without files; unreadable: sentences, filled by whoever reads
    the batches. scored + missing + unreadable = expected, so that a result can say N of M. limit: the first N of each
    condition. clipped: boxes that reach beyond their frame; empty: samples whose boxes, or one
    frame's, are left without any area.
    classes: the sorted class names of the whole set.

    A sample is 'id'; 'label', None where the set has none; 'image'; 'wav'; 'boxes' (224, 224), the mask's tight box
    where there is none; 'mask' (224, 224) or None; 'group', what samples of one frame share; 'group_size',
    how many they are in the whole set; 'condition' (robustness).
    A mixture of two has a list of two as 'label', None for 'boxes' and 'mask', and 'sources' (2, 224, 448), each one's
    ground truth in its half of the two frames side by side; otherwise that is None.
    """

    def __init__(self, name, root, image_size, seconds, limit=None):
        listed = BENCHMARKS[name](Path(root))
        labels = [s.label if isinstance(s.label, list) else [s.label] for s in listed]
        self.classes = sorted({label for several in labels for label in several if label})
        self.group_sizes = Counter(s.group for s in listed)             # of the whole set, whatever limit says
        if limit is not None:
            listed = [s for condition in dict.fromkeys(s.condition for s in listed)
                      for s in [s for s in listed if s.condition == condition][:limit]]
        self.listed_groups = Counter(s.group for s in listed)   # limit may cut a frame's sounds
        names = Counter(s.id for s in listed)
        if odd := [i for i, times in names.items() if times > 1 or set(i) & set('/\\')]:
            raise ValueError(f'{name} below {root} lists {odd[0]} twice, or it is no file name: fetch its list again')
        self.name, self.expected, self.image_size, self.seconds = name, len(listed), image_size, seconds
        absent = {s.id: [f for f in s.images + s.sounds + s.masks if not f.is_file()] for s in listed}
        self.samples = [s for s in listed if not absent[s.id]]
        self.missing = [s.id for s in listed if absent[s.id]]
        self.unreadable = []
        if not self.samples:
            raise FileNotFoundError(f'none of the {len(listed)} samples of {name} is there, the first lacks '
                                    f'{absent[listed[0].id][0] if listed else "a list"}: {WHERE}')
        self.clipped = self.empty = 0
        for s in (s for s in self.samples if s.boxes):
            of_frames = [np.array(boxes) for boxes in (s.boxes if len(s.images) > 1 else [s.boxes])]
            pixels = [box_pixels(boxes, s.unit) for boxes in of_frames]
            self.clipped += sum(int(((boxes < 0) | (boxes > s.unit)).any(1).sum()) for boxes in of_frames)
            self.empty += any(not (p[:, 2:] > p[:, :2]).all(1).any() for p in pixels)

    def part(self, indices):
        """The same benchmark with only these of its samples; its list of unreadable ones is its own."""
        part = copy.copy(self)
        part.samples, part.unreadable = [self.samples[i] for i in indices], []
        return part

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        s = self.samples[index]
        try:
            frames = [read_image(path) for path in s.images]
            image, boxes, mask, sources = frames[0], None, None, None
            if len(frames) > 1:
                image, sources = side_by_side(frames), self._sources(s)
            else:
                if s.masks:
                    mask = read_mask(s.masks[0], frames[0].size, s.threshold, s.ade_class)
                boxes = box_from_mask(mask) if s.boxes is None else box_map(s.boxes, s.unit, s.agreement)
            return {'id': s.id, 'label': s.label, 'image': evaluation_image(image, self.image_size), 'wav': self._wav(s),
                    'boxes': boxes, 'mask': mask, 'group': s.group,
                    'group_size': self.group_sizes[s.group], 'condition': s.condition, 'sources': sources}
        except SampleError as error:
            return {'id': s.id, 'error': error}

    def _wav(self, s):
        length = round(self.seconds * SAMPLE_RATE)
        if s.condition in ('silence', 'noise'):
            return torch.zeros(length) if s.condition == 'silence' else noise(s.number, length)
        wavs = [(read_channels if s.stereo else read_audio)(path, self.seconds) for path in s.sounds]
        return wavs[0] if len(wavs) == 1 else MIX_GAIN * sum(wavs)

    def _sources(self, s):
        """Of a mixture: one ground truth per source, in its half. -> (2, 224, 448)"""
        size, sources = GROUND_TRUTH_SIZE, torch.zeros(2, GROUND_TRUTH_SIZE, 2 * GROUND_TRUTH_SIZE)
        for k in (0, 1):
            truth = box_map(s.boxes[k], s.unit) if s.boxes else read_pickled_mask(s.masks[k])
            sources[k, :, k * size:(k + 1) * size] = truth
        return sources


# ------------------------------------------------------------------------------------------------
# Batches
# ------------------------------------------------------------------------------------------------

def collate(samples):
    """Dicts of samples -> one dict: tensors stacked, everything else a list, errors apart under 'errors'."""
    errors = [s['error'] for s in samples if 'error' in s]
    good = [s for s in samples if 'error' not in s]
    batch = {key: [s[key] for s in good] for key in (good[0] if good else ['id'])}
    stacked = {key: torch.stack(values) for key, values in batch.items()
               if values and all(isinstance(v, torch.Tensor) for v in values)}
    return {**batch, **stacked, 'errors': errors}


def epoch_batches(count, batch_size, seed, epoch, rank=0, world_size=1):
    """The batches of one pass over `count` samples, for one of `world_size` processes: a list of index lists.

    Shuffled anew each epoch from (seed, epoch); every process gets batch_size / world_size of each global batch; what
    does not fill a global batch is dropped. A plain list, so that a run resumes in mid-epoch by slicing it.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    order = order[:count // batch_size * batch_size].reshape(-1, world_size, batch_size // world_size)
    return order[:, rank].tolist()


def training_loader(dataset, batches, workers=0):
    """Loads the given batches (lists of indices), in their order."""
    # a generator of its own: the default one would draw from the global state, which has to survive a resume
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate,
                      pin_memory=torch.cuda.is_available(), generator=torch.Generator(), worker_init_fn=obey_the_trainer_alone)


def evaluation_loader(dataset, batch_size, workers=0):
    """Batches in the dataset's order, the last one smaller."""
    return DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate, worker_init_fn=obey_the_trainer_alone)


def undisturbed(loader):
    """The batches of one of these loaders, from loading processes that only their trainer can end.

    Clusters and torchrun send SIGTERM to every process of a training at once, and a terminal Ctrl-C; the trainer still
    needs its loaders to end the step, or the validation, before it saves. They start with both signals blocked, so there
    is no moment at which one could hit (on Linux; macOS starts processes in another way).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # what is started now inherits it
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from batches


def obey_the_trainer_alone(worker):
    """In a loading process: SIGTERM ends it when it comes from the trainer, which so ends its loaders when it fails."""
    if not hasattr(signal, 'sigwaitinfo'):                  # macOS does not tell who sent a signal
        os.setsid()                                         # at least it is not sent to this one with the others
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return

    def wait():
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)
    threading.Thread(target=wait, daemon=True).start()


# ------------------------------------------------------------------------------------------------
# data.py prepare
# ------------------------------------------------------------------------------------------------

def main(argv=None):
    import cache                        # here, not above: reading data needs none of these
    from model import PRESETS
    from resumable import some_path
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(dest='command', required=True).add_parser(
        'prepare', help='decode and resize the training pairs once, for train.py --prepared; goes on after a kill')
    command.add_argument('--preset', choices=list(PRESETS), default='miniature', help='scale (default: miniature)')
    command.add_argument('--data-root', type=some_path,
                         help='folder of the datasets (default: the preset\'s)')
    command.add_argument('--out', type=some_path,
                         help='folder to write (default: cache/pairs in the data root)')
    command.add_argument('--share', type=float, default=1.0, help='the first part of train.csv only (default: all)')
    command.add_argument('--skip-bad-samples', action='store_true', help='name and leave out unusable pairs')
    args = parser.parse_args(argv)
    if not 0 < args.share <= 1:
        parser.error(f'--share must lie above 0 and not above 1, not {args.share}')
    config = PRESETS[args.preset]
    root = args.data_root or config.data_root
    dataset = VGGSound(root, 'train', config.image_size, config.seconds, augmented=True, skip_bad=args.skip_bad_samples)
    tell_other_splits(dataset.list)
    folder = args.out or Path(root, 'cache/pairs')
    prepared = cache.prepare(folder, dataset, args.share, skip_bad=args.skip_bad_samples)
    print(f'{folder}: {len(prepared.rows)} of {len(dataset)} pairs; train.py --prepared {folder} reads them')


if __name__ == '__main__':
    try:
        main()
    except (OSError, ValueError) as problem:
        sys.exit(f'data.py: {problem}')
    except KeyboardInterrupt:
        sys.exit('data.py: interrupted; the same command goes on')
