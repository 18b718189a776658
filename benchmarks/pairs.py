"""VGGSound's list of pairs, train.csv or val.csv, in the forms in which people have it (4.1)."""

import re
from pathlib import Path

from benchmarks.lists import csv_lines, unique
from launch import rank_and_processes

FRAMES = ('.jpg', '.bmp')       # of training frames; .bmp is what `data.py prepare` writes
# a line of train.csv or val.csv
FORMS = ('"<youtubeid>_<start second in six digits>", alone, with ".mp4" or with ",label", or '
         '"youtubeid,second,label,split", or "youtubeid,second"')
HEADINGS = ('id', 'file', 'video', 'videoid', 'youtubeid', 'ytid')     # of the first column


def read_list(path):
    """Read a list of pairs, each line in one of FORMS. -> {id: split, or None without one}

    VGGSound's authors have published those with ".mp4" and with a split. Labels are not used.
    """
    path = Path(path)
    listed = []
    remedy = 'write that line again'
    for number, fields in csv_lines(path, remedy):
        name = re.sub('[ _-]', '', fields[0].lower())
        if not listed and (name in HEADINGS or fields[0].startswith('#')):
            continue
        if not fields[0]:
            raise ValueError(f'{path}, line {number} names no id: {remedy}')
        # A YouTube id has 11 characters; an id that has its second already is followed by a label
        is_bare = re.fullmatch(r'(?!.*_\d{6}$)[\w-]{11}', fields[0], re.ASCII)
        has_second = len(fields) == 4 or (len(fields) == 2 and is_bare)
        if has_second and re.fullmatch(r'\d{1,9}(\.0*)?', fields[1], re.ASCII):
            split = fields[3].lower() if len(fields) == 4 else None
            listed.append((f'{fields[0]}_{int(float(fields[1])):06d}', split))
        else:
            listed.append((re.sub(r'\.(mp4|mkv|webm|wav|flac|jpe?g|png)$', '', fields[0]), None))
    if not listed:
        raise ValueError(f'{path} lists no sample: write one id per line')
    return unique(listed, path)


def read_ids(path, training=False):
    """The ids of a list. training: without those of another split, whose number is printed.

    ValueError if none is left.
    """
    listed = read_list(path)
    ids = [i for i in listed if not training or listed[i] in (None, 'train')]
    if not ids:
        raise ValueError(f'{path} has no line of the split "train": take VGGSound\'s own list, or '
                         'one without a split')
    if len(ids) < len(listed) and rank_and_processes()[0] == 0:
        print(f'{path}: left out {len(listed) - len(ids)} lines of other splits than "train"')
    return ids
