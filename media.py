"""One sound, one frame, one mask: from a file on disk to a tensor (section 4.1).

    wav = read_audio('a.wav', 10.0)                              # (160000,) at 16 kHz in -1..1
    image = evaluation_image(read_image('a.jpg'), 352)           # (3, 352, 352), CLIP-normalised
    boxes = box_map([[0.1, 0.2, 0.5, 0.9]])                      # (224, 224) of 0 and 1

Audio may be wav, flac, ogg or mp3, mono or stereo, at any rate; pictures those of FORMATS with 8
bits a channel. A file that cannot be used is a SampleError, one sentence that names it and the
remedy. Nothing read here is executed: pickled masks pass an unpickler that knows NumPy's arrays and
nothing else. Which files make a sample: data.py.
"""

import contextlib
import io
import math
import mmap
import os
import pickle
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, ImageOps
from tqdm import tqdm

SAMPLE_RATE = 16_000
SOUNDS = ('.wav', '.flac', '.ogg', '.mp3')     # looked for in this order; the released lists mean wav
PICTURES = ('.jpg', '.png', '.jpeg')
# What Pillow may open, a phone's MPO as JPEG. It knows more and hands some (EPS) to other programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
# Pillow warns of pictures over 89 megapixels; from 179 on it raises an error, which is kept.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)   # raised by Pillow
LOUDEST = 10        # times full scale: float samples may exceed it a little, unscaled integers far
# Channels are opposed where their mean has less than this share of the energy that the mean of
# independent channels would have; for stereo of equal loudness, where they correlate below -0.8.
OPPOSED = 0.2
TOLERANCE = 0.05                # seconds after the last one heard that part_heard does not mention
PLACEHOLDER = 0x7FFFF000        # a WAV's size from here on may mean "unknown" (sox, ffmpeg)
MPEG_FRAME = rb'\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]'      # the header of an MP3 frame
UNKNOWN_FRAMES = 2**63 - 1      # libsndfile's count where a file does not state its length
MP3_FRAME = 1152                # samples that an MP3 frame has at most
GROUND_TRUTH_SIZE = 224                 # everything is scored at 224 x 224 (released code)
LONGEST_SIDE = 1600                     # pixels to which a picture of one's own is brought down
JPEG_THRESHOLD = 128                    # least grey of a JPEG mask that is object
RESIZE_BEFORE_CROP = 1.1                # times the model's size, for training frames (released code)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
_told_of_opposed = []                   # the first such file, which alone is named


class SampleError(ValueError):
    """A file of one sample that cannot be used; its text names the file and the remedy."""


def check_file(path):
    """SampleError where there is no ordinary file: reading a pipe would wait for its writer."""
    if not os.path.exists(path):
        raise SampleError(f'{path} is missing: put the file there, or correct its name or its list')
    if not os.path.isfile(path):
        raise SampleError(f'{path} is a folder or a pipe: put an ordinary file there')


def file_of(folder, name, suffixes, *others):
    """<name> with the first suffix that is there, in a folder or else in the others.

    If there is none: the path with the first suffix in the first folder.
    """
    folders = folder, *others
    paths = [Path(place) / f'{name}{suffix}' for place in folders for suffix in suffixes]
    return next((path for path in paths if path.is_file()), paths[0])


# ------------------------------------------------------------------------------------------------
# Sound
# ------------------------------------------------------------------------------------------------

def read_audio(path, seconds, rate=SAMPLE_RATE):
    """The first `seconds` of a sound file, mono, resampled, zero-padded at its end (section 4.1, released code).

    -> (round(seconds * rate),) float32 in -1..1. SampleError when it is missing, cut short, empty or not a sound.
    """
    sound, native = _decode(path, seconds, rate)
    return _at_rate(_mono(sound, path)[None], native, rate, round(seconds * rate))[0]


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


def part_heard(path, seconds):
    """How much of a sound read_audio hears, e.g. 'the first 2.0 of 5.0 s of a.wav'; None if all."""
    with _open_sound(path) as (sound, frames):
        limit = math.ceil((seconds + TOLERANCE) * sound.samplerate)
        total = '' if frames is None else f' of {frames / sound.samplerate:.1f}'
        length = len(_samples(sound, limit)) if frames is None else frames
    return f'the first {seconds:.1f}{total} s of {Path(path).name}' if length >= limit else None


def _decode(path, seconds, rate):
    """-> the first seconds as (channels, samples) at the file's own rate, and that rate."""
    with _open_sound(path) as (sound, frames):
        native, length = sound.samplerate, math.ceil(seconds * sound.samplerate)
        wanted = length if frames is None else min(length, frames)
        samples = _samples(sound, wanted)                                   # (samples, channels)
    if len(samples) < length and sound.format == 'OGG' and _is_chain(path):
        raise SampleError(f'{path} is a chain of several sounds, of which only the first can be '
                          'read: save it as wav')
    if frames is not None and len(samples) < wanted:
        raise SampleError(f'{path} is cut short by {wanted - len(samples)} samples: fetch it again')
    if not len(samples):
        raise SampleError(f'{path} holds no sound (zero samples): replace it')
    peak = np.abs(samples).max()
    if not np.isfinite(peak):
        raise SampleError(f'{path} holds samples that are not numbers: replace it')
    if peak > LOUDEST:
        raise SampleError(f'{path} holds samples up to {peak:.4g}, where full scale is 1: divide '
                          'them by the full scale of their integers (32768 for 16 bits)')
    if native // math.gcd(native, rate) > 2000:                             # the resampler's kernels would never end
        raise SampleError(f'{path} has the odd rate of {native} Hz: resample it to {rate}')
    return torch.from_numpy(np.ascontiguousarray(samples.T)), native


def _mono(sound, path):
    """(channels, samples) -> (samples,): their mean, or the loudest where they cancel each other.

    Paper: section 4.1 says nothing of stereo, and the released code takes mono files. Channels of
    opposite sign, which wrongly wired microphones give, would average to silence.
    """
    if len(sound) == 1:
        return sound[0]
    mean = sound.mean(0)
    energy = sound.var(1, correction=0)             # (channels,); a constant offset is no sound
    if mean.var(correction=0) >= OPPOSED * energy.mean() / len(sound):
        return mean
    if not _told_of_opposed:
        _told_of_opposed.append(path)
        tqdm.write(f'{path}: its channels cancel each other, so the loudest of them is taken; '
                   'further files of this kind are not named', file=sys.stderr)
    return sound[energy.argmax()]


def _at_rate(sound, native, rate, length):
    """(channels, samples) -> (channels, length), resampled, cut or zero-padded."""
    if native != rate:
        sound = torchaudio.functional.resample(sound, native, rate)
    return torch.nn.functional.pad(sound[:, :length], (0, max(0, length - sound.shape[1])))


def sound_file(folder, name, *others):
    """file_of for a sound, whatever its format."""
    return file_of(folder, name, SOUNDS, *others)


# The length of a sound. A header cannot state it where the file was written into a pipe, and an MP3
# need not: such a sound ends where its file ends. A file that is shorter than its header states is
# truncated, of which decoders say nothing.

class _Sound(soundfile.SoundFile):
    """A sound that is read once, from its start.

    soundfile would seek after reading, which fails at the end of a FLAC of unknown length.
    """

    def seekable(self):
        return False


class _Stream(io.FileIO):
    """An MP3 that does not state its length, as libsndfile has to see it: from `start` on.

    libsndfile estimates the number of frames from the size of the file and decodes no more, which
    loses any number of seconds. The size that it sees here is a gigabyte too large, so that it
    decodes all of the data.
    """

    def __init__(self, path, start):
        super().__init__(path)
        self.start = start
        self.size = os.path.getsize(path) - start
        self.seek(0)

    def seek(self, offset, whence=os.SEEK_SET):
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:                         # with an offset: libmpg123 seeks a tag
            offset += self.size if offset else self.size + 2**30
        return super().seek(self.start + max(0, offset)) - self.start

    def tell(self):
        return super().tell() - self.start


@contextlib.contextmanager
def _open_sound(path):
    """Yields a _Sound and its stated samples per channel, or None. SampleError as read_audio."""
    check_file(path)
    if Path(path).suffix.lower() == '.raw':
        raise SampleError(f'{path} has no header with its rate and channels: save it as wav')
    try:
        source = _source(path)
        if source is path and os.name == 'posix':
            source = os.fsencode(path)                      # soundfile would encode it as UTF-8
        with _Sound(source) as sound:
            start, states_length = _first_frame(path) if sound.format == 'MP3' else (0, True)
            if states_length:
                yield sound, None if sound.frames == UNKNOWN_FRAMES else sound.frames
                return
        with _Stream(path, start) as stream, _Sound(stream) as sound:
            yield sound, None
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        reason = getattr(error, 'error_string', None) or str(error) or 'the decoder fails'
        reason = reason.splitlines()[0]
        raise SampleError(f'{path} is not a readable sound ({reason}): replace it') from None


def _first_frame(path):
    """Where an MP3's first frame begins, and whether that one (Xing, Info) counts the others.

    Before it may be an ID3 tag, or the rest of a frame where a stream was recorded.
    """
    with open(path, 'rb') as file:
        head = file.read(10)
        tag = 0
        if head.startswith(b'ID3'):                         # its size: 7 bits in each of 4 bytes
            tag = 10 + sum(byte << 7 * k for k, byte in enumerate(reversed(head[6:])))
        file.seek(tag)
        head = file.read(4096)
    frame = re.search(MPEG_FRAME, head)
    flags = re.search(rb'(?:Xing|Info)\0\0\0(.)', head, re.DOTALL)
    return tag + (frame.start() if frame else 0), bool(flags and flags[1][0] & 1)


def _samples(sound, wanted):
    """-> (up to `wanted` samples, channels) float32, without a _Stream's truncated last frame."""
    if not isinstance(sound.name, _Stream):
        return sound.read(wanted, dtype='float32', always_2d=True)
    blocks = []
    try:
        while len(blocks) * MP3_FRAME < wanted:
            blocks.append(sound.read(MP3_FRAME, dtype='float32', always_2d=True))
            if len(blocks[-1]) < MP3_FRAME:
                break
    except soundfile.LibsndfileError:
        if not blocks or sound.name.tell() < sound.name.size:
            raise
    return np.concatenate(blocks)[:wanted]


def _is_chain(path):
    """Whether an OGG file, as internet radio gives it, holds sounds one after the other."""
    flags = b''.join(re.findall(rb'OggS\0(.)', Path(path).read_bytes(), re.DOTALL))
    return any(not page & 2 and following & 2 for page, following in zip(flags, flags[1:]))


def _source(path):
    """What soundfile opens: the path, or of a WAV that states 0 samples a copy that states them.

    SampleError where a WAV's samples are fewer than it states. The size of the RIFF chunk around
    them is ignored: recorders get it wrong. libsndfile reads a placeholder to the end of the file.
    """
    with open(path, 'rb') as file:
        order = {b'RIFF': 'little', b'RIFX': 'big'}.get(file.read(4))
        end = file.seek(0, os.SEEK_END)
        chunks = _chunks(file, 12, end, order) if order else ()
        start, stop = next((place for name, *place in chunks if name == b'data'), (end, end))
        if stop > end and stop - start < PLACEHOLDER:
            raise SampleError(f'{path} is cut short by {stop - end} bytes: fetch it again')
        if stop > start or start == end:
            return path
        others = [stop for _, _, stop in _chunks(file, start, end, order)]
        if others and others[-1] in (end - 1, end):         # it has chunks after no samples
            return path
        # copy-on-write: the file is read as it is needed, and never written
        wav = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    size = min(end - start, 2**32 - 1) // 2 * 2             # 32 bits; an odd size would be padded
    wav[start - 4:start] = size.to_bytes(4, order)
    return wav


def _chunks(file, place, end, order):
    """Yields a RIFF file's chunks, (name, where the content begins, ends), while names are text."""
    while place + 8 <= end:
        file.seek(place)
        name = file.read(4)
        if not (name.isascii() and name.decode().isprintable()):
            return
        size = int.from_bytes(file.read(4), order)
        yield name, place + 8, place + 8 + size
        place += 8 + size + size % 2                        # padded to an even length


# ------------------------------------------------------------------------------------------------
# Frames
# ------------------------------------------------------------------------------------------------

def read_image(path):
    """-> PIL image, RGB, on white where it is transparent.

    SampleError when it is missing or not a readable picture.
    """
    with _open_picture(path) as picture:
        return _opaque(picture, 'white')


def read_own_image(path):
    """As read_image, for a picture of any size, upright and at most LONGEST_SIDE wide and high.

    -> PIL image, whether it was larger
    """
    with _open_picture(path) as picture:
        large = max(picture.size) > LONGEST_SIDE
        picture.draft(None, (LONGEST_SIDE, LONGEST_SIDE))   # a JPEG is decoded at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(picture, in_place=True)     # phones turn the tag, not the pixels
        image = _opaque(picture, 'white')
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image, large


@contextlib.contextmanager
def _open_picture(path):
    """Yields a PIL image of 8 bits a channel. SampleError, also for what goes wrong in its use."""
    check_file(path)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode.startswith('I') or picture.mode == 'F':     # Pillow would clip these
                raise SampleError(f'{path} is a picture of 16 bits or more a channel: save it with '
                                  '8')
            yield picture
    except SampleError:
        raise
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SampleError(f'{path} is not a readable picture ({reason}): replace it by one of the '
                          f'formats {", ".join(FORMATS)}') from None


def _opaque(picture, background):
    """-> RGB, the background where it is transparent: any colours may be hidden there."""
    if not picture.has_transparency_data:
        return picture.convert('RGB')
    picture = picture.convert('RGBA')
    image = Image.new('RGB', picture.size, background)
    image.paste(picture, mask=picture)
    return image


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

    threshold: the least grey that is object; 1: any non-zero pixel. It is at least JPEG_THRESHOLD
    for a JPEG, whatever its name, because a JPEG's edges ring. A transparent pixel is no object.
    ade_class: read as an ADE20K annotation, in which red // 10 * 256 + green is a pixel's class.
    frame_size: (width, height) of the frame, which the mask must share unless it is size x size
    already.
    Paper: the AVSBench release binarises through PIL's dithering convert('1'), which speckles grey edges; not here.
    """
    with _open_picture(path) as opened:
        picture = _opaque(opened, 'black')
        if opened.format in ('JPEG', 'MPO'):
            threshold = max(threshold, JPEG_THRESHOLD)
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
    check_file(path)
    try:
        with open(path, 'rb') as file:
            array = _ArraysOnly(file, encoding='latin1').load()
    except Exception as error:                              # a damaged pickle can fail in any way
        raise SampleError(f'{path} is not a pickled NumPy array ({type(error).__name__}: '
                          f'{(str(error).splitlines() or [""])[0]}): fetch it again') from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'biuf' or array.ndim != 2 or not array.size:
        raise SampleError(f'{path} does not hold a two-dimensional array of numbers: fetch it again')
    if not np.isfinite(array).all():
        raise SampleError(f'{path} holds values that are not numbers: fetch it again')
    mask = Image.fromarray((array != 0).astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask)).float()
