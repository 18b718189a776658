"""Datasets of section 4.1 as PyTorch reads them: training pairs, test sets, batches.

    <root>/vggsound/{frames/<id>.jpg, audio/<id>.wav, train.csv, val.csv}       training pairs
    <root>/{vggss, flickr, is4, vpo_ss, vpo_ms, avsbench, ade20k, ...}          test sets

    train = VGGSound('data', 'train', 352, 10.0, augmented=True)
    test = Benchmark('vggss', 'data', 352, 10.0)                    # any name of BENCHMARKS

    python data.py prepare --preset paper --out DIR     # decode and resize once: speed/prepare.py

<id> is youtubeid_startsecond. A frame is the centre one (4.1) of its 10 s clip, which VGG-SS
annotates. The miniature writes the same files (miniature/world.py). benchmarks/ finds the files of
a sample and reads the lists; media.py turns one file into a tensor.

A sample is a dict: 'id', 'image' (3, H, W) CLIP-normalised, 'wav' (samples,) at 16 kHz in -1..1; a
test sample holds more (Benchmark). A sample whose files cannot be read is {'id', 'error'} with a
SampleError, one sentence that names the file: whoever reads the batch stops or leaves it out.
"""

import hashlib
import io
import math
import runpy
import shutil
import sys
import zlib
from collections import Counter
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from tqdm import tqdm

from beats import FRAME, HOP, N_MELS
from benchmarks import BENCHMARKS
from benchmarks.lists import WHERE, boxes_of_frames, boxes_out
from benchmarks.pairs import FORMS, FRAMES, read_ids
from checkpoint import end_only_with_parent
from launch import agree, is_made, rank_and_processes, time_stamp, write_file
from media import (SAMPLE_RATE, SOUNDS, SampleError, box_from_mask, box_map, evaluation_image,
                   file_of, noise, read_audio, read_channels, read_image, read_mask,
                   read_pickled_mask, side_by_side, training_image)

MIX_GAIN = 0.5          # of either waveform of a mixture
MOST_IN_A_ROW = 10      # unreadable pairs in a row; so many mean that the disk cannot be read
FEATURES_FORMAT = 3     # increase when media.py or beats.py compute other features


# ============ Training pairs ============

class VGGSound(Dataset):
    """Pairs of a frame and a sound for training and validation.

    split: 'train' or 'val', read from <root>/vggsound/<split>.csv. `ids`: those with both files;
    `absent`: the others. augmented: random crop and flip, seeded by (seed, epoch, index) alone, so
    that neither the number of workers nor a restart changes them; set `epoch` before each pass.
    skip_bad: leave out ids without files; in training, replace a pair that cannot be read by the
    next one, and add its error to the sample's 'unreadable', a list of sentences.
    `features`: set it to an AudioFeatures to use the cache. A sample whose sound is cached has
    'features', (T, 3 * width) float16, and a 'wav' of zeros; any other has 'features' None.
    """

    def __init__(self, root, split, image_size, seconds, augmented=False, seed=0, skip_bad=False):
        folder = Path(root, 'vggsound')
        self.frames = folder / 'frames'
        self.audio = folder / 'audio'
        self.list = folder / f'{split}.csv'
        self.image_size = image_size
        self.seconds = seconds
        self.augmented = augmented
        self.seed = seed
        self.epoch = 0
        self.skip_bad = skip_bad
        self.features = None
        there = stems_in(self.frames, FRAMES) & stems_in(self.audio, SOUNDS)
        ids = read_ids(self.list, split == 'train')
        self.ids = [i for i in ids if i in there]
        self.absent = [i for i in ids if i not in there]
        self.checksum = zlib.crc32(' '.join(self.ids).encode('utf-8'))
        if not self.ids or self.absent and not skip_bad:
            remedy = 'fetch them, or train without them by --skip-bad-samples'
            if not self.ids:            # perhaps lines of another form
                remedy = f'a line is {FORMS}'
            raise ValueError(f'{self.list} names {len(self.absent)} of {len(ids)} samples without '
                             'frames/<id>.jpg or audio/<id>.wav, the first '
                             f'{self.absent[0][:60]}: {remedy}')

    def __len__(self):
        return len(self.ids)

    def files_of(self, name):
        """The paths of an id's frame and of its sound."""
        return file_of(self.frames, name, FRAMES), file_of(self.audio, name, SOUNDS)

    def __getitem__(self, index):
        """A sample; where it cannot be read, the next one (skip_bad), or its error."""
        unreadable = []
        attempts = MOST_IN_A_ROW if self.skip_bad and self.augmented else 1
        for k in range(attempts):
            try:
                return {**self.read_pair((index + k) % len(self)), 'unreadable': unreadable}
            except SampleError as error:
                unreadable.append(str(error))
        reason = unreadable[0]
        if not self.skip_bad:
            reason += '; or --skip-bad-samples leaves such pairs out'
        elif self.augmented:
            reason = (f'{len(unreadable)} pairs in a row cannot be read, the first because '
                      f'{unreadable[0]}: make the disk readable; --resume goes on')
        return {'id': self.ids[index], 'error': SampleError(reason)}

    def read_pair(self, index):
        """-> a sample. SampleError where a file cannot be read"""
        name = self.ids[index]
        frame, sound = self.files_of(name)
        image = read_image(frame)
        stamp = features = None
        if self.features:
            stamp = time_stamp(sound)       # before it is read: it may be replaced meanwhile
            features = self.features.get(name, stamp)
        if features is None:
            wav = read_audio(sound, self.seconds)                       # (samples,)
        else:                           # E_A will not run, so the sound is not decoded
            wav = torch.zeros(round(self.seconds * SAMPLE_RATE))
        if self.augmented:
            seeds = np.random.SeedSequence((self.seed, self.epoch, index))
            seed = int(seeds.generate_state(1, np.uint64)[0]) >> 1      # 63 bits, not negative
            generator = torch.Generator().manual_seed(seed)
            image = training_image(image, self.image_size, generator)   # (3, H, W)
        else:
            image = evaluation_image(image, self.image_size)
        return {'id': name, 'image': image, 'wav': wav, 'features': features, 'stamp': stamp}


def stems_in(folder, suffixes):
    """The names, without suffix, of a folder's files with one of these suffixes."""
    if not folder.is_dir():
        raise FileNotFoundError(f'no folder {folder}: {WHERE}')
    return {path.stem for path in folder.iterdir() if path.suffix in suffixes}


def open_pairs(root, image_size, seconds, seed, skip_bad):
    """-> the training pairs; the validation pairs: None without val.csv, and if rank > 0

    The arguments are VGGSound's. ValueError where the processes do not find the same pairs.
    """
    rank, _ = rank_and_processes()
    pairs = VGGSound(root, 'train', image_size, seconds, True, seed, skip_bad)
    agree(pairs.checksum, f'{pairs.list}: process {rank} finds {len(pairs)} samples with files, '
                          'and not all find the same: give every machine the same data')
    if rank > 0:
        return pairs, None
    if pairs.absent:
        print(f'left out {len(pairs.absent)} samples of {pairs.list} without files, e.g. '
              f'{pairs.absent[0]}')
    if pairs.list.with_name('val.csv').exists():
        return pairs, VGGSound(root, 'val', image_size, seconds, skip_bad=skip_bad)
    print(f'no {root}/vggsound/val.csv: training without validation')
    return pairs, None


# ============ Test sets ============

class Benchmark(Dataset):
    """A test set: the samples whose files exist, and how many others there are.

    limit: the first N samples of each condition only. classes: all class names, sorted.
    expected: how many samples the annotations name. missing: the ids of those without files.
    unreadable: a sentence for each sample whose files could not be read, added by evaluate.py; in
    the end scored + missing + unreadable = expected.
    clipped: how many boxes reach beyond their frame. empty: how many samples have a frame in which
    no box has any area after clipping.

    A sample: 'id'; 'label', or None; 'image'; 'wav'; 'boxes' (224, 224), made from the mask where
    the set has no boxes; 'mask' (224, 224) or None; 'condition' (robustness); 'group', which the
    samples of one frame share, and 'group_size', how many there should be; 'sources', None.
    A mixture of two frames side by side has two labels, no boxes and no mask, but 'sources' (2,
    224, 448), the ground truth of each sound in its half.
    """

    def __init__(self, name, root, image_size, seconds, limit=None):
        listed = BENCHMARKS[name](Path(root))
        labels = [s.label if isinstance(s.label, list) else [s.label] for s in listed]
        self.classes = sorted({label for several in labels for label in several if label})
        self.group_sizes = Counter(s.group for s in listed)     # {group: how many samples}
        conditions = groupby(listed, lambda s: s.condition)     # one after the other in all lists
        listed = [s for _, samples in conditions for s in islice(samples, limit)]
        self.listed_groups = Counter(s.group for s in listed)       # those that limit keeps
        times = Counter(s.id for s in listed)
        if odd := [i for i in times if times[i] > 1 or set(i) & set('/\\')]:
            raise ValueError(f'{name} below {root} lists {odd[0]} twice, or it is no file name: '
                             'fetch its list again')
        self.name = name
        self.image_size = image_size
        self.seconds = seconds
        self.expected = len(listed)
        absent = {}
        for s in listed:
            absent[s.id] = [f for f in s.images + s.sounds + s.masks if not f.is_file()]
        self.samples = [s for s in listed if not absent[s.id]]
        self.missing = [s.id for s in listed if absent[s.id]]
        self.unreadable = []
        if not self.samples:
            first = absent[listed[0].id][0] if listed else 'a list'
            raise FileNotFoundError(f'none of the {len(listed)} samples of {name} is there, the '
                                    f'first lacks {first}: {WHERE}')
        self._read_image = lru_cache(maxsize=2)(read_image)     # samples in a row share a frame
        self.clipped = sum(boxes_out(s) for s in self.samples)
        self.empty = 0
        for s in self.samples:
            have_area = [box_map(boxes, s.unit).any() for boxes in boxes_of_frames(s)]
            self.empty += not all(have_area)

    def batches(self, batch_size):
        """Split the samples into lists of about batch_size indices.

        All samples of a frame are in the same list, so that the vision encoder runs once per frame.
        """
        per_frame = []          # a list of its samples' indices for each frame
        indices_of = {}         # the same lists, by group and by file
        for index, s in enumerate(self.samples):
            # IS4 and VPO hold a copy of the frame for each of its sounds, all of one group;
            # ADE20K has one file for several classes, each a group
            indices = indices_of.get(s.group) or indices_of.get(tuple(s.images)) or []
            if not indices:
                per_frame.append(indices)
            indices.append(index)
            indices_of[s.group] = indices_of[tuple(s.images)] = indices
        batches = [[]]
        for indices in per_frame:
            if batches[-1] and len(batches[-1]) + len(indices) > batch_size:
                batches.append([])
            batches[-1] += indices
        return batches

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        s = self.samples[index]
        try:
            frames = [self._read_image(path) for path in s.images]
            boxes = mask = sources = None
            if len(frames) > 1:
                image = side_by_side(frames)
                sources = self._sources(s)
            else:
                image = frames[0]
                if s.masks:
                    mask = read_mask(s.masks[0], image.size, s.ade_class)
                boxes = (box_from_mask(mask) if s.boxes is None
                         else box_map(s.boxes, s.unit, s.agreement))
            return {'id': s.id, 'label': s.label, 'condition': s.condition,
                    'image': evaluation_image(image, self.image_size), 'wav': self._wav(s),
                    'boxes': boxes, 'mask': mask, 'sources': sources,
                    'group': s.group, 'group_size': self.group_sizes[s.group]}
        except SampleError as error:
            return {'id': s.id, 'error': error}

    def _wav(self, s):
        """The sound of a sample, by its condition. -> (samples,)"""
        length = round(self.seconds * SAMPLE_RATE)
        if s.condition == 'silence':
            return torch.zeros(length)
        if s.condition == 'noise':
            return noise(s.number, length)
        read = read_channels if s.stereo else read_audio
        wavs = [read(path, self.seconds) for path in s.sounds]
        return wavs[0] if len(wavs) == 1 else MIX_GAIN * sum(wavs)

    def _sources(self, s):
        """Of a mixture: one ground truth per source, in its half. -> (2, 224, 448)"""
        if s.boxes:
            left, right = (box_map(boxes, s.unit) for boxes in s.boxes)             # (224, 224)
        else:
            left, right = map(read_pickled_mask, s.masks)
        nothing = torch.zeros_like(left)
        both = [torch.cat([left, nothing], 1), torch.cat([nothing, right], 1)]      # (224, 448)
        return torch.stack(both)                                                # (2, 224, 448)


# ============ Batches ============

def collate(samples):
    """Dicts of samples -> one dict: tensors stacked, all else lists; errors under 'errors'."""
    good = [s for s in samples if 'error' not in s]
    batch = {'id': [], 'errors': [s['error'] for s in samples if 'error' in s]}
    for key in good[0] if good else ():
        values = [s[key] for s in good]
        tensors = all(isinstance(value, torch.Tensor) for value in values)
        batch[key] = torch.stack(values) if tensors else values
        if get_worker_info():
            # DataLoader's queue would do this, but where /dev/shm is full (64 MB in a container) it
            # loses the batch, and the trainer waits for ever. Here the error reaches the trainer.
            for tensor in filter(torch.is_tensor, [batch[key]] if tensors else values):
                tensor.share_memory_()
    return batch


def epoch_batches(count, batch_size, seed, epoch, rank=0, processes=1):
    """The batches of one pass over `count` samples, for one of the processes: lists of indices.

    Shuffled by (seed, epoch). Each process gets its part of every batch; the last samples, too few
    for a batch, are dropped.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)             # (count,)
    order = order[:count // batch_size * batch_size]
    parts = order.reshape(-1, processes, batch_size // processes)       # (batches, processes, b)
    return parts[:, rank].tolist()                                      # (batches, b)


def steps_per_epoch(pairs, batch_size, processes, accumulate):
    """How many steps of `accumulate` batches an epoch has.

    ValueError where it has none, or where a process would get fewer than 2 pairs of a batch.
    """
    if batch_size % processes or batch_size < 2 * processes:
        raise ValueError(f'--batch-size {batch_size} does not divide among {processes} processes '
                         'with at least 2 pairs on each, as one pair alone has no negatives')
    if len(pairs) < batch_size * accumulate:
        raise ValueError(f'{pairs.list} has {len(pairs)} samples, fewer than {accumulate} '
                         f'batch(es) of {batch_size}: add samples or lower --batch-size')
    return len(pairs) // batch_size // accumulate


def training_steps(pairs, first, last, batch_size, accumulate, rank, processes, workers):
    """Steps first, ..., last - 1 of a training; after --resume, `first` may lie within an epoch.

    Yields (step, epoch, whether it is the last of its epoch or of all, its `accumulate` batches).
    Batches at the end of an epoch that do not fill a step are dropped. SampleError: a pair cannot
    be read, or, with skip_bad, MOST_IN_A_ROW cannot.
    """
    per_epoch = steps_per_epoch(pairs, batch_size, processes, accumulate)
    for epoch in range(first // per_epoch, math.ceil(last / per_epoch)):
        steps = range(max(first, epoch * per_epoch), min(last, (epoch + 1) * per_epoch))
        pairs.epoch = epoch
        batches = epoch_batches(len(pairs), batch_size, pairs.seed, epoch, rank, processes)
        done = accumulate * (steps.start - epoch * per_epoch)       # batches, before --resume
        batches = batches[done:done + accumulate * len(steps)]
        loaded = map(check_read, loader(pairs, workers, batch_sampler=batches))
        for step in steps:
            yield step, epoch, step == steps[-1], [next(loaded) for _ in range(accumulate)]


def check_read(batch):
    """-> the batch. SampleError if a sample of it could not be read."""
    if batch['errors']:
        raise batch['errors'][0]
    return batch


def loader(dataset, workers=0, **batching):
    """Loads batches: of batch_size=B in the dataset's order, or batch_sampler=lists of indices."""
    # By fork, the default on Linux before Python 3.14. Its new default, the fork server, would
    # inherit train.py's blocked SIGCHLD and never notice that a worker process has ended.
    start = 'fork' if workers and sys.platform == 'linux' else None
    return DataLoader(dataset, num_workers=workers, collate_fn=collate,
                      pin_memory=torch.cuda.is_available(), worker_init_fn=end_only_with_parent,
                      multiprocessing_context=start, **batching)


# ============ Cached audio features ============

class AudioFeatures:
    """--cache-audio: E_A's features on disk, a file per sound, computed in the first epoch.

    E_A is frozen and sounds are not augmented, so the features never change. They are in
    <folder>/<hash of the weights and of the length>/<id>.npy, float16: 2.3 MB for 10 s. A file has
    the time stamp of its sound, and is valid while the sound keeps it. ids: of the sounds whose
    features are written.
    """

    def __init__(self, folder, beats, seconds, ids):
        key = hashlib.sha256(repr((FEATURES_FORMAT, seconds, beats.feature_layers)).encode())
        for name, weight in beats.state_dict().items():
            weight = weight.detach().cpu().contiguous().flatten()
            key.update(name.encode() + weight.view(torch.uint8).numpy().tobytes())
        self.folder = Path(folder) / key.hexdigest()[:16]
        self.ids = set(ids)
        self.writable = True
        patch = beats.cfg.input_patch_size
        frames = (round(seconds * SAMPLE_RATE) - FRAME) // HOP + 1
        T = frames // patch * (N_MELS // patch)
        self.bytes = 2 * T * beats.feature_dim              # of a sound's features, float16

    def get(self, name, stamp):
        """Read the features (T, 3 * width), float16, of a sound with this time stamp.

        None if they are absent, of another stamp, or damaged.
        """
        path = self.folder / f'{name}.npy'
        if not is_made(path, stamp):
            return None
        try:
            with open(path, 'rb') as file:
                array = np.lib.format.read_array(file)
        except Exception:               # absent or damaged, which raises many kinds of errors
            return None
        complete = array.dtype == np.float16 and array.nbytes == self.bytes
        return torch.from_numpy(array) if complete else None

    @torch.no_grad()
    def of_batch(self, batch, beats, device):
        """The E_A features of a batch; those that are not cached are computed and written.

        batch: with 'id', 'wav' (B, samples), 'features' and 'stamp', the sound's time stamp. ->
        (B, T, 3 * width) float32 on the device. New ones are rounded to float16 too, so that every
        epoch has the same numbers.
        """
        found = list(batch['features'])
        absent = [k for k, features in enumerate(found) if features is None]
        if absent:
            fresh = beats(batch['wav'][absent].to(device)).half().cpu()
            if not fresh.isfinite().all():
                names = ', '.join(batch['id'][k] for k in absent)
                raise ValueError(f'the BEATs features of {names} leave the range of float16: train '
                                 'without --cache-audio')
            for k, features in zip(absent, fresh):
                found[k] = features
                self.keep(batch['id'][k], features, batch['stamp'][k])
        return torch.stack([features.to(device).float() for features in found])

    def keep(self, name, features, stamp):
        """Write a sound's features. If that fails, print it once and write no more."""
        if not self.writable or name not in self.ids:
            return
        content = io.BytesIO()
        np.save(content, features.numpy())
        path = self.folder / f'{name}.npy'
        try:
            write_file(path, content.getvalue(), stamp=stamp)
            if not is_made(path, stamp):
                raise OSError(f'the disk of {self.folder} does not keep their time stamps')
        except OSError as error:
            self.writable = False
            tqdm.write(f'BEATs features are no longer kept: {error}')

    def print_size(self):
        """Print how large the folder will be. OSError where its disk is too small."""
        total = len(self.ids)
        there = len(self.ids & {path.stem for path in self.folder.glob('*.npy')})
        need = self.bytes * (total - there)
        existing = next(f for f in self.folder.absolute().parents if f.is_dir())
        free = shutil.disk_usage(existing).free
        print(f'BEATs features: {total:,} files of {self.bytes / 1e6:.3g} MB are '
              f'{self.bytes * total / 1e9:,.1f} GB in {self.folder}, {there:,} of them there; '
              f'{free / 1e9:,.1f} GB are free')
        if need > free:
            raise OSError(f'{self.folder} needs another {need / 1e9:,.1f} GB: name a folder on a '
                          'larger disk by --cache-audio DIR, or a part by --cache-share')


def cache_features(pairs, validation, beats, folder, share):
    """--cache-audio: training and validation (pairs or None) read E_A's features from this folder.

    The first epoch fills it. share: of the training sounds, keep the features of this share, the
    first of the list; the few of the validation are all kept.
    """
    kept = pairs.ids[:round(share * len(pairs))] + (validation.ids if validation else [])
    pairs.features = AudioFeatures(folder, beats, pairs.seconds, kept)
    if validation:
        validation.features = pairs.features
    if rank_and_processes()[0] == 0:
        pairs.features.print_size()


# ============ The miniature's data, and the command line ============

def draw_miniature(root):
    """Draw the miniature's world below root, unless it is there; for one process alone."""
    from miniature import world         # here, not above: other data need none of it
    world.build(root)


if __name__ == '__main__':
    runpy.run_module('speed.prepare', run_name='__main__')
