"""Files that a killed run leaves whole, and how captions.py works through 200,000 pairs with them (section 3.6).

A stage's file begins with a line {"settings": ...}; a line per pair follows, in the list's order. Work goes by whole
batches of the list, ids[k B : (k + 1) B], whoever does them and however often the run was killed, so neither a restart
nor the number of processes changes what a model is given at once. Under torchrun each process appends to a part of its
own, <file>.part<rank>, and the first one brings them together.
"""

import argparse
import codecs
import contextlib
import hashlib
import json
import os
from pathlib import Path

import torch.distributed as dist
from tqdm import tqdm

from benchmarks.lists import csv_lines, utf8_text
from processes import rank_and_processes

GO_ON = 'free some space; the same command then goes on from the last finished batch'


def file_hash(paths):
    """Twelve hexadecimal digits that change with the names or the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, 'rb') as file:
            for block in iter(lambda: file.read(1 << 24), b''):
                digest.update(block)
    return digest.hexdigest()[:12]


def json_lines(path):
    """The JSON objects of a file and what follows its last newline. ValueError names a line."""
    *lines, rest = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b'\n')
    numbered = enumerate(lines, 1)
    return [json_object(path, k, line) for k, line in numbered if line.strip()], rest.strip()


def json_object(path, number, line):
    """The dict in one line of a file, given as bytes. ValueError names the line."""
    try:
        found = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError:
        raise ValueError(f'{path}: line {number} is not UTF-8: restore the file or '
                         'delete it') from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f'{path}: line {number} is not a JSON object: restore the file or '
                         'delete it')
    return found


def whole_lines(path, remedy):
    """json_lines of a finished file, whose last newline may be missing. ValueError if truncated."""
    lines, rest = json_lines(path)
    if rest:
        try:
            lines.append(json_object(path, len(lines) + 1, rest))
        except ValueError:
            raise ValueError(f'{path} ends in the middle of a line: {remedy}') from None
    return lines


def refuse_missing(path, have, ids):
    """ValueError when some of the ids are not in `have`, or none is: then the file is another dataset's."""
    missing = [i for i in ids if i not in have]
    if len(missing) == len(ids):
        raise ValueError(f'{path} is of another dataset: it has none of the {len(ids)} pairs, the first being {ids[0]}')
    if missing:
        raise ValueError(f'{path} lacks {len(missing)} of the {len(ids)} pairs, the first {missing[0]}: caption them too')


def read_audio_captions(path, ids):
    """Audio captions made elsewhere, lines {"id", "audio_caption"} or csv rows id,audio_caption. -> {id: caption}"""
    if not path.is_file():
        raise FileNotFoundError(f'no file of audio captions at {path}: correct --audio-captions')
    if path.suffix == '.csv':
        remedy = 'write each caption on one line, in quotes if it holds commas'
        rows = csv_lines(path, utf8_text(path, 'write it again'), remedy)
        if odd := [row for row in rows if len(row[1]) != 2]:
            number, fields = odd[0]
            raise ValueError(f'{path}, line {number}: {",".join(fields)[:80]!r} has {len(fields)} '
                             f'fields, not 2: {remedy}')
        rows = [{'id': name, 'audio_caption': caption} for _, (name, caption) in rows
                if name != 'id']                            # without the heading
    else:
        rows = whole_lines(path, 'write it again')
    captions = {}
    for row in rows:
        if not all(isinstance(row.get(k), str) and row[k].strip() for k in ('id', 'audio_caption')):
            raise ValueError(f'{path}: the entry {str(row)[:80]} needs an id and an audio_caption, both texts')
        if row['id'] in captions:
            raise ValueError(f'{path} names the pair {row["id"]} twice: keep one of its captions')
        captions[row['id']] = ' '.join(row['audio_caption'].split())
    refuse_missing(path, captions, ids)
    return captions


def as_bytes(line):
    """One line of a file, UTF-8."""
    return json.dumps(line, ensure_ascii=False).encode('utf-8', 'replace') + b'\n'


@contextlib.contextmanager
def synced(file):
    """Wait until the disk has what is written to an open file within. OSError, one sentence."""
    try:
        yield
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f'cannot write {file.name} ({error.strerror}): {GO_ON}') from None


def append(file, content):
    """Write to an open file and wait until the disk has it. OSError as synced."""
    with synced(file):
        file.write(content)


def write_whole(path, content, mend='free some space or name another place'):
    """Write a file, text or bytes, whole and to the disk, or leave what was there. OSError names the file and the mend."""
    target = Path(os.path.realpath(path))           # renaming would replace a link, not its file
    partial = target.with_name(f'{target.name}.partial')
    if target.exists() and not target.is_file():
        raise OSError(f'cannot write {path}: it is no file; name another place')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f'cannot write {path} ({error.strerror or error}): {mend}') from None


def some_path(text):
    """argparse's type of a path: an empty one, as an unset shell variable gives, is an error."""
    if not text.strip():
        raise argparse.ArgumentTypeError('the path is empty: name one, or leave the option out')
    return text


def given_options(parser, argv):
    """The options on the command line, not the defaults. -> {'batch_size': '--batch-size', ...}"""
    without_defaults = dict.fromkeys(vars(parser.parse_args(argv)))
    parsed = parser.parse_args(argv, argparse.Namespace(**without_defaults))
    given = [name for name, value in vars(parsed).items() if value is not None]
    return {name: '--' + name.replace('_', '-') for name in given}


def overwritten(outputs, inputs):
    """The sentence for an output that is an input, lies in an input folder, or is another output.

    outputs, inputs: [(option, path or None)]; links are followed. None where nothing is lost.
    """
    real = lambda named: [(what, os.path.realpath(path)) for what, path in named if path]
    taken = real(inputs)
    for option, path in real(outputs):
        for other, place in taken:
            both = os.path.exists(path) and os.path.exists(place)
            same = os.path.samefile(path, place) if both else path == place   # by a hard link too
            if same or path.startswith(os.path.join(place, '')):
                return f'{option} would overwrite {other}, {place}: name another file'
        taken.append((option, path))
    return None


def parts_of(path):
    """The files of single processes that belong to a stage's file."""
    return sorted(path.parent.glob(f'{path.name}.part[0-9]*'))


def gather(path, settings, batches, keep):
    """Bring a stage's file and the parts of its processes into one, in the list's order. -> indices of finished batches

    A batch is finished when each of its pairs has a line for which keep(line) holds; a torn last line, or a batch cut off
    half way, goes. ValueError when the file was begun with other settings or holds other pairs.
    """
    found, ids = {}, {i for batch in batches for i in batch}
    for file in [path, *parts_of(path)]:
        lines = json_lines(file)[0] if file.exists() else []
        if file == path and lines:
            before = lines.pop(0).get('settings')
            if not isinstance(before, dict):
                raise ValueError(f'{path} was not begun by captions.py: choose another --out')
            for name, now in settings.items():
                if before.get(name) != now:
                    shown = [f'{str(value)[:60]!r}' for value in (before.get(name), now)]
                    raise ValueError(f'{path} was begun with {name} {shown[0]}, not {shown[1]}: rerun with the same '
                                     'settings, choose an --out in another folder, or start over with --overwrite')
        for line in lines:
            if line.get('id') not in ids:
                raise ValueError(f'{file} holds the pair {line.get("id")!r}, which is not in the list: it is of another '
                                 'dataset; choose an --out in another folder')
            found.setdefault(line['id'], line)
    finished = [k for k, batch in enumerate(batches) if all(i in found and keep(found[i]) for i in batch)]
    content = as_bytes({'settings': settings}) + b''.join(as_bytes(found[i]) for k in finished for i in batches[k])
    if not path.exists() or path.read_bytes() != content:
        write_whole(path, content, GO_ON)
    for part in parts_of(path):
        part.unlink()
    return finished


def fill(path, settings, ids, load, keep, label):
    """Work off the batches that a stage's file lacks. load() -> function from a batch of ids to its lines.

    settings: what must be the same for a file to be continued, with 'batch_size'. Every process appends its batches to a
    part of its own (one process alone: to the file), and the first one gathers them. -> the lines, in the list's order
    """
    rank, processes = rank_and_processes()
    batches = [ids[k:k + settings['batch_size']] for k in range(0, len(ids), settings['batch_size'])]
    finished = [gather(path, settings, batches, keep) if rank == 0 else None]
    if processes > 1:
        dist.broadcast_object_list(finished)
    todo = sorted(set(range(len(batches))) - set(finished[0]))[rank::processes]
    if todo:
        work, share = load(), sum(len(batches[k]) for k in todo)
        before = len(ids) // processes - share if processes > 1 else len(ids) - share
        with open(path if processes == 1 else path.with_name(f'{path.name}.part{rank}'), 'ab') as file, \
                tqdm(total=before + share, initial=before, desc=label, unit=' pairs', unit_scale=processes > 1 and processes,
                     disable=rank > 0, dynamic_ncols=True) as bar:
            for k in todo:
                append(file, b''.join(map(as_bytes, work(batches[k]))))
                bar.update(len(batches[k]))
    if processes > 1:
        dist.barrier()
    if rank == 0:
        gather(path, settings, batches, lambda line: True)
    if processes > 1:
        dist.barrier()
    return json_lines(path)[0][1:]
