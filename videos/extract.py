"""From videos to a data set (section 4.1): the annotated frame and 10 s of sound of each.

    python -m videos.extract --videos clips --out data/vggsound --list train.csv
    python -m videos.extract --videos clips --out data/vggss --list data/vggss/vggss.json

    --names clip    clips/<youtubeid>_000030.mp4            a cut clip, its second in six digits
    --names ms      clips/<youtubeid>_30000_40000.mp4       a cut clip, from and to in milliseconds
    --names whole   videos/<youtubeid>.mp4                  complete videos; --list has the seconds

Writes <out>/frames/<id>.jpg and <out>/audio/<id>.wav, <id> being <youtubeid>_<second in six
digits>. The frame is the one shown 5.0 s after the start (index 125 at 25 frames a second), found
by its time stamp. The sound is mono (by the rules of media.py), 16 kHz, 16 bits, and silent until
its first time stamp. A restart skips what is finished. Videos are mp4, webm, mkv, avi or mov; PyAV
decodes them.

Paper [86]: "the center frame of the video" (4.1). Here it is that of the 10 s clip, 5.0 s after its
start, which VGG-SS annotates: the video that the clip was cut from is longer.
"""

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path

import av
import numpy as np
import soundfile
import torch

from benchmarks.lists import read_boxes
from benchmarks.pairs import read_ids
from launch import between, run_script, some_path, write_file
from media import SAMPLE_RATE, SampleError, at_16_khz, check_file, mono
from miniature.world import in_parallel, usable_cores

SUFFIXES = ('.mp4', '.webm', '.mkv', '.avi', '.mov')
FRAME_AT = 5.0          # seconds after the start
SECONDS = 10.0
GAP = 0.05              # seconds from the samples so far to a time stamp; less is rounding
LACKING = 1.0           # seconds by which a complete file may be shorter than its header states


# ============ One video ============

def read_frame(path, at):
    """The picture shown `at` seconds after the beginning of a video, upright. -> PIL image, RGB"""
    shown = None
    with open_stream(path, 'video') as (container, stream, first):
        at += first
        if at > 2 * SECONDS:                # decode from a key frame before it, not from 0 s
            container.seek(int((at - SECONDS) * av.time_base))
        for frame in container.decode(stream):
            if time_of(frame) > at + 1e-3:
                break
            shown = frame
        else:                               # the last frame is shown for its duration
            if shown and time_of(shown) + (shown.duration or 0) * stream.time_base < at:
                shown = None
        if shown is None:
            raise SampleError(f'{path} shows nothing at {at:.1f} s, where its frame is: fetch it '
                              'again')
        return upright(shown)


def upright(frame):
    """The picture of a frame, turned as its display matrix says (phones film on their side)."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def read_sound(path, start, seconds):
    """The sound from `start` on, at most `seconds` long. -> (channels, samples) float32, its rate

    Silence stands where the time stamps leave a gap, as before a sound that begins late.
    """
    with open_stream(path, 'audio') as (container, stream, first):
        start += first
        if start > SECONDS:
            container.seek(int((start - 1) * av.time_base))
        rate = stream.rate
        wanted = round(seconds * rate)
        to_float = av.AudioResampler('fltp')            # of the same rate and channels
        parts = []
        filled = 0                                      # samples since `start`, gaps included
        decoded = 0                                     # the same without gaps
        latest = 0.0                                    # seconds, of any stream
        for packet in container.demux():
            if packet.pts is not None:
                end = packet.pts + (packet.duration or 0)
                latest = max(latest, float(end * packet.time_base))
            if packet.stream is not stream:
                continue
            for frame in packet.decode():
                begin = round((time_of(frame) - start) * rate)
                if filled and abs(begin - filled) <= GAP * rate:
                    begin = filled                      # no gap: the time stamp is rounded
                gap = min(max(0, begin - filled), wanted - filled)
                samples = np.concatenate([f.to_ndarray() for f in to_float.resample(frame)], 1)
                samples = samples[:, max(0, filled - begin):][:, :wanted - filled - gap]
                parts += [np.zeros((len(samples), gap), np.float32), samples]
                filled += gap + samples.shape[1]
                decoded += samples.shape[1]
            if filled == wanted:
                break
        else:
            stated = (container.duration or 0) / av.time_base
            if latest < stated - LACKING:
                raise SampleError(f'{path} is cut short: it states {stated:.1f} s and ends at '
                                  f'{latest:.1f}; fetch it again')
    if not decoded:
        raise SampleError(f'{path} has no sound in the {seconds:g} s from {start:g} s on: fetch it '
                          'again, or choose another')
    return np.concatenate(parts, 1), rate


@contextlib.contextmanager
def open_stream(path, kind):
    """Open the first 'video' or 'audio' stream of a file. Yields PyAV's container, stream, first.

    first: when the earliest stream begins, in seconds, from where times are counted. SampleError
    where there is no such file or stream, or where PyAV cannot decode.
    """
    check_file(path)
    try:
        with av.open(str(path)) as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise SampleError(f'{path} has no {kind} track: choose a video with picture and '
                                  'sound')
            yield container, streams[0], max(0.0, (container.start_time or 0) / av.time_base)
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        if isinstance(error, SampleError):
            raise
        reason = getattr(error, 'strerror', None) or error      # without "[Errno 1094995529]"
        raise SampleError(f'{path} cannot be decoded ({reason}): fetch it again') from None


def time_of(frame):
    """A frame's time stamp in seconds: when it is shown, or in AVI, without that, decoded."""
    return frame.time if frame.time is not None else float(frame.dts * frame.time_base)


def mono_16_khz(sound, rate, path):
    """(channels, samples) -> (samples,) float32 tensor: mono, 16 kHz, by the rules of media.py."""
    length = round(sound.shape[1] * SAMPLE_RATE / rate)
    return at_16_khz(mono(torch.from_numpy(sound), path)[None], rate, length)[0]


# ============ All videos ============

def extract_clip(job):
    """Write the frame and the sound of one clip. -> None, or why it cannot be read

    job: (id, its video, start in seconds, folder).
    """
    name, video, start, out = job
    frame = Path(out, 'frames', f'{name}.jpg')
    sound = Path(out, 'audio', f'{name}.wav')
    if frame.is_file() and sound.is_file():
        return None
    picture = io.BytesIO()
    wave = io.BytesIO()
    try:
        read_frame(video, start + FRAME_AT).save(picture, 'JPEG', quality=95)
        wav = mono_16_khz(*read_sound(video, start, SECONDS), video)
        soundfile.write(wave, wav.numpy(), SAMPLE_RATE, 'PCM_16', format='WAV')
    except SampleError as error:
        return str(error)
    for path, content in ((frame, picture), (sound, wave)):
        if not path.is_file():          # it may be of another source
            write_file(path, content.getvalue())
    return None


def ids_of(path):
    """The ids of a list: train.csv in any form of benchmarks/pairs.py, or vggss.json."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no list {path}: correct --list')
    if Path(path).suffix == '.json':
        return list(read_boxes(Path(path), 'file', 'bbox'))
    return read_ids(path)


def videos_in(folder, names):
    """{id, or with names 'whole' a YouTube id: its video}. ValueError: two videos of one id."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'there is no folder {folder}: correct --videos')
    videos = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = path.stem
        if names == 'ms':
            parts = re.fullmatch(r'(.+)_([0-9]{1,12})_[0-9]{1,12}', name)
            if not parts:
                raise ValueError(f'{path} is not named <youtubeid>_<from>_<to> in milliseconds: '
                                 'choose other --names')
            name = f'{parts[1]}_{int(parts[2]) // 1000:06d}'
        if name in videos:
            raise ValueError(f'{videos[name]} and {path} are both {name}: move one elsewhere')
        videos[name] = path
    if not videos:
        raise ValueError(f'{folder} holds no video ({", ".join(SUFFIXES)}): name the folder that '
                         'does by --videos')
    return videos


def locate(name, videos):
    """Find a clip by its id. -> its complete video, or None; the second at which it starts"""
    parts = re.fullmatch('(.+)_([0-9]{1,9})', name)
    if not parts:
        raise ValueError(f'the id {name:.60} is not <youtubeid>_<second>, as --names whole needs: '
                         'correct --list')
    return videos.get(parts[1]), int(parts[2])


def extract(folder, out, ids=None, names='clip', processes=1):
    """Extract the clips with these ids; None: all videos of the folder. names: see --names above.

    -> how many ids are complete, of how many, and why the others are not, {id: sentence}
    """
    videos = videos_in(folder, names)
    ids = list(videos) if ids is None else ids
    jobs = []
    failed = {}
    for name in ids:
        video, start = locate(name, videos) if names == 'whole' else (videos.get(name), 0)
        if video:
            jobs.append((name, video, start, out))
        else:
            failed[name] = f'{name} has no video in {folder}'
    for part in (Path(out, 'frames'), Path(out, 'audio')):
        for file in part.glob('*.partial[0-9]*'):       # left by write_file in a killed run
            file.unlink()
    reasons = in_parallel(extract_clip, jobs, 'extracting', processes)
    failed |= {name: reason for (name, *_), reason in zip(jobs, reasons) if reason}
    return len(ids) - len(failed), len(ids), failed


def main(argv=None):
    parser = argparse.ArgumentParser('python -m videos.extract', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--videos', type=some_path, required=True, help='folder of videos')
    add('--out', type=some_path, required=True, help='folder for frames/ and audio/')
    add('--list', type=some_path, help='ids: train.csv or vggss.json (default: all videos)')
    add('--names', choices=['clip', 'ms', 'whole'], default='clip', help='how videos are named, '
        'see above (default: clip)')
    add('--processes', type=between(int, 1), default=usable_cores(), help='default: one per core, '
        'up to 8')
    add('--skip-bad-samples', action='store_true', help='exit code 0 although some are missing')
    args = parser.parse_args(argv)
    if args.names == 'whole' and not args.list:
        parser.error('--names whole needs --list, which says at which second to cut')
    ids = ids_of(args.list) if args.list else None
    there, total, failed = extract(args.videos, args.out, ids, args.names, args.processes)
    for reason in failed.values():
        print(reason, file=sys.stderr)
    print(f'{args.out}: {there} of {total} are there')
    return 1 if failed and not args.skip_bad_samples else 0


if __name__ == '__main__':
    # worker processes find functions by module: in videos.extract, not in __main__
    from videos import extract as script
    run_script('videos.extract', script.main, 'interrupted; the same command goes on')
