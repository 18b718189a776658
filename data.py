"""Datasets of section 4.1 in the layout their authors released, below one data root.

    <root>/vggsound/{frames/<id>.jpg, audio/<id>.wav, train.csv, val.csv}     training pairs, lines "id,label" or "id"
    <root>/vggss/{frames, audio, vggss.json, gt_masks}                        VGG-SS; masks exist in the miniature only
    <root>/is4/{visual_frames, audio_wav, gt_masks, synthetic3240_bbox.json}  IS4, released as IS3

<id> is youtubeid_startsecond; a frame is the annotated one, the 125th of a 25 fps clip. The miniature writes the same
files (miniature/world.py). Audio may be wav, flac, ogg or mp3, mono or stereo, at any rate.

Samples come out as dicts: 'id', 'image' (3, H, W) CLIP-normalised, 'wav' (samples,) at 16 kHz in -1..1; test samples
also 'label', 'boxes' (224, 224) and 'mask' (224, 224) or None. A file that cannot be used is a SampleError, one
sentence that names it; loaders hand it over under 'error', so that the reader of the batch decides what it means.
"""

import csv
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

SAMPLE_RATE = 16_000
SOUNDS = ('.wav', '.flac', '.ogg', '.mp3')     # looked for in this order; the released lists mean wav
GROUND_TRUTH_SIZE = 224                 # everything is scored at 224 x 224 (released code)
RESIZE_BEFORE_CROP = 1.1                # times the model's size, for training frames (released code)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


class SampleError(ValueError):
    """A frame or a sound that cannot be used; its text names the file and the mend."""


# ------------------------------------------------------------------------------------------------
# Sound
# ------------------------------------------------------------------------------------------------

def read_audio(path, seconds, rate=SAMPLE_RATE):
    """The first `seconds` of a sound file, mono, resampled, zero-padded at its end (section 4.1, released code).

    -> (round(seconds * rate),) float32 in -1..1. SampleError when it is missing, cut short, empty or not a sound.
    """
    if not os.path.isfile(path):
        raise SampleError(f'{path} is missing: put the file there or remove the sample from its list')
    if missing := _missing_wav_bytes(path):
        raise SampleError(f'{path} is cut short by {missing} bytes: fetch it again')
    try:
        with soundfile.SoundFile(path) as file:
            native, wanted = file.samplerate, math.ceil(seconds * file.samplerate)
            sound = file.read(wanted, dtype='float32', always_2d=True)              # (frames, channels)
            lost = min(wanted, file.frames) - len(sound)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise SampleError(f'{path} is not a readable sound ({str(error).splitlines()[0]}): replace it') from None
    if lost > 0:
        raise SampleError(f'{path} is cut short by {lost} samples: fetch it again')
    if not len(sound):
        raise SampleError(f'{path} holds no sound (zero samples): replace it')
    if not np.isfinite(sound).all():
        raise SampleError(f'{path} holds samples that are not numbers: replace it')
    if native // math.gcd(native, rate) > 2000:                             # the resampler's kernels would never end
        raise SampleError(f'{path} has the odd rate of {native} Hz: resample it to {rate}')
    wav = torch.from_numpy(sound.mean(1))
    if native != rate:
        wav = torchaudio.functional.resample(wav, native, rate)
    length = round(seconds * rate)
    return torch.nn.functional.pad(wav[:length], (0, max(0, length - len(wav))))


def sound_file(folder, name):
    """The sound <name> in a folder, whatever its format; where there is none, the wav that should be there."""
    paths = [Path(folder) / f'{name}{suffix}' for suffix in SOUNDS]
    return next((path for path in paths if path.is_file()), paths[0])


def _missing_wav_bytes(path):
    """How many bytes a RIFF wav is shorter than its header says; decoders would pad or cut without a word."""
    with open(path, 'rb') as file:
        header = file.read(12)
    if header[:4] != b'RIFF' or header[8:] != b'WAVE':
        return 0
    promised = int.from_bytes(header[4:8], 'little')
    if promised in (0, 0xFFFFFFFF):                 # written by a stream that never knew its length
        return 0
    return max(0, promised + 8 - os.path.getsize(path))


# ------------------------------------------------------------------------------------------------
# Frames
# ------------------------------------------------------------------------------------------------

def read_image(path):
    """-> PIL image, RGB. SampleError when it is missing or not a readable picture."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith('I') or image.mode == 'F':         # Pillow would clip these to white or black
                raise SampleError(f'{path} is a picture of 16 bits or more a channel: save it with 8')
            return image.convert('RGB')
    except FileNotFoundError:
        raise SampleError(f'{path} is missing: put the file there or remove the sample from its list') from None
    except SampleError:
        raise
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise SampleError(f'{path} is not a readable picture ({str(error).splitlines()[0]}): replace it') from None


def normalise(image):
    """PIL image or (H, W, 3) uint8 -> (3, H, W) float32 with CLIP's mean and deviation taken out."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)
    return (pixels.float() / 255 - CLIP_MEAN) / CLIP_STD


def displayable(image):
    """The way back from normalise, for pictures: (3, H, W) -> (H, W, 3) uint8 array."""
    pixels = (image.cpu() * CLIP_STD + CLIP_MEAN).clamp(0, 1) * 255
    return pixels.round().byte().permute(1, 2, 0).numpy()


def evaluation_image(image, size):
    """PIL -> (3, size, size). Paper: "resized to 352x352"; squashed to a square, bicubic, no crop (released code)."""
    return normalise(image.resize((size, size), Image.Resampling.BICUBIC))


def training_image(image, size, generator):
    """PIL -> (3, size, size). Paper: no augmentation is named; the release resizes to 1.1 x, crops and flips."""
    large = int(RESIZE_BEFORE_CROP * size)
    image = image.resize((large, large), Image.Resampling.BICUBIC)
    room = large - size + 1
    left, top, flip = (int(torch.randint(n, (1,), generator=generator)) for n in (room, room, 2))
    image = image.crop((left, top, left + size, top + size))
    return normalise(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


# ------------------------------------------------------------------------------------------------
# Training pairs
# ------------------------------------------------------------------------------------------------

def read_ids(path):
    """The ids of a split file, lines "id" or "id,label" (labels may hold quoted commas). ValueError when empty."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no split file {path}: README.md, "Real data", says what goes where')
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:      # -sig: some editors put a mark first
            ids = [line[0].strip() for line in csv.reader(file) if line and line[0].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path} is not a UTF-8 text of comma-separated lines ({error}): write it again') from None
    if not ids:
        raise ValueError(f'{path} lists no sample: write one id per line')
    return ids


def _names_in(folder):
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'no folder {folder}: README.md, "Real data", says what goes where; '
                                '--data-root names another root')
    return set(os.listdir(folder))


class VGGSound(Dataset):
    """Pairs of a frame and a sound for training and validation.

    split: 'train' or 'val', read from <root>/vggsound/<split>.csv; augmented: crop and flip at random. A sample's
    randomness is drawn from (seed, epoch, index) alone, so neither the number of workers nor a restart changes it;
    set `epoch` before each pass. skip_bad: leave out ids without files (and say how many) instead of stopping.
    """

    def __init__(self, root, split, image_size, seconds, augmented=False, seed=0, skip_bad=False):
        folder = Path(root) / 'vggsound'
        self.frames, self.audio, self.list = folder / 'frames', folder / 'audio', folder / f'{split}.csv'
        self.image_size, self.seconds, self.augmented = image_size, seconds, augmented
        self.seed, self.epoch = seed, 0
        frames = _names_in(self.frames)
        sounds = {name[:-len(suffix)] for name in _names_in(self.audio) for suffix in SOUNDS if name.endswith(suffix)}
        ids = read_ids(self.list)
        self.ids = [i for i in ids if f'{i}.jpg' in frames and i in sounds]
        self.absent = [i for i in ids if not (f'{i}.jpg' in frames and i in sounds)]
        if self.absent and not skip_bad:
            raise ValueError(f'{self.list} names {len(self.absent)} of {len(ids)} samples without frames/<id>.jpg or '
                             f'audio/<id>.wav, the first {self.absent[0]}: fetch them, or train without them by '
                             '--skip-bad-samples')
        if not self.ids:
            raise ValueError(f'none of the {len(ids)} samples of {self.list} has frames/<id>.jpg and audio/<id>.wav')

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        sample = self.ids[index]
        try:
            image = read_image(self.frames / f'{sample}.jpg')
            wav = read_audio(sound_file(self.audio, sample), self.seconds)
        except SampleError as error:
            return {'id': sample, 'error': error}
        if not self.augmented:
            return {'id': sample, 'image': evaluation_image(image, self.image_size), 'wav': wav}
        state = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state) >> 1)
        return {'id': sample, 'image': training_image(image, self.image_size, generator), 'wav': wav}


# ------------------------------------------------------------------------------------------------
# Benchmarks: what differs between the sets is in the list_* functions, the rest is shared
# ------------------------------------------------------------------------------------------------

@dataclass
class BenchmarkSample:
    id: str
    image: Path
    audio: Path
    label: str | None           # class name for the oracle; None where the set has none
    boxes: list                 # [[x0, y0, x1, y1]] as shares of the frame
    mask: Path | None = None    # picture of the sounding object, non-zero inside
    group: str | None = None    # samples of one frame, for the interactive task


def _read_boxes(path, name, box):
    """The list in an annotation file, each entry a dict with a text under `name` and boxes under `box`."""
    if not path.is_file():
        raise FileNotFoundError(f'no annotation file {path}: README.md, "Real data", says what goes where; '
                                '--data-root names another root')
    try:
        entries = json.loads(path.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not valid JSON ({error}): fetch it again') from None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f'{path} lists no sample: fetch it again')
    for number, entry in enumerate(entries):
        boxes = entry.get(box) if isinstance(entry, dict) else None
        try:
            assert np.isfinite(np.asarray(boxes, np.float64).reshape(-1, 4)).all() and isinstance(entry[name], str)
        except (TypeError, ValueError, KeyError, AssertionError):
            raise ValueError(f'{path}: entry {number} needs {name!r}, a text, and {box!r}, four numbers for each box; '
                             'fetch it again') from None
    if box == 'bbox' and np.median([v for entry in entries for b in entry[box] for v in b] or [0]) > 1:
        raise ValueError(f'{path} has boxes in pixels: they must be shares of the frame, 0..1')
    return entries


def list_vggss(root):
    """VGG-SS (Chen et al., 2021): vggss.json [{file, class, bbox: [[x0, y0, x1, y1] as shares]}]."""
    folder, samples = Path(root) / 'vggss', []
    for entry in _read_boxes(folder / 'vggss.json', 'file', 'bbox'):
        mask = folder / f'gt_masks/{entry["file"]}.png'
        samples.append(BenchmarkSample(entry['file'], folder / f'frames/{entry["file"]}.jpg',
                                       sound_file(folder / 'audio', entry['file']), entry.get('class'), entry['bbox'],
                                       mask if mask.exists() else None))
    return samples


def list_is4(root):
    """IS4 (Senocak et al., 2025), released as IS3: two samples per image, named <scene>_<the sounding one>.

    synthetic3240_bbox.json [{image, audio, gt_box: [x0, y0, x1, y1] in 224 pixels}]; only base names count.
    """
    folder, samples = Path(root) / 'is4', []
    for entry in _read_boxes(folder / 'synthetic3240_bbox.json', 'image', 'gt_box'):
        name = Path(entry['image']).stem
        mask = folder / f'gt_masks/{name}.png'
        samples.append(BenchmarkSample(name, folder / f'visual_frames/{name}.jpg', sound_file(folder / 'audio_wav', name),
                                       name.rsplit('_', 1)[-1], [[v / 224 for v in entry['gt_box']]],
                                       mask if mask.exists() else None, name.rsplit('_', 1)[0]))
    return samples


BENCHMARKS = {'vggss': list_vggss, 'is4': list_is4}


def box_map(boxes, size=GROUND_TRUTH_SIZE):
    """Boxes as shares of the frame -> (size, size) float32 of 0 and 1: clipped, scaled, truncated (released code).

    VGG-SS has boxes that lie outside the frame or have no area; they leave the map as it is and the sample stays.
    """
    filled = torch.zeros(size, size)
    for x0, y0, x1, y1 in (np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, 1) * size).astype(int):
        filled[y0:y1, x0:x1] = 1
    return filled


def read_mask(path, size=GROUND_TRUTH_SIZE):
    """A mask picture -> (size, size) float32 of 0 and 1; any non-zero pixel is object. SampleError as read_image.

    Paper: the AVSBench release binarises through PIL's dithering convert('1'), which speckles grey edges; not here.
    """
    image = read_image(path).convert('L').resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image) > 0).float()


class Benchmark(Dataset):
    """A test set: the samples that are there, and an account of those that are not.

    expected: how many the annotations name; missing: ids without files; unreadable: sentences, filled by whoever reads
    the batches. scored + missing + unreadable = expected, so that a result can say N of M.
    """

    def __init__(self, name, root, image_size, seconds, limit=None):
        listed = BENCHMARKS[name](root)[:limit]
        self.name, self.expected, self.image_size, self.seconds = name, len(listed), image_size, seconds
        self.samples = [s for s in listed if s.image.is_file() and s.audio.is_file()]
        self.missing = [s.id for s in listed if not (s.image.is_file() and s.audio.is_file())]
        self.unreadable = []
        if not self.samples:
            raise FileNotFoundError(f'none of the {len(listed)} samples of {name} is there, the first would be '
                                    f'{listed[0].image} with {listed[0].audio}')

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        try:
            image = evaluation_image(read_image(sample.image), self.image_size)
            return {'id': sample.id, 'label': sample.label, 'image': image, 'boxes': box_map(sample.boxes),
                    'wav': read_audio(sample.audio, self.seconds),
                    'mask': read_mask(sample.mask) if sample.mask else None}
        except SampleError as error:
            return {'id': sample.id, 'error': error}


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
                      pin_memory=torch.cuda.is_available(), generator=torch.Generator())


def evaluation_loader(dataset, batch_size, workers=0):
    """Batches in the dataset's order, the last one smaller."""
    return DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate)
