"""One sound, one frame, one mask: from a file to a tensor (section 4.1).

    wav = read_audio('a.wav', 10.0)                         # (160000,) at 16 kHz in -1..1
    image = evaluation_image(read_image('a.jpg'), 352)      # (3, 352, 352), CLIP-normalised
    boxes = box_map([[0.1, 0.2, 0.5, 0.9]])                 # (224, 224) of 0 and 1

Sounds may have any rate and number of channels, pictures 8 bits a channel. A file that cannot be
used is a SampleError: one sentence that names it and the remedy. Which files make a sample: data.py
and benchmarks/. The last two sections, on unusual sound files and on pickles, can be skipped first.
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
SOUNDS = ('.wav', '.flac', '.ogg', '.mp3')      # in this order; the released lists mean wav
PICTURES = ('.jpg', '.png', '.jpeg')
# All that Pillow may open (a phone's MPO is a JPEG): for others (EPS) it starts other programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
# From 89 megapixels on Pillow warns; from 179 on it raises an error, which stays one.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
LOUDEST = 10            # times full scale: floats may exceed it a little, unscaled integers do far
OPPOSED = 0.2           # channels cancel: less energy than this share of independent channels' mean
TOLERANCE = 0.05                # seconds beyond those heard that part_heard does not mention
# Paper [65]: names no size of the scored maps; the released code scores everything at 224 x 224
GROUND_TRUTH_SIZE = 224
SCORED = GROUND_TRUTH_SIZE, GROUND_TRUTH_SIZE
LONGEST_SIDE = 1600             # pixels, of a picture of one's own
JPEG_THRESHOLD = 128            # least grey of a JPEG mask that is object
RESIZE_BEFORE_CROP = 1.1        # times the model's size, for training frames (released code)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
_told_of_opposed = []           # the first such file, the only one that is named


class SampleError(ValueError):
    """A file of one sample that cannot be used; its text names the file and the remedy."""


def check_file(path):
    """SampleError unless this is an ordinary file: reading a pipe would wait for its writer."""
    if not os.path.exists(path):
        raise SampleError(f'{path} is missing: put the file there, or correct its name or its list')
    if not os.path.isfile(path):
        raise SampleError(f'{path} is a folder or a pipe: put an ordinary file there')


def file_of(folder, name, suffixes, *others):
    """The first file <folder>/<name><suffix> that is there; else the first of these paths."""
    folders = folder, *others
    paths = [Path(place) / f'{name}{suffix}' for place in folders for suffix in suffixes]
    return next((path for path in paths if path.is_file()), paths[0])


# ---- Sound ---------------------------------------------------------------------------------------

def sound_file(folder, name, *others):
    """file_of for a sound, whatever its format."""
    return file_of(folder, name, SOUNDS, *others)


def read_audio(path, seconds):
    """The first `seconds` of a sound, mono, resampled, zero-padded at its end (4.1, release)."""
    sound, rate = _decode(path, seconds)                            # (channels, samples)
    mono = _mono(sound, path)[None]                                 # (1, samples) in -1..1
    return _at_16_khz(mono, rate, round(seconds * SAMPLE_RATE))[0]  # (seconds * 16,000,)


def read_channels(path, seconds):
    """The left channel and then the right one, each for half of `seconds`; mono is played twice."""
    # Paper [40]: it does not say how AVSBench's clips of 5 s fill 10 s. This is the release's way,
    # which cannot read mono.
    length = round(seconds * SAMPLE_RATE)
    channels = _at_16_khz(*_decode(path, seconds / 2), length // 2)     # (channels, length // 2)
    both = torch.cat([channels[0], channels[:2][-1]])
    return torch.nn.functional.pad(both, (0, length - len(both)))       # 1 if the length is odd


def noise(index, length):
    """The noise of sample `index` of AVSBench-Robust, drawn from (42, index), uniform in -1..1."""
    # Paper [43]: "noisy audio (e.g., white noise)". Its authors fix the seed 42 and write the bytes
    # of float64 numbers as if they were 16-bit samples: broadband noise at full scale.
    rng = np.random.default_rng((42, index))
    return torch.from_numpy(rng.uniform(-1, 1, length).astype(np.float32))      # (length,)


def part_heard(path, seconds):
    """How much of a sound read_audio hears: 'the first 2.0 of 5.0 s of a.wav', or None if all."""
    samples, rate, stated = _read_samples(path, seconds + TOLERANCE)
    if len(samples) < math.ceil((seconds + TOLERANCE) * rate):
        return None
    total = '' if stated is None else f' of {stated / rate:.1f}'
    return f'the first {seconds:.1f}{total} s of {Path(path).name}'


def _decode(path, seconds):
    """-> the first seconds as (channels, samples) at the file's own rate, and that rate."""
    samples, rate, stated = _read_samples(path, seconds)                # (samples, channels)
    wanted = math.ceil(seconds * rate)
    if len(samples) < wanted and _is_chain(path):
        raise SampleError(f'{path} is a chain of several sounds, of which only the first can be '
                          'read: save it as wav')
    lacking = 0 if stated is None else min(wanted, stated) - len(samples)
    if lacking:
        raise SampleError(f'{path} is cut short by {lacking} samples: fetch it again')
    if not len(samples):
        raise SampleError(f'{path} holds no sound (zero samples): replace it')
    peak = np.abs(samples).max()
    if not np.isfinite(peak):
        raise SampleError(f'{path} holds samples that are not numbers: replace it')
    if peak > LOUDEST:
        raise SampleError(f'{path} holds samples up to {peak:.4g}, where full scale is 1: divide '
                          'them by the full scale of their integers (32768 for 16 bits)')
    if rate // math.gcd(rate, SAMPLE_RATE) > 2000:      # the resampler would take minutes
        raise SampleError(f'{path} has the odd rate of {rate} Hz: resample it to {SAMPLE_RATE}')
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate


def _mono(sound, path):
    """(channels, samples) -> (samples,): their mean, or the loudest if they cancel each other."""
    # Paper [39]: section 4.1 does not mention stereo, and the released code expects mono files.
    # Channels of opposite sign (a microphone wired wrongly) would average to silence.
    if len(sound) == 1:
        return sound[0]
    mean = sound.mean(0)
    energy = sound.var(1, correction=0)         # (channels,); a constant offset is no sound
    if mean.var(correction=0) >= OPPOSED * energy.mean() / len(sound):      # stereo: r >= -0.8
        return mean
    if not _told_of_opposed:
        _told_of_opposed.append(path)
        tqdm.write(f'{path}: its channels cancel each other, so the loudest of them is taken; '
                   'further files of this kind are not named', file=sys.stderr)
    return sound[energy.argmax()]


def _at_16_khz(sound, rate, length):
    """(channels, samples) -> (channels, length), resampled, cut or zero-padded."""
    if rate != SAMPLE_RATE:
        sound = torchaudio.functional.resample(sound, rate, SAMPLE_RATE)
    return torch.nn.functional.pad(sound[:, :length], (0, max(0, length - sound.shape[1])))


# ---- Frames --------------------------------------------------------------------------------------

def read_image(path):
    """-> PIL image, RGB, on white where it is transparent."""
    with _open_picture(path) as picture:
        return _opaque(picture, 'white')


def read_own_image(path):
    """As read_image, but upright and at most LONGEST_SIDE long -> PIL image, was it larger?"""
    with _open_picture(path) as picture:
        large = max(picture.size) > LONGEST_SIDE
        picture.draft(None, (LONGEST_SIDE, LONGEST_SIDE))   # decodes a JPEG at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(picture, in_place=True)     # phones turn the tag, not the pixels
        image = _opaque(picture, 'white')
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image, large


@contextlib.contextmanager
def _open_picture(path):
    """Yields a PIL image of 8 bits a channel; errors in its use are SampleErrors too."""
    check_file(path)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode.startswith('I') or picture.mode == 'F':         # Pillow would clip it
                raise ValueError('16 bits or more a channel where 8 are needed')
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
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
    """PIL image or (H, W, 3) uint8 -> (3, H, W) float32, minus CLIP's mean, over its deviation."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)
    return (pixels.float() / 255 - CLIP_MEAN) / CLIP_STD


def displayable(image):
    """The inverse of normalise: (3, H, W) -> (H, W, 3) uint8 array."""
    pixels = (image.cpu() * CLIP_STD + CLIP_MEAN).clamp(0, 1) * 255
    return pixels.round().byte().permute(1, 2, 0).numpy()


def evaluation_image(image, size):
    """PIL -> (3, size, size), squashed to a square, bicubic, without crop (released code)."""
    # Paper [21]: "resized to 352x352"
    return normalise(image.resize((size, size), Image.Resampling.BICUBIC))


def side_by_side(images):
    """Two PIL images -> one of 448 x 224, the first at the left, both squashed (4.2.5)."""
    both = [image.resize(SCORED, Image.Resampling.BICUBIC) for image in images]
    return Image.fromarray(np.concatenate(both, 1))


def training_image(image, size, generator):
    """PIL -> (3, size, size), resized to 1.1 x, cropped and flipped at random (released code)."""
    # Paper [20]: it names no augmentation
    large = int(RESIZE_BEFORE_CROP * size)
    image = image.resize((large, large), Image.Resampling.BICUBIC)
    room = large - size + 1
    left, top, flip = (int(torch.randint(n, (1,), generator=generator)) for n in (room, room, 2))
    image = image.crop((left, top, left + size, top + size))
    return normalise(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


# ---- Ground truth --------------------------------------------------------------------------------

def box_pixels(boxes, unit=1):
    """[[x0, y0, x1, y1]] in a frame of side `unit` -> (N, 4) int: clipped, scaled, truncated."""
    clipped = np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, unit)
    return (clipped * GROUND_TRUTH_SIZE / unit).astype(int)     # 61 / 224 * 224 is less than 61


def box_map(boxes, unit=1, agreement=1):
    """Boxes -> (224, 224) float32: the number of boxes over a pixel / agreement, at most 1.

    agreement 2: Flickr-SoundNet's consensus of annotators, in which a single box counts half.
    Boxes outside the frame or without area, which VGG-SS has, leave the map as it is.
    """
    filled = torch.zeros(SCORED)
    for x0, y0, x1, y1 in box_pixels(boxes, unit):
        filled[y0:y1, x0:x1] += 1
    return (filled / agreement).clamp(max=1)


def box_from_mask(mask):
    """(H, W) mask -> (H, W) float32, the tight box around its non-zero pixels filled."""
    # Paper [41]: it scores ADE20K on boxes, which the set lacks: one around all objects of a class
    filled = torch.zeros_like(mask)
    rows, columns = mask.nonzero(as_tuple=True)
    if len(rows):
        filled[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 1
    return filled


def read_mask(path, frame_size=None, threshold=1, ade_class=None):
    """A mask picture -> (224, 224) float32 of 0 and 1; a transparent pixel is 0.

    frame_size: (width, height) of its frame, which the mask must share unless it is 224 x 224.
    threshold: the least grey that is object. ade_class: the picture is an ADE20K annotation, in
    which red // 10 * 256 + green is a pixel's class.
    """
    with _open_picture(path) as opened:
        picture = _opaque(opened, 'black')
        # Paper [22]: any non-zero pixel is object, of a JPEG, whose edges ring, from 128 on. The
        # AVSBench release dithers, by convert('1'), which speckles grey edges.
        if opened.format in ('JPEG', 'MPO'):
            threshold = max(threshold, JPEG_THRESHOLD)
    if frame_size and picture.size not in (tuple(frame_size), SCORED):
        raise SampleError(f'{path} is {picture.width} x {picture.height} pixels, its frame '
                          f'{frame_size[0]} x {frame_size[1]}: one of the two belongs to another '
                          'sample, fetch both again')
    pixels = np.array(picture.resize(SCORED, Image.Resampling.NEAREST))     # (224, 224, 3) uint8
    pixels = torch.from_numpy(pixels)
    if ade_class is None:
        return (pixels.amax(2) >= threshold).float()
    return (pixels[..., 0].int() // 10 * 256 + pixels[..., 1] == ade_class).float()


# ---- Sound files that do not state their length, or not truly ------------------------------------
# A file that was written into a pipe cannot state how many samples follow, an MP3 need not: such a
# sound ends with its file. Decoders do not report a file that is shorter than it states.

PLACEHOLDER = 0x7FFFF000        # a WAV's size from here on may mean "unknown" (sox, ffmpeg)
UNKNOWN_FRAMES = 2**63 - 1      # libsndfile's number of samples if a file does not state it
MP3_HEADER = rb'\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]'       # of each of its frames
MP3_FRAME = 1152                # samples that a frame of an MP3 has at most


class _Sound(soundfile.SoundFile):
    def seekable(self):
        return False            # else it seeks after reading, an error at the end of such a FLAC

    def take(self, count):
        return self.read(count, dtype='float32', always_2d=True)        # (count or less, channels)


class _Endless(io.BytesIO):
    def seek(self, offset, whence=os.SEEK_SET):
        if whence == os.SEEK_END and offset == 0:       # asked for its size
            return super().seek(2**30)
        return super().seek(offset, whence)


def _read_samples(path, seconds):
    """-> the first (samples, channels) float32, their rate, how many the file states or None."""
    check_file(path)
    if Path(path).suffix.lower() == '.raw':
        raise SampleError(f'{path} has no header with its rate and channels: save it as wav')
    try:
        source = _wav_with_size(path)
        if source is path and os.name == 'posix':
            source = os.fsencode(path)                  # soundfile would encode it as UTF-8
        with _Sound(source) as sound:
            wanted = math.ceil(seconds * sound.samplerate)
            mp3 = _mp3_without_length(path) if sound.format == 'MP3' else None
            if mp3:
                return _decode_mp3(mp3, wanted), sound.samplerate, None
            stated = None if sound.frames == UNKNOWN_FRAMES else sound.frames
            samples = sound.take(wanted if stated is None else min(wanted, stated))
            return samples, sound.samplerate, stated
    except (RuntimeError, OSError) as error:
        reason = getattr(error, 'error_string', None) or str(error) or 'the decoder fails'
        raise SampleError(f'{path} is not a readable sound ({reason.splitlines()[0]}): replace '
                          'it') from None


def _mp3_without_length(path):
    """An MP3 from its first frame on; None if that one (Xing, Info) states how many follow.

    Before it may be an ID3 tag, or the rest of a frame if a stream was recorded.
    """
    mp3 = Path(path).read_bytes()
    if mp3.startswith(b'ID3'):              # its size: 7 bits in each of 4 bytes
        mp3 = mp3[10 + sum(byte << 7 * k for k, byte in enumerate(mp3[9:5:-1])):]
    flags = re.search(rb'(?:Xing|Info)\0\0\0(.)', mp3[:4096], re.DOTALL)
    if flags and flags[1][0] & 1:
        return None
    frame = re.search(MP3_HEADER, mp3[:4096])
    return mp3[frame.start():] if frame else mp3


def _decode_mp3(mp3, wanted):
    """-> (up to `wanted` samples, channels), without the last frame if it is truncated.

    libsndfile estimates the number of samples from the size of the file and decodes no more, which
    may lose half of them. It is therefore told a size of 1 GB, and decodes to the end.
    """
    blocks = []
    stream = _Endless(mp3)
    with _Sound(stream) as sound:
        try:
            while len(blocks) * MP3_FRAME < wanted:
                blocks.append(sound.take(MP3_FRAME))
                if len(blocks[-1]) < MP3_FRAME:
                    break
        except soundfile.LibsndfileError:
            if not blocks or stream.tell() < len(mp3):
                raise
    return np.concatenate(blocks)[:wanted]


def _is_chain(path):
    """Whether an OGG file, as internet radio gives it, holds sounds one after the other."""
    flags = b''.join(re.findall(rb'OggS\0(.)', Path(path).read_bytes(), re.DOTALL))
    return any(not page & 2 and following & 2 for page, following in zip(flags, flags[1:]))


def _wav_with_size(path):
    """The path, or of a WAV that states a size of 0 a copy with the true size.

    libsndfile understands placeholders. The size of the RIFF chunk is ignored: many are wrong.
    """
    with open(path, 'rb') as file:
        order = {b'RIFF': 'little', b'RIFX': 'big'}.get(file.read(4))
        if not order:
            return path
        wav = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)      # the file stays as it is
    end = len(wav)
    chunks = _chunks(wav, 12, order)
    start, stop = next((place for name, *place in chunks if name == b'data'), (end, end))
    if stop > end and stop - start < PLACEHOLDER:
        raise SampleError(f'{path} is cut short by {stop - end} bytes: fetch it again')
    if stop > start or start == end:
        return path
    others = [stop for _, _, stop in _chunks(wav, start, order)]
    if others and others[-1] in (end - 1, end):             # no samples, but further chunks
        return path
    size = min(end - start, 2**32 - 1) // 2 * 2             # 32 bits; an odd size would be padded
    wav[start - 4:start] = size.to_bytes(4, order)
    return wav


def _chunks(wav, place, order):
    """Yields (name, where its content begins, where it ends) as long as the names are text."""
    while re.match(rb'[ -~]{4}.{4}', wav[place:place + 8], re.DOTALL):
        size = int.from_bytes(wav[place + 4:place + 8], order)
        yield wav[place:place + 4], place + 8, place + 8 + size
        place += 8 + size + size % 2                        # padded to an even length


# ---- Pickled masks -------------------------------------------------------------------------------

def read_pickled_mask(path):
    """A pickled array, non-zero on the object (VGGSound-Instruments) -> (224, 224) of 0 and 1."""
    check_file(path)
    try:
        with open(path, 'rb') as file:
            array = _ArraysOnly(file, encoding='latin1').load()
    except Exception as error:                              # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [''])[0]
        raise SampleError(f'{path} is not a pickled NumPy array ({type(error).__name__}: '
                          f'{reason}): fetch it again') from None
    is_array = isinstance(array, np.ndarray) and array.dtype.kind in 'biuf'
    if not (is_array and array.ndim == 2 and array.size and np.isfinite(array).all()):
        raise SampleError(f'{path} is not a two-dimensional array of numbers: fetch it again')
    mask = Image.fromarray((array != 0).astype(np.uint8)).resize(SCORED, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask)).float()


class _ArraysOnly(pickle.Unpickler):
    """Refuses all but arrays of numbers: a pickle can call any function that it names."""

    def find_class(self, module, name):
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f'it holds {module}.{name}')
        return ARRAY_PARTS[module, name]


def _dtype(text, *_):
    """numpy.dtype, for plain numbers only; a new one, whose byte order the pickle then sets."""
    kind = np.dtype(text)
    if kind.kind not in 'biuf':
        raise pickle.UnpicklingError(f'it holds values of type {kind}')
    return np.dtype(kind, False, True)


ARRAY_PARTS = {         # all that the pickle of an array names, and what it gets for it
    ('numpy', 'ndarray'): 'only named, never called', ('numpy', 'dtype'): _dtype,
    ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1')}    # bytes, protocol 0 to 2
for _core in ('numpy.core', 'numpy._core'):                                 # NumPy 1 and 2
    ARRAY_PARTS[f'{_core}.multiarray', '_reconstruct'] = lambda *_: np.zeros(0)     # filled later
    ARRAY_PARTS[f'{_core}.numeric', '_frombuffer'] = (
        lambda raw, kind, shape, order: np.frombuffer(raw, kind).reshape(shape, order=order))
