"""One sound, one frame, one mask: from a file to a tensor (section 4.1).

    wav = read_audio('a.wav', 10.0)                         # (160000,) at 16 kHz in -1..1
    image = evaluation_image(read_image('a.jpg'), 352)      # (3, 352, 352), CLIP-normalised
    boxes = box_map([[0.1, 0.2, 0.5, 0.9]])                 # (224, 224) of 0 and 1

Sounds may have any usual rate and number of channels, pictures have 8 bits a channel. A file that
cannot be used raises SampleError, one sentence with the file and the remedy. Which files make a
sample: data.py and benchmarks/. read_samples, part_heard and the last two sections (headers without
a length, pickles) can be skipped at first.
"""

import contextlib
import itertools
import math
import os
import pickle
import re
import struct
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
import torchaudio
from PIL import Image, ImageOps
from tqdm import tqdm

SAMPLE_RATE = 16_000            # Hz
SOUNDS = ('.wav', '.flac', '.ogg', '.mp3')      # looked for in this order
CHECKED = ('WAV', 'WAVEX', 'FLAC', 'OGG', 'MP3')    # formats in which truncation is noticed
PICTURES = ('.jpg', '.png', '.jpeg')
# Pillow may open no other format: for EPS it would start Ghostscript. A phone's MPO counts as JPEG.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
# Pillow warns from 89 megapixels on; its error from 179 on becomes a SampleError.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
LOUDEST = 10                    # largest accepted peak; full scale is 1
OPPOSED = 0.2                   # channels cancel if their mean has a smaller share of energy (mono)
SILENT = 2**-14                 # a user's sound is silent if it peaks below: two steps of 16 bits
TOLERANCE = 0.05                # seconds past the end that part_heard does not report
# Paper [65]: the size of the scored maps is not named; the released code has 224 x 224
GROUND_TRUTH_SIZE = 224
SCORED = GROUND_TRUTH_SIZE, GROUND_TRUTH_SIZE
LONGEST_SIDE = 1600             # pixels, of a user's own picture
JPEG_THRESHOLD = 128            # least grey of a JPEG mask that is object
RESIZE_BEFORE_CROP = 1.1        # times the model's size, for training frames (released code)
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
files_that_cancel = []         # the first file whose channels cancel; later ones are not printed


class SampleError(ValueError):
    """A file of one sample that cannot be used; its text names the file and the remedy."""


def check_file(path):
    """SampleError unless this is an ordinary file: opening a pipe would block."""
    if not os.path.exists(path):
        raise SampleError(f'{path} is missing: put the file there, or correct its name or its list')
    if not os.path.isfile(path):
        raise SampleError(f'{path} is a folder or a pipe: put an ordinary file there')


def file_of(folder, name, suffixes, *others):
    """The first existing <folder>/<name><suffix>, then in `others`; if none exists, the first."""
    paths = [Path(place, f'{name}{suffix}') for place in (folder, *others) for suffix in suffixes]
    return next((path for path in paths if path.is_file()), paths[0])


# ---- Sound ---------------------------------------------------------------------------------------

def read_audio(path, seconds):
    """The first `seconds` of a sound: mono, 16 kHz, zero-padded at the end (4.1, release)."""
    sound, rate, _ = decode(path, seconds)                              # (channels, samples)
    sound = mono(sound, path)[None]                                     # (1, samples) in -1..1
    return at_16_khz(sound, rate, round(seconds * SAMPLE_RATE))[0]      # (seconds * 16,000,)


def read_channels(path, seconds):
    """The left channel, then the right one, half of `seconds` each; a mono sound plays twice."""
    # Paper [40]: it does not say how AVSBench's clips of 5 s fill 10 s. The release plays one
    # channel after the other, and fails on mono.
    sound, rate, _ = decode(path, seconds / 2)                          # (channels, samples)
    channels = at_16_khz(sound, rate, round(seconds * SAMPLE_RATE) // 2)[:2]
    return torch.cat([channels[0], channels[-1]])                       # (seconds * 16,000,)


def noise(index, length):
    """Uniform noise in -1..1 for sample `index` of AVSBench-Robust, seeded with (42, index)."""
    # Paper [43]: "noisy audio (e.g., white noise)". The benchmark's authors use the seed 42 and
    # write the bytes of float64 numbers as 16-bit samples: broadband noise at full scale.
    rng = np.random.default_rng((42, index))
    return torch.from_numpy(rng.uniform(-1, 1, length).astype(np.float32))      # (length,)


def decode(path, seconds):
    """Decode and check the first `seconds`. -> (channels, samples), rate, stated (read_samples)"""
    samples, rate, stated = read_samples(path, seconds)                # (samples, channels)
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
    return torch.from_numpy(np.ascontiguousarray(samples.T)), rate, stated


def mono(sound, path):
    """(channels, samples) -> (samples,): their mean, or the loudest if they cancel each other."""
    # Paper [39]: section 4.1 does not mention stereo, and the released code expects mono files.
    # Channels of opposite sign (a microphone wired wrongly) would average to silence.
    mean = sound.mean(0)
    energy = sound.var(1, correction=0)             # (channels,), without a constant offset
    independent = energy.mean() / len(sound)        # energy of the mean of independent channels
    if mean.var(correction=0) >= OPPOSED * independent:     # in stereo: a correlation over -0.8
        return mean
    if not files_that_cancel:
        files_that_cancel.append(path)
        tqdm.write(f'{path}: its channels cancel each other, so the loudest of them is taken; '
                   'further files of this kind are not named', file=sys.stderr)
    return sound[energy.argmax()]


def at_16_khz(sound, rate, length):
    """(channels, samples) -> (channels, length), resampled, cut or zero-padded."""
    sound = torchaudio.functional.resample(sound, rate, SAMPLE_RATE)    # unchanged if rates agree
    return torch.nn.functional.pad(sound, (0, length - sound.shape[1]))     # cut, where negative


def read_samples(path, seconds):
    """-> the first samples (samples, channels), their rate, how many the header states or None"""
    check_file(path)
    name = os.fsencode(path) if os.name == 'posix' else path    # soundfile would encode it as UTF-8
    try:
        wav_size, lacking_bytes = bytes_of_wav(path)
        with soundfile.SoundFile(name) as sound:
            rate = sound.samplerate
            wanted = math.ceil(seconds * rate)
            if wav_size == 0 or sound.format == 'MP3' and not mp3_states_length(path):
                return decode_to_end(path, wanted, sound.channels), rate, None
            sound.seekable = lambda: False      # else it seeks after reading: fails at a FLAC's end
            samples = sound.read(min(wanted, sound.frames), 'float32', always_2d=True)
            stated = sound.frames if sound.frames < UNKNOWN_FRAMES else None
    except Exception as error:                          # damaged files raise many kinds of errors
        reason = getattr(error, 'error_string', '') or getattr(error, 'strerror', '') or str(error)
        reason, *_ = reason.split('\n')
        raise SampleError(f'{path} is not a readable sound ({reason}): replace it by '
                          'a WAV, FLAC, OGG or MP3') from None
    if lacking_bytes > 0 and wav_size < PLACEHOLDER:
        raise SampleError(f'{path} is cut short by {lacking_bytes} bytes: fetch it again')
    if len(samples) < wanted:
        check_end(path, sound, (stated or 0) - len(samples))
    return samples, rate, stated


def read_own_audio(path, seconds):
    """A user's sound, as read_audio; prints how much of it is heard, and whether it is silent."""
    wav = read_audio(path, seconds)                                     # (samples,)
    heard = part_heard(path, seconds)
    silent = ', all of it silent' if wav.abs().max() < SILENT else ''
    if heard or silent:
        print(f'hears {heard or Path(path).name}{silent}')
    return wav


def part_heard(path, seconds):
    """How much of a sound read_audio uses: 'the first 2.0 of 5.0 s of a.wav'; None if all of it."""
    samples, rate, stated = read_samples(path, seconds + TOLERANCE)
    if len(samples) < math.ceil((seconds + TOLERANCE) * rate):
        return None
    total = '' if stated is None else f' of {stated / rate:.1f}'
    return f'the first {seconds:.1f}{total} s of {Path(path).name}'


# ---- Frames --------------------------------------------------------------------------------------

def read_image(path):
    """-> PIL image, RGB; transparent pixels become white."""
    with open_picture(path) as picture:
        return opaque(picture, 'white')


def read_own_image(path):
    """A user's picture, upright, at most LONGEST_SIDE long -> PIL image, whether it was larger."""
    with open_picture(path) as picture:
        large = max(picture.size) > LONGEST_SIDE
        picture.draft(None, (LONGEST_SIDE, LONGEST_SIDE))   # decodes a JPEG at 1/2, 1/4 or 1/8
        ImageOps.exif_transpose(picture, in_place=True)     # phones store the rotation as a tag
        image = opaque(picture, 'white')
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image, large


@contextlib.contextmanager
def open_picture(path):
    """Open a picture of 8 bits a channel; errors while it is decoded become SampleErrors."""
    check_file(path)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.mode.startswith('I') or picture.mode == 'F':     # Pillow would clip values
                raise ValueError('16 bits or more a channel where 8 are needed')
            yield picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError,
            TypeError, struct.error) as error:                  # these two: damaged EXIF
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SampleError(f'{path} is not a readable picture ({reason}): replace it by one of the '
                          f'formats {", ".join(FORMATS)}') from None


def opaque(picture, background):
    """-> RGB with `background` in place of transparent pixels, which may hide any colour."""
    if not picture.has_transparency_data:
        return picture.convert('RGB')
    picture = picture.convert('RGBA')
    image = Image.new('RGB', picture.size, background)
    image.paste(picture, mask=picture)
    return image


def normalise(image):
    """PIL image or (H, W, 3) uint8 -> (3, H, W) float32 with CLIP's mean and deviation."""
    pixels = torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1)
    return (pixels.float() / 255 - CLIP_MEAN) / CLIP_STD


def displayable(image):
    """The inverse of normalise: (3, H, W) -> (H, W, 3) uint8 array."""
    pixels = (image.cpu() * CLIP_STD + CLIP_MEAN) * 255
    return pixels.round().byte().permute(1, 2, 0).numpy()


def evaluation_image(image, size):
    """PIL -> (3, size, size), squashed to a square, bicubic, not cropped (released code)."""
    # Paper [21]: "resized to 352x352", without a word on the aspect ratio
    return normalise(image.resize((size, size), Image.Resampling.BICUBIC))


def side_by_side(images):
    """Two PIL images -> one of 448 x 224, the first on the left, each squashed (4.2.5)."""
    both = [image.resize(SCORED, Image.Resampling.BICUBIC) for image in images]
    return Image.fromarray(np.concatenate(both, 1))


def training_image(image, size, generator):
    """PIL -> (3, size, size), resized to 1.1 x, cropped and flipped at random (released code)."""
    # Paper [20]: no augmentation is named
    large = int(RESIZE_BEFORE_CROP * size)
    image = image.resize((large, large), Image.Resampling.BICUBIC)
    room = large - size + 1
    left = int(torch.randint(room, (1,), generator=generator))
    top = int(torch.randint(room, (1,), generator=generator))
    flip = int(torch.randint(2, (1,), generator=generator))
    image = image.crop((left, top, left + size, top + size))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return normalise(image)                                             # (3, size, size)


# ---- Ground truth --------------------------------------------------------------------------------

def box_map(boxes, unit=1, agreement=1):
    """Boxes -> (224, 224) float32: how many boxes cover a pixel, over `agreement`, at most 1.

    boxes: [[x0, y0, x1, y1]] in a frame of side `unit`. Those without area, which VGG-SS has, fill
    nothing. agreement 2: Flickr-SoundNet's consensus map, where an annotator's box counts half.
    """
    clipped = np.asarray(boxes, np.float64).reshape(-1, 4).clip(0, unit)        # (boxes, 4)
    corners = (clipped * GROUND_TRUTH_SIZE / unit).astype(int)      # * first: 61 / 224 * 224 < 61
    filled = torch.zeros(SCORED)
    for x0, y0, x1, y1 in corners:
        filled[y0:y1, x0:x1] += 1
    return (filled / agreement).clamp(max=1)


def box_from_mask(mask):
    """(H, W) mask -> (H, W) float32 with the tight box around all its objects filled."""
    # Paper [41]: it scores ADE20K on boxes, which that set lacks: one for all objects of a class
    filled = torch.zeros_like(mask)
    rows, columns = mask.nonzero(as_tuple=True)
    if len(rows):
        filled[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 1
    return filled


def read_mask(path, frame_size=None, ade_class=None):
    """A mask picture -> (224, 224) float32 of 0 and 1; a transparent pixel is 0.

    frame_size: (width, height) of the frame; the mask has the same size, or 224 x 224. ade_class:
    the object's class in an ADE20K annotation, where a pixel is of class red // 10 * 256 + green.
    """
    with open_picture(path) as opened:
        picture = opaque(opened, 'black')
        # Paper [22]: any non-zero pixel is object; of a JPEG, which has ringing at edges, any from
        # 128 on. The AVSBench release dithers (convert('1')), which speckles grey edges.
        threshold = JPEG_THRESHOLD if opened.format == 'JPEG' else 1
    if frame_size and picture.size not in (frame_size, SCORED):
        raise SampleError(f'{path} is {picture.width} x {picture.height} pixels, its frame '
                          f'{frame_size[0]} x {frame_size[1]}: one of the two belongs to another '
                          'sample, fetch both again')
    picture = picture.resize(SCORED, Image.Resampling.NEAREST)
    pixels = torch.from_numpy(np.array(picture))                        # (224, 224, 3) uint8
    if ade_class is None:
        return (pixels.amax(2) >= threshold).float()
    return (pixels[..., 0].int() // 10 * 256 + pixels[..., 1] == ade_class).float()


# ---- Sound files without their true length -------------------------------------------------------
# A program that writes into a pipe cannot know how many samples follow, and an MP3 need not say it:
# such a sound ends where its file ends. A file that states more samples than it holds is truncated,
# which decoders do not report. libsndfile decodes all sounds but those that it would end too early:
# these FFmpeg reads to their end. It is slower, and shortens an OGG.

PLACEHOLDER = 0x7FFFF000        # sizes from here on mean "unknown" in a WAV (sox, ffmpeg)
UNKNOWN_FRAMES = 2**63 - 1      # libsndfile's number of samples where a FLAC does not state it
FFMPEG_OPTIONS = {'format_whitelist': 'wav,mp3'}        # a playlist would name further files


def decode_to_end(path, wanted, channels):
    """-> `wanted` samples, or as many as the file holds (samples, channels)"""
    to_float = av.AudioResampler('flt', frame_size=wanted)          # of the same rate and channels
    with open(path, 'rb') as file, av.open(file, options=FFMPEG_OPTIONS) as container:
        for frame in itertools.chain(container.decode(audio=0), [None]):        # None: no more
            for samples in to_float.resample(frame):
                return samples.to_ndarray().reshape(-1, channels)
    return np.empty((0, channels), np.float32)


def mp3_states_length(path):
    """Whether the first frame (Xing, Info) counts the frames; libsndfile estimates them if not."""
    mp3 = Path(path).read_bytes()
    if mp3.startswith(b'ID3'):              # skip the tag; its size: 7 bits in each of 4 bytes
        mp3 = mp3[10 + sum(byte << 7 * k for k, byte in enumerate(mp3[9:5:-1])):]
    flags = re.search(rb'(?:Xing|Info)\0\0\0(.)', mp3[:4096], re.DOTALL)
    return bool(flags and flags[1][0] & 1)


def check_end(path, sound, lacking):
    """SampleError where a sound that ends early is truncated, or may be. lacking: samples"""
    if sound.format == 'OGG':
        check_ogg(path)
    if sound.format not in CHECKED or sound.endian == 'BIG':        # RIFX: a WAV of that order
        raise SampleError(f'{path} ends early, and its format ({sound.format}) does not show '
                          'whether it is cut short: save it as wav')
    if lacking > 0:
        raise SampleError(f'{path} is cut short by {lacking} samples: fetch it again')


def check_ogg(path):
    """SampleError where an OGG ends early: it is truncated, or holds several sounds in a row."""
    ogg = Path(path).read_bytes()
    flags = b''.join(re.findall(rb'OggS\0(.)', ogg, re.DOTALL))     # of pages; 2: first, 4: last
    if any(not page & 2 and following & 2 for page, following in zip(flags, flags[1:])):
        raise SampleError(f'{path} is a chain of several sounds, of which only the first can be '
                          'read: save it as wav')         # internet radio writes such files
    page = ogg[ogg.rindex(b'OggS\0'):]
    count = sum(page[26:27])                    # of the parts of the page, whose sizes follow
    size = 27 + count + sum(page[27:27 + count])
    if len(page) < size or not flags[-1] & 4:
        raise SampleError(f'{path} is cut short within or before its last page: fetch it again')


def bytes_of_wav(path):
    """How many bytes of samples a WAV states, and how many of these it lacks. (None, 0): no WAV"""
    with open(path, 'rb') as file:
        for name, start, size in wav_chunks(file):
            if name == b'data':
                return size, start + size - os.path.getsize(path)
    return None, 0


def wav_chunks(file):
    """Yields the name, start and size of each chunk of a WAV; the file is then at that start."""
    start = 20                                  # 'RIFF', a size, 'WAVE'; a chunk's name and size
    if file.read(start - 8)[:4] != b'RIFF':     # its size is often wrong, and not needed
        return
    while re.match(rb'[ -~]{4}.{4}', head := file.read(8), re.DOTALL):      # names are text
        size = int.from_bytes(head[4:], 'little')
        yield head[:4], start, size
        start += size + size % 2 + 8            # padded to an even length
        file.seek(start - 8)


# ---- Pickled masks -------------------------------------------------------------------------------

def read_pickled_mask(path):
    """A pickled array, non-zero on the object (VGGSound-Instruments) -> (224, 224) of 0 and 1."""
    check_file(path)
    try:
        with open(path, 'rb') as file:
            array = ArraysOnly(file, encoding='latin1').load()
    except Exception as error:                          # a damaged pickle can raise anything
        reason = str(error).split('\n')[0][:80]
        raise SampleError(f'{path} is not a pickled NumPy array ({type(error).__name__}: '
                          f'{reason}): fetch it again') from None
    is_array = isinstance(array, np.ndarray) and array.dtype.kind in 'biuf'
    if not (is_array and array.ndim == 2 and array.size and np.isfinite(array).all()):
        raise SampleError(f'{path} is not a two-dimensional array of numbers: fetch it again')
    mask = Image.fromarray((array != 0).astype(np.uint8)).resize(SCORED, Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(mask)).float()


def plain_dtype(text, *_):
    """numpy.dtype, for plain numbers only; a new one, whose byte order the pickle then sets."""
    if np.dtype(text).kind not in 'biuf':
        raise pickle.UnpicklingError(f'it holds values of type {text}')
    return np.dtype(text, False, True)


ARRAY_PARTS = {         # all functions that the pickle of an array names, and what it gets instead
    ('numpy', 'ndarray'): 'only named, never called',
    ('numpy', 'dtype'): plain_dtype,
    ('_codecs', 'encode'): lambda text, encoding: text.encode('latin1'),    # bytes, protocol 0 to 2
    ('numpy.core.multiarray', '_reconstruct'): lambda *_: np.zeros(0),      # filled later
    ('numpy.core.numeric', '_frombuffer'):
        lambda raw, kind, shape, order: np.frombuffer(raw, kind).reshape(shape, order=order)}


class ArraysOnly(pickle._Unpickler):
    """Refuses all but arrays of numbers: a pickle can call any function that it names.

    Python's own unpickler: for one wrong byte, that in C can ask for 23 GB (index of LONG_BINPUT).
    """

    def find_class(self, module, name):
        part = module.replace('numpy._core', 'numpy.core'), name            # NumPy 2 and 1
        if part not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f'it holds {module}.{name}')
        return ARRAY_PARTS[part]
