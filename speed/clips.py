"""How many videos `python -m videos.extract` turns into frames and sounds in a second (4.1)."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

from speed.costs import seconds_of
from videos.drawn import draw_clip
from videos.extract import extract


def measure_clips(count=64):
    """Copies of a drawn clip (8 s, 384 x 384, 25 frames a second), by 1 and by 2 processes. -> dict

    A second run, over finished files, takes as long as the processes need to start. That time is
    subtracted: it does not grow with the number of videos.
    """
    spent = {}
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder, 'clips')
        clips.mkdir()
        draw_clip(clips / '0.mp4')
        for k in range(1, count):
            shutil.copy(clips / '0.mp4', clips / f'{k}.mp4')
        for processes in (1, 2):
            for run in ('first', 'second'):
                work = partial(extract, clips, Path(folder, f'by{processes}'), processes=processes)
                spent[run, processes], _ = seconds_of(work)
    one, two = (count / (spent['first', n] - spent['second', n]) for n in (1, 2))
    return {'videos': count, 'videos/s, 1 process': one, 'videos/s, 2 processes': two,
            'ratio': two / one, 'seconds to start 2': spent['second', 2]}
