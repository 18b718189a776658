"""One sound, one frame, one mask: from a file on disk to a tensor (section 4.1).

    wav = read_audio('a.wav', 10.0)                              # (160000,) at 16 kHz in -1..1
    image = evaluation_image(read_image('a.jpg'), 352)           # (3, 352, 352), CLIP-normalised
    boxes = box_map([[0.1, 0.2, 0.5, 0.9]])                      # (224, 224) of 0 and 1

Audio may be wav, flac, ogg or mp3, mono or stereo, at any rate; pictures are whatever Pillow reads at 8 bits a channel.
A file that cannot be used is a SampleError, one sentence that names it and the mend. Nothing read here is executed:
pickled masks pass an unpickler that knows NumPy's arrays and nothing else. Which files make a sample: data.py.
"""

import math
import os
import pickle
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, UnidentifiedImageError

SAMPLE_RATE = 16_000
SOUNDS = ('.wav', '.flac', '.ogg', '.mp3')     # looked for in this order; the released lists mean wav
PICTURES = ('.jpg', '.png', '.jpeg')
GROUND_TRUTH_SIZE = 224                 # everything is scored at 224 x 224 (released code)
RESIZE_BEFORE_CROP = 1.1                # times the model's size, for training frames (released code)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


class SampleError(ValueError):
    """A file of one sample that cannot be used; its text names the file and the mend."""


def file_of(folder, name, suffixes):
    """<name> in a folder with the first suffix that is there; where none is, the path that should be."""
    paths = [Path(folder) / f'{name}{suffix}' for suffix in suffixes]
    return next((path for path in paths if path.is_file()), paths[0])


# ------------------------------------------------------------------------------------------------
# Sound
# ------------------------------------------------------------------------------------------------

def read_audio(path, seconds, rate=SAMPLE_RATE):
    """The first `seconds` of a sound file, mono, resampled, zero-padded at its end (section 4.1, released code).

    -> (round(seconds * rate),) float32 in -1..1. SampleError when it is missing, cut short, empty or not a sound.
    """
    sound, native = _decode(path, seconds, rate)
    return _at_rate(sound.mean(0, keepdim=True), native, rate, round(seconds * rate))[0]


def read_channels(path, seconds, rate=SAMPLE_RATE):
    """As read_audio, but the left channel and then the right one, each cut or padded to half of `seconds`.

    That is how the release fills 10 s with AVSBench's clips of 5 s. Paper: it says nothing of it; a mono file, which
    the release cannot read, is played twice here. Channels after the second are left out.
    """
    length = round(seconds * rate)
    channels = _at_rate(*_decode(path, seconds / 2, rate), rate, length // 2)               # (channels, length / 2)
    both = torch.cat([channels[0], channels[min(1, len(channels) - 1)]])
    return torch.nn.functional.pad(both, (0, length - len(both)))                           # an odd length lacks one


def noise(index, length):
    """-> (length,) float32, uniform in -1..1: the noise of sample `index` of AVSBench-Robust, drawn from (42, index).

    Paper: "noisy audio (e.g., white noise)". Its authors write the bytes of float64 numbers as if they were 16-bit
    samples, which is broadband noise at full scale, and fix the seed 42; uniform noise of full scale is the nearest
    thing that was meant.
    """
    return torch.from_numpy(np.random.default_rng((42, index)).uniform(-1, 1, length).astype(np.float32))


def _decode(path, seconds, rate):
    """-> the file's first seconds as (channels, samples) at its own rate, and that rate. SampleError as read_audio."""
    if not os.path.isfile(path):
        raise SampleError(f'{path} is missing: put the file there or remove the sample from its list')
    if missing := _missing_wav_bytes(path):
        raise SampleError(f'{path} is cut short by {missing} bytes: fetch it again')
    try:
        with soundfile.SoundFile(path) as file:
            native, wanted = file.samplerate, math.ceil(seconds * file.samplerate)
            sound = file.read(wanted, dtype='float32', always_2d=True)                      # (samples, channels)
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
    return torch.from_numpy(np.ascontiguousarray(sound.T)), native


def _at_rate(sound, native, rate, length):
    """(channels, samples) -> (channels, length), resampled, cut or zero-padded."""
    if native != rate:
        sound = torchaudio.functional.resample(sound, native, rate)
    return torch.nn.functional.pad(sound[:, :length], (0, max(0, length - sound.shape[1])))


def sound_file(folder, name):
    """The sound <name> in a folder, whatever its format; where there is none, the wav that should be there."""
    return file_of(folder, name, SOUNDS)


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
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
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


def side_by_side(images, size=GROUND_TRUTH_SIZE):
    """Two PIL images, each squashed to size x size, the first at the left -> one of 2 size x size (section 4.2.5)."""
    both = Image.new('RGB', (size * len(images), size))
    for k, image in enumerate(images):
        both.paste(image.resize((size, size), Image.Resampling.BICUBIC), (k * size, 0))
    return both


def training_image(image, size, generator):
    """PIL -> (3, size, size). Paper: no augmentation is named; the release resizes to 1.1 x, crops and flips."""
    large = int(RESIZE_BEFORE_CROP * size)
    image = image.resize((large, large), Image.Resampling.BICUBIC)
    room = large - size + 1
    left, top, flip = (int(torch.randint(n, (1,), generator=generator)) for n in (room, room, 2))
    image = image.crop((left, top, left + size, top + size))
    return normalise(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


# ------------------------------------------------------------------------------------------------
# Ground truth
# ------------------------------------------------------------------------------------------------

def box_pixels(boxes, unit=1, size=GROUND_TRUTH_SIZE):
    """[[x0, y0, x1, y1]], `unit` being the frame's whole side -> (N, 4) int: clipped, scaled, truncated (released code)."""
    # multiplied before it is divided: 61 / 224 * 224 is a little less than 61, and would be truncated to 60
    return (np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, unit) * size / unit).astype(int)


def box_map(boxes, unit=1, agreement=1, size=GROUND_TRUTH_SIZE):
    """Boxes -> (size, size) float32 in 0..1: the number of boxes over a pixel / agreement, at most 1.

    agreement 1: inside any box or not. 2: Flickr-SoundNet's consensus of annotators, where a single box counts half.
    VGG-SS has boxes that lie outside the frame or have no area; they leave the map as it is and the sample stays.
    """
    filled = torch.zeros(size, size)
    for x0, y0, x1, y1 in box_pixels(boxes, unit, size):
        filled[y0:y1, x0:x1] += 1
    return (filled / agreement).clamp(max=1)


def box_from_mask(mask):
    """(H, W) mask -> (H, W) float32 with the tight box around its non-zero pixels filled; empty stays empty.

    Paper: it scores ADE20K on boxes, which the set has not; one box around all the objects of the class.
    """
    filled, (rows, columns) = torch.zeros_like(mask), mask.nonzero(as_tuple=True)
    if len(rows):
        filled[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 1
    return filled


def read_mask(path, frame_size=None, threshold=1, ade_class=None, size=GROUND_TRUTH_SIZE):
    """A mask picture -> (size, size) float32 of 0 and 1. SampleError as read_image.

    threshold: the least grey that is object; 1: any non-zero pixel, 128: JPEG masks, whose edges ring. ade_class: read
    as an ADE20K annotation, in which red // 10 * 256 + green is a pixel's class. frame_size: (width, height) of the
    frame, which the mask must share unless it is size x size already.
    Paper: the AVSBench release binarises through PIL's dithering convert('1'), which speckles grey edges; not here.
    """
    picture = read_image(path)
    if frame_size and picture.size not in (tuple(frame_size), (size, size)):
        raise SampleError(f'{path} is {picture.width} x {picture.height} pixels, its frame {frame_size[0]} x '
                          f'{frame_size[1]}: one of the two belongs to another sample, fetch both again')
    pixels = torch.from_numpy(np.array(picture.resize((size, size), Image.Resampling.NEAREST)))     # (size, size, 3), 8 bit
    if ade_class is None:
        return (pixels.amax(2) >= threshold).float()
    return (pixels[..., 0].int() // 10 * 256 + pixels[..., 1] == ade_class).float()


def _array_type(text, *_):
    """What a pickle means by numpy.dtype, for plain numbers only: a fresh copy, since the pickle sets its byte order."""
    kind = np.dtype(text)
    if kind.kind not in 'biuf':
        raise pickle.UnpicklingError(f'it holds values of type {kind}')
    return np.dtype(kind, False, True)


ARRAY_PARTS = {     # all that a pickled array names, and the harmless function that it gets
    ('numpy', 'ndarray'): 'only named, never called', ('numpy', 'dtype'): _array_type,
    ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1')}        # how old protocols spell bytes
for _core in ('numpy.core', 'numpy._core'):                                     # NumPy 1 and 2
    ARRAY_PARTS[f'{_core}.multiarray', '_reconstruct'] = lambda *_: np.zeros(0)         # filled by what follows it
    ARRAY_PARTS[f'{_core}.numeric', '_frombuffer'] = (
        lambda raw, kind, shape, order: np.frombuffer(raw, kind).reshape(shape, order=order))


class _ArraysOnly(pickle.Unpickler):
    """Loads NumPy arrays of numbers and refuses all else."""

    def find_class(self, module, name):
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f'it holds {module}.{name}')
        return ARRAY_PARTS[module, name]


def read_pickled_mask(path, size=GROUND_TRUTH_SIZE):
    """A pickled two-dimensional array, non-zero on the object (VGGSound-Instruments) -> (size, size) of 0 and 1.

    A pickle can call whatever it names, so one that names anything but an array's parts is refused unread.
    """
    try:
        with open(path, 'rb') as file:
            array = _ArraysOnly(file, encoding='latin1').load()
    except FileNotFoundError:
        raise SampleError(f'{path} is missing: put the file there or remove the sample from its list') from None
    except Exception as error:                              # a torn pickle can fail in any way
        raise SampleError(f'{path} is not a pickled NumPy array ({type(error).__name__}: '
                          f'{(str(error).splitlines() or [""])[0]}): fetch it again') from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'biuf' or array.ndim != 2 or not array.size:
        raise SampleError(f'{path} does not hold a two-dimensional array of numbers: fetch it again')
    if not np.isfinite(array).all():
        raise SampleError(f'{path} holds values that are not numbers: fetch it again')
    mask = Image.fromarray((array != 0).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask)).float()
