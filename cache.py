"""What need not be computed twice in training (section 4.1's 20 epochs), kept on disk: E_A's features, frames and sounds.

    features = build_features('cache/beats', dataset, model.beats)      # --cache-audio: BEATs runs once per sound
    features.get(id)                                        # (T, 3 * width) float16, or None: compute it yourself
    prepared = prepare('cache/pairs', dataset)              # data.py prepare: decoded, resized frames; 16 kHz sounds
    prepared.get(id)                                        # (L, L, 3) uint8 frame, (samples,) sound; or None

dataset: a data.VGGSound. E_A is frozen and sound is not augmented, so its features never change; a frame is resized before
it is cropped and flipped, so the resized one serves every epoch.

Sizes. Features of 10 s are 496 x 2304 numbers of 16 bits, 2.3 MB: 330 GB for 144,000 sounds. A pair of a frame of
387 x 387 and 10 s of sound is 0.77 MB: 111 GB. The size is printed before anything is written, and a disk too small is
refused; `share` keeps the first part of the list only, and the rest is computed as without a cache.

Is there a smaller equal form of the features? What follows them is trained: fc1 (2304 -> 2304) and a GELU at every token
come first, and the pooling's weights depend on fc2's output, so neither can be applied, and nothing pooled, before storing.
- The zero padding of a short clip is no help: every token attends to all others, so padding sounds different in every
  clip. What is never read is not stored: samples after `seconds`, and the last frames that fill no patch.
- Layers 8 and 12 follow from layer 4. Storing it alone takes a third, and gives back two thirds of BEATs' time.
- Every third of a token left a LayerNorm, which fixes 2 of its 768 numbers: nothing to gain.
- 16 bits: float16 rounds at 2^-11, bf16 training rounds the same numbers at 2^-8 on their way into fc1. So float16
  loses nothing that such a step could see, and 8 bits would. In float32 the miniature's loss moves by 5e-7.
- Lossless compression (zlib) takes off 8 to 17 per cent of the miniature's features, and more time than it saves.
So it is 330 GB, or a share.

On disk a cache is a folder: `rows`, one memory-mapped file of equal rows, and `index.jsonl`, first what all rows have in
common (hash of the BEATs weights, seconds, sizes), then a line per row. A line is written when its row is safe on the disk,
so a killed build goes on where it was; until all are there the folder is called <folder>.partial.

A row belongs to the files it was made from by their size and time of change, or, where these differ, by their content.
Times alone would throw a copied dataset's cache away; content alone would read 46 GB of sound at every start.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from beats import FRAME, HOP, N_MELS
from media import RESIZE_BEFORE_CROP, SAMPLE_RATE, SampleError, read_audio, read_image, sound_file
from resumable import GO_ON, append, as_bytes, json_lines, synced, write_whole

FORMAT = 2      # of the files, and of what media.py and beats.py compute: raise it when one changes
CHECKED_AT_OPENING = 16     # rows whose checksum is compared, spread over the file
SPARE_BYTES = 1e9       # left free on the disk for checkpoints and logs


# ------------------------------------------------------------------------------------------------
# Rows on disk
# ------------------------------------------------------------------------------------------------

class Rows:
    """A finished folder of equal rows, opened for reading. Safe to hand to loading processes.

    dtype: NumPy's of one row; settings: what all rows must have in common; sources: {id: [files]} of the samples that will
    be asked for. `stale` lists ids whose files have changed since: they are not served. FileNotFoundError, ValueError: one
    sentence that names the folder and the mend.
    """

    def __init__(self, folder, dtype, settings, sources):
        self.folder, self.dtype = Path(folder), np.dtype(dtype)
        if not (self.folder / 'index.jsonl').is_file():
            raise FileNotFoundError(f'no finished cache at {folder}: build it first; a killed build goes on by itself')
        index = read_index(self.folder, settings)
        check_rows(self.folder, index, self.dtype.itemsize)
        self.row_of = {i: line['row'] for i, line in index.items() if i in sources and is_current(line, sources[i])}
        self.stale = [i for i in sources if i in index and i not in self.row_of]
        self._rows = None                                           # mapped in each process at its first use

    def __len__(self):
        return len(self.row_of)

    def get(self, sample):
        """One row as a fresh array, or None where there is none that is current."""
        if sample not in self.row_of:
            return None
        if self._rows is None:
            self._rows = np.memmap(self.folder / 'rows', np.uint8, 'r')
        at = self.row_of[sample] * self.dtype.itemsize
        return np.array(self._rows[at:at + self.dtype.itemsize]).view(self.dtype)[0]

    def __getstate__(self):
        return {**self.__dict__, '_rows': None}                     # a pickled map would be a copy of the whole file


def read_index(folder, settings):
    """{id: line} of a folder's index, the last line of an id. ValueError when it was made with other settings."""
    lines, _ = json_lines(folder / 'index.jsonl')                   # a torn last line was never promised
    before = lines[0].get('settings') if lines else None
    if not isinstance(before, dict):
        raise ValueError(f'{folder / "index.jsonl"} is no index of a cache: name another folder')
    for name, now in settings.items():
        if before.get(name) != now:
            raise ValueError(f'{folder} was made with {name} {before.get(name)}, not {now}: name another folder for the '
                             'cache, or delete this one')
    if odd := next((line for line in lines[1:] if not is_line(line)), None):
        raise ValueError(f'{folder / "index.jsonl"} holds the line {str(odd)[:60]}, which is no row of a cache: delete the '
                         'folder and build it again')
    return {line['id']: line for line in lines[1:]}


def is_line(line):
    """Whether an object of an index is what fill writes for a row."""
    if line.keys() != {'id', 'row', 'files', 'content', 'checksum'}:
        return False
    files = line['files']
    stamped = isinstance(files, list) and all(isinstance(s, list) and len(s) == 2 for s in files)
    return stamped and isinstance(line['id'], str) and type(line['row']) is int and line['row'] >= 0


def check_rows(folder, index, row_bytes):
    """ValueError when `rows` is shorter than its index promises, or one of a few rows is not what was written."""
    path = folder / 'rows'
    there = path.stat().st_size if path.exists() else 0
    promised = max((line['row'] for line in index.values()), default=-1) + 1
    if there < promised * row_bytes:
        raise ValueError(f'{path} is torn: it has {there} of {promised * row_bytes} bytes; delete {folder} and build it '
                         'again')
    lines = sorted(index.values(), key=lambda line: line['row'])
    with open(path, 'rb') if lines else contextlib.nullcontext() as file:
        for line in {lines[k]['row']: lines[k] for k in np.linspace(0, len(lines) - 1, CHECKED_AT_OPENING).astype(int)
                     if lines}.values():
            file.seek(line['row'] * row_bytes)
            if zlib.crc32(file.read(row_bytes)) != line['checksum']:
                raise ValueError(f'{path} is damaged at the row of {line["id"]}: delete {folder} and build it again')


def stamps(files):
    """[[size, time of change in ns]] of files."""
    return [[s.st_size, s.st_mtime_ns] for s in (os.stat(file) for file in files)]


def content(files):
    """A hash of what files hold."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def is_current(line, files):
    """Whether a row was made from these files as they are now."""
    try:
        now = stamps(files)
        same_sizes = [size for size, _ in now] == [size for size, _ in line['files']]
        return now == line['files'] or same_sizes and content(files) == line['content']
    except OSError:                                                 # gone: whoever wants to read it will say so
        return False


def fill(folder, dtype, settings, sources, work, share=1.0, batch_size=16, skip_bad=False, label='cache'):
    """Make the rows that a folder lacks, or whose files have changed, for the first `share` of the sources.

    work(ids) -> a list of rows (arrays of dtype), or of SampleErrors in their places. Prints the size first. OSError when
    the disk is too small or another process writes the same folder; SampleError names a bad file (skip_bad: it is named
    and left out).
    """
    folder, dtype = Path(folder), np.dtype(dtype)
    partial = folder.with_name(f'{folder.name}.partial')
    place = folder if folder.exists() else partial
    make_folder(place)
    with only_writer(place):
        if not (place / 'index.jsonl').exists():
            write_whole(place / 'index.jsonl', as_bytes({'settings': settings}), GO_ON)
        index = read_index(place, settings)
        check_rows(place, index, dtype.itemsize)
        chosen = list(sources)[:round(share * len(sources))]
        todo = [i for i in chosen if i not in index or not is_current(index[i], sources[i])]
        refuse_small_disk(place, dtype.itemsize, len(chosen), len(todo), label)
        # a killed build may have left half a line
        lines = [{'settings': settings}, *index.values()]
        write_whole(place / 'index.jsonl', b''.join(map(as_bytes, lines)), GO_ON)
        free = max((line['row'] for line in index.values()), default=-1) + 1
        (place / 'rows').touch()
        bar = tqdm(total=len(chosen), initial=len(chosen) - len(todo), desc=label, unit=' rows', dynamic_ncols=True)
        with open(place / 'rows', 'r+b') as rows, open(place / 'index.jsonl', 'ab') as lines, bar:
            for k in range(0, len(todo), batch_size):
                pieces, written, ids = [], [], todo[k:k + batch_size]
                for sample, stamp, row in zip(ids, stamped(sources, ids), work(ids)):
                    if isinstance(row, SampleError) and not skip_bad:
                        raise SampleError(f'{row}; or --skip-bad-samples leaves such pairs out')
                    if isinstance(row, SampleError):
                        tqdm.write(f'left out of {folder}: {row}')
                        continue
                    raw = row.tobytes()
                    # a changed file gets a new row: overwriting the old one could leave half of each
                    pieces.append((free * dtype.itemsize, raw))
                    written.append({'id': sample, 'row': free, **stamp, 'checksum': zlib.crc32(raw)})
                    free += 1
                with synced(rows):
                    for at, raw in pieces:
                        rows.seek(at)
                        rows.write(raw)
                append(lines, b''.join(map(as_bytes, written)))     # from here on, these rows are there
                bar.update(len(ids))
        if place == partial:
            os.replace(partial, folder)


def stamped(sources, ids):
    """Size, time and content of each sample's files, taken before they are read: a change in between shows later."""
    found = []
    for sample in ids:
        try:
            found.append({'files': stamps(sources[sample]), 'content': content(sources[sample])})
        except OSError:                                             # missing: work(ids) has a sentence for it
            found.append({})
    return found


def make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f'cannot make the folder {folder} ({error.strerror}): name another place for the cache') from None


@contextlib.contextmanager
def only_writer(folder):
    """A lock that goes with the process, however it ends."""
    with open(folder / 'lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError(f'{folder} is being written by another process: wait for it, or name another folder') from None
        yield


def refuse_small_disk(folder, row_bytes, rows, missing, label):
    """Say how large the whole will be, and stop when the missing part has no room."""
    need, free = missing * row_bytes, shutil.disk_usage(folder).free - SPARE_BYTES
    print(f'{label}: {rows:,} rows of {row_bytes / 1e6:.3g} MB are {rows * row_bytes / 1e9:,.1f} GB in {folder}, of which '
          f'{need / 1e9:,.1f} GB are still to be written; {max(0, free) / 1e9:,.1f} GB are free')
    if need > free:
        fits = max(0.0, (rows * row_bytes - need + free) / (rows * row_bytes))
        raise OSError(f'{folder} needs another {need / 1e9:,.1f} GB and its disk has {max(0, free) / 1e9:,.1f} GB to spare: '
                      f'name a folder on a larger disk, or keep a share of the set, at most {int(1000 * fits) / 1000}')


# ------------------------------------------------------------------------------------------------
# --cache-audio: E_A's features
# ------------------------------------------------------------------------------------------------

def weights_key(beats):
    """A hash of an encoder's weights and of what else decides its features."""
    digest = hashlib.sha256(repr((FORMAT, beats.feature_layers)).encode())
    for name, weight in beats.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def features_layout(dataset, beats):
    """-> dtype of a row, settings, sources, for a dataset and a BEATs."""
    patch, frames = beats.cfg.input_patch_size, (round(dataset.seconds * SAMPLE_RATE) - FRAME) // HOP + 1
    shape = (frames // patch * (N_MELS // patch), beats.feature_dim)                            # (T, 3 * width)
    settings = {'what': 'BEATs features', 'weights': weights_key(beats), 'seconds': dataset.seconds, 'shape': list(shape)}
    return np.dtype([('features', np.float16, shape)]), settings, {i: [sound_file(dataset.audio, i)] for i in dataset.ids}


class AudioFeatures:
    """E_A's features of a dataset's sounds, as build_features left them. Errors as Rows."""

    def __init__(self, folder, dataset, beats):
        self.rows = Rows(folder, *features_layout(dataset, beats))

    def get(self, sample):
        """-> (T, 3 * width) float16, or None for a sound that is not there or has changed."""
        row = self.rows.get(sample)
        return None if row is None else torch.from_numpy(row['features'])

    def of(self, ids, wav, beats):
        """Features of a batch, from disk or, where they are not there, from wav (B, samples). -> (B, T, 3 * width)"""
        return complete([self.get(sample) for sample in ids], wav, beats)


@torch.no_grad()
def complete(found, wav, beats):
    """A batch's features, as a loader stacks them or leaves them in a list with None for those to be computed.

    found: (B, T, 3 * width) float16 or a list of B, wav (B, samples) -> (B, T, 3 * width) float32 on the device of wav.
    """
    if isinstance(found, torch.Tensor):
        return found.to(wav.device, non_blocking=True).float()      # half the bytes cross, and widen there
    found, absent = list(found), [k for k, features in enumerate(found) if features is None]
    if absent:
        for k, features in zip(absent, beats(wav[absent])):
            found[k] = features
    return torch.stack([features.to(wav.device, non_blocking=True).float() for features in found])


def build_features(folder, dataset, beats, share=1.0, batch_size=16, skip_bad=False):
    """Compute what a folder lacks of the features of a dataset's sounds. -> AudioFeatures. Errors as fill.

    Runs on the device of `beats`, in float32 whatever the training's precision.
    """
    dtype, settings, sources = features_layout(dataset, beats)
    device = next(beats.parameters()).device

    @torch.no_grad()
    def work(ids):
        read = list(pool.map(lambda i: attempt(read_audio, sources[i][0], dataset.seconds), ids))
        good = [k for k, wav in enumerate(read) if isinstance(wav, torch.Tensor)]
        if good:
            with torch.autocast(device.type, enabled=False):
                found = beats(torch.stack([read[k] for k in good]).to(device)).half().cpu()     # (B, T, 3 * width)
            if not found.isfinite().all():
                raise ValueError('the BEATs features of ' + ', '.join(ids[k] for k in good) + ' leave the range of float16: '
                                 'train without --cache-audio')
            for k, features in zip(good, found):
                read[k] = np.empty((), dtype)
                read[k]['features'] = features.numpy()
        return read

    with ThreadPoolExecutor() as pool:
        fill(folder, dtype, settings, sources, work, share, batch_size, skip_bad, 'BEATs features')
    return AudioFeatures(folder, dataset, beats)


def attempt(read, *arguments):
    """What a reader gives, or the SampleError that it raises, so that threads can hand it over."""
    try:
        return read(*arguments)
    except SampleError as error:
        return error


# ------------------------------------------------------------------------------------------------
# data.py prepare: frames before the crop, sounds at 16 kHz
# ------------------------------------------------------------------------------------------------

def pairs_layout(dataset):
    """-> dtype of a row, settings, sources, for a dataset of training pairs."""
    side, samples = int(RESIZE_BEFORE_CROP * dataset.image_size), round(dataset.seconds * SAMPLE_RATE)
    dtype = np.dtype([('frame', np.uint8, (side, side, 3)), ('wav', np.int16, (samples,))])
    settings = {'what': 'training pairs', 'format': FORMAT, 'side': side, 'samples': samples}
    return dtype, settings, {i: [dataset.frames / f'{i}.jpg', sound_file(dataset.audio, i)] for i in dataset.ids}


class Prepared:
    """Decoded pairs of a dataset, as prepare left them. Errors as Rows."""

    def __init__(self, folder, dataset):
        self.rows = Rows(folder, *pairs_layout(dataset))

    def get(self, sample):
        """-> PIL frame as media.training_image resizes it, and sound (samples,) float32 in -1..1; or None.

        training_image then gives what it gives for the original, to the bit: its resize leaves this size alone. The sound
        is exact for a 16-bit mono file at 16 kHz, and otherwise rounded to 16 bits.
        """
        row = self.rows.get(sample)
        if row is None:
            return None
        return Image.fromarray(row['frame']), torch.from_numpy(row['wav'].astype(np.float32)) / 2**15


def prepare(folder, dataset, share=1.0, batch_size=64, skip_bad=False):
    """Decode and resize what a folder lacks of a dataset's training pairs. -> Prepared. Errors as fill.

    For training only: test and validation frames are squashed from their own size to another.
    """
    dtype, settings, sources = pairs_layout(dataset)
    side = settings['side']

    def one(sample):
        frame, sound = sources[sample]
        row = np.empty((), dtype)
        row['frame'] = np.asarray(read_image(frame).resize((side, side), Image.Resampling.BICUBIC))
        wav = (read_audio(sound, dataset.seconds) * 2**15).round().clamp(-2**15, 2**15 - 1)     # resampling may overshoot
        row['wav'] = wav.numpy().astype(np.int16)
        return row

    with ThreadPoolExecutor() as pool:
        fill(folder, dtype, settings, sources, lambda ids: list(pool.map(lambda i: attempt(one, i), ids)), share, batch_size,
             skip_bad, 'training pairs')
    return Prepared(folder, dataset)
