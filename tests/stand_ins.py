"""Stand-ins for the three captioners, and seven pairs that they can tell apart."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import captions

NAMES = [f'{letter}_00000{k}' for k, letter in enumerate('hbfacgd')]    # not in alphabetical order
ANSWERS = ['dog', '"Siren".', 'I cannot tell', '...', 'the drum', 'cat', 'Unknown']     # of pair k
OBJECTS = ['dog', 'siren', '', '', 'drum', 'cat', '']


def write_pairs(root, names, size, samples, first=0):
    """A data root. Pair k, counted from `first`: a frame of grey 20 k, a sound of level k / 16."""
    folder = root / 'vggsound'
    for kind in ('frames', 'audio'):
        (folder / kind).mkdir(parents=True)
    for k, name in enumerate(names, first):
        Image.new('RGB', size, (20 * k,) * 3).save(folder / f'frames/{name}.jpg')
        level = np.full(samples, k / 16, np.float32)
        soundfile.write(folder / f'audio/{name}.wav', level, 16_000, subtype='FLOAT')
    (folder / 'train.csv').write_text(''.join(f'{name},label\n' for name in names))
    return root


@pytest.fixture
def root(tmp_path):
    return write_pairs(tmp_path / 'data', NAMES, (16, 16), 170_000)


@pytest.fixture
def calls(monkeypatch):
    """What the stand-ins were given, a list under 'load', 'check' and the name of each stage."""
    seen = {name: [] for name in ('load', 'image', 'audio', 'object', 'check')}

    def load_captioner(stage, name, dtype, device):
        seen['load'].append((stage, name, dtype, device))
        return f'model {name}', SimpleNamespace(name=name)

    def speak(stage, numbers_of, say):
        def describe(model, processor, inputs, max_new_tokens):
            numbers = [numbers_of(x) for x in inputs]
            seen[stage].append({'model': model, 'processor': processor.name, 'pairs': numbers,
                                'inputs': inputs, 'tokens': max_new_tokens})
            return [say(k) for k in numbers]
        monkeypatch.setitem(captions.STAGES, stage,
                            replace(captions.STAGES[stage], describe=describe))

    def model_revision(stage, name):
        seen['check'].append(name)
        return f'{name}@revision'
    monkeypatch.setattr(captions, 'load_captioner', load_captioner)
    monkeypatch.setattr(captions, 'model_revision', model_revision)
    speak('image', lambda image: round(np.asarray(image).mean() / 20), 'frame {}'.format)
    speak('audio', lambda wav: round(16 * wav.mean().item()), 'sound {}'.format)
    speak('object', lambda prompt: int(prompt.split()[-1]), lambda k: ANSWERS[k])
    return seen


def run(root, stage, *options, out='out/captions.jsonl'):
    args = captions.parse_args([stage, '--data-root', str(root), '--out', str(root.parent / out),
                                '--device', 'cpu', *map(str, options)])
    return captions.caption_pairs(args, torch.device('cpu'))


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def settings_of(folder):
    return json.loads((folder / 'settings.json').read_text(encoding='utf-8'))


def contents(folder):
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def pairs_of(calls, stage):
    return [call['pairs'] for call in calls[stage]]
