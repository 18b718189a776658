"""Backbones and data of toy size, with which a whole training takes a fraction of a second: for tests of what reaches what.

Pair n of the data names itself: its frame is 10 * n in blue, and its sound begins with (n + 1) / 64.
"""

import dataclasses
import functools
import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

import answers
import checkpoints
import model as model_file
import train
from beats import BEATs, BEATsConfig

SIZE, SECONDS = 32, 0.5         # of the model's frames and sounds
LARGE = 35                      # int(1.1 * SIZE): a frame of this size is not resized before it is cropped
TRAIN, VAL = 12, 5              # pairs
MEAN = (0.48145466, 0.4578275, 0.40821073)          # CLIP's own, from OpenAI's repository
STD = (0.26862954, 0.26130258, 0.27577711)


def name(n):
    return f'pair_{n:06d}'


def number(sample):
    return int(sample[5:])


def colours(image):
    """(3, H, W) normalised by CLIP's mean and deviation -> (3, H, W) of 0..255."""
    return (image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def pair_of_image(image):
    return round(float(colours(image)[2].mean()) / 10)


def pair_of_sound(wav):
    return round(float(wav[0]) * 64) - 1


def write_root(root):
    """Pairs 0 to 11 for training and 12 to 16 for validation. Red grows by 7 a column, green by 7 a row."""
    folder = root / 'vggsound'
    for kind in ('frames', 'audio'):
        (folder / kind).mkdir(parents=True)
    rows, columns = np.mgrid[:LARGE, :LARGE]
    for n in range(TRAIN + VAL):
        frame = np.stack([7 * columns, 7 * rows, np.full_like(rows, 10 * n)], -1).astype(np.uint8)
        Image.fromarray(frame).save(folder / f'frames/{name(n)}.jpg', 'PNG')        # what it holds decides, without loss
        # even pairs are twice too long and loud at their end, odd ones are half as long as they should be
        sound = np.random.default_rng(n).integers(-3000, 3000, 16_000 if n % 2 == 0 else 4000).astype(np.int16)
        sound[0] = 512 * (n + 1)
        sound[8000:] = 30_000
        soundfile.write(folder / f'audio/{name(n)}.wav', sound, 16_000, subtype='PCM_16')
    (folder / 'train.csv').write_text(''.join(f'{name(n)}\n' for n in range(TRAIN)))
    (folder / 'val.csv').write_text(''.join(f'{name(n)}\n' for n in range(TRAIN, TRAIN + VAL)))
    return root


def write_captions(path, object_of):
    """A captions file in which pair n's answer is object_of(n)."""
    lines = [{'id': name(n), 'image_caption': 'x', 'audio_caption': 'y', 'object': object_of(n), 'models': {}, 'error': None}
             for n in range(TRAIN)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


@functools.cache
def tiny_clipseg():
    """CLIPSeg of the miniature's vocabulary and random weights, and the tokenizer."""
    folder = model_file.PRESETS['miniature'].clipseg
    torch.manual_seed(1)
    text = {**CLIPSegConfig.from_pretrained(folder).text_config.to_dict(), 'hidden_size': 32, 'intermediate_size': 32,
            'num_hidden_layers': 1, 'num_attention_heads': 2}
    vision = {'hidden_size': 32, 'intermediate_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2,
              'image_size': SIZE, 'patch_size': 8}
    clipseg = CLIPSegForImageSegmentation(CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, reduce_dim=8, extract_layers=[0], conditional_layer=0,
        decoder_num_attention_heads=2, decoder_intermediate_size=16))
    with torch.no_grad():
        for parameter in clipseg.decoder.parameters():      # transformers begins with very large ones
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return clipseg.requires_grad_(False).eval(), model_file.AutoTokenizer.from_pretrained(folder)


@functools.cache
def tiny_beats():
    torch.manual_seed(2)
    return BEATs(BEATsConfig(encoder_layers=3, encoder_embed_dim=16, encoder_ffn_embed_dim=16, encoder_attention_heads=2,
                             embed_dim=8, conv_pos=8, conv_pos_groups=2)).requires_grad_(False).eval()


@pytest.fixture(scope='session')
def tiny_root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp('tiny'))


@pytest.fixture
def tiny(monkeypatch):
    """The miniature preset at toy size. -> lists of the names under which its backbones are asked for"""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                                # for so small tensors a second one only costs time
    asked = SimpleNamespace(clipseg=[], beats=[])
    monkeypatch.setattr(model_file, 'load_clipseg', lambda path: asked.clipseg.append(path) or tiny_clipseg())
    monkeypatch.setattr(model_file, 'load_beats', lambda path: asked.beats.append(path) or tiny_beats())
    small = dataclasses.replace(model_file.PRESETS['miniature'], image_size=SIZE, seconds=SECONDS)
    monkeypatch.setitem(model_file.PRESETS, 'miniature', small)
    yield asked
    torch.set_num_threads(threads)


def watch(monkeypatch, owner, name, note):
    """After each call of owner.name, note(result, *arguments, **options)."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*arguments, **options):
        result = original(*arguments, **options)
        note(result, *arguments, **options)
        return result

    monkeypatch.setattr(owner, name, watched)


@pytest.fixture
def training(tmp_path, monkeypatch, tiny, tiny_root):
    """training(*flags): train.py in this process, one step of 4 pairs unless flags say more. -> what its parts were given

    forwards: of training, {argument: value, 'out': Alignment, 'random': the generator's state before}
    validations: the same, of validation; terms: what loss_terms gave; answers: its C, rows and gather; weights: {term: gradient of the loss by it}
    steps: {'lr', 'before', 'gradient', 'after'}, by parameter; optimisers: Adam's arguments; loaded: models; tiny's lists
    held_out, sheets, curves: arguments of held_out, before_after_sheet and loss_curve; log, saved, summary: the files.
    """
    forward = inspect.signature(model_file.SoundLocalizer.forward)

    def run(*flags, folder='run', root=tiny_root, hook=None):
        seen = SimpleNamespace(forwards=[], validations=[], terms=[], answers=[], weights=[], steps=[], optimisers=[], loaded=[],
                               held_out=[], sheets=[], curves=[], backbones=tiny)
        with monkeypatch.context() as patch:
            def note_forward(out, *arguments, **options):
                given = forward.bind(*arguments, **options)
                given.apply_defaults()
                one = {**given.arguments, 'out': out, 'random': states.pop()}
                (seen.forwards if torch.is_grad_enabled() else seen.validations).append(one)
                if hook:
                    hook(seen, one)

            def note_terms(terms, out, args, *arguments, **options):
                if torch.is_grad_enabled():
                    seen.terms.append(terms)
                    seen.answers.append(arguments)
                    seen.weights.append({})
                    for key, term in terms.items():
                        if term.requires_grad:
                            term.register_hook(functools.partial(seen.weights[-1].__setitem__, key))

            step = torch.optim.Adam.step

            def note_step(self, closure=None):
                parameters = {key: p for key, p in seen.loaded[0].named_parameters() if p.grad is not None}
                copy = lambda: {key: p.detach().clone() for key, p in parameters.items()}
                before, gradient = copy(), {key: p.grad.clone() for key, p in parameters.items()}
                result = step(self, closure)
                seen.steps.append({'lr': self.param_groups[0]['lr'], 'before': before, 'gradient': gradient,
                                   'after': copy()})
                return result

            def held_out(*arguments):
                seen.held_out.append((*arguments, arguments[0].training))
                k = float(len(seen.held_out))
                score = lambda column: {'cIoU': column + k, 'mIoU': None, 'area_noise': k / 10}
                return {'ours': score(10), 'oracle': score(20), 'ceiling': score(30)}, {'boxes': 7}

            def before_forward(self, *arguments, **options):
                states.append(torch.get_rng_state())
                return plain(self, *arguments, **options)

            states, plain = [], model_file.SoundLocalizer.forward
            patch.setattr(model_file.SoundLocalizer, 'forward', functools.wraps(plain)(before_forward))
            watch(patch, model_file.SoundLocalizer, 'forward', note_forward)
            watch(patch, train, 'loss_terms', note_terms)
            watch(patch, train, 'load_model', lambda loaded, *a, **k: seen.loaded.append(loaded[0]))
            watch(patch, torch.optim.Adam, '__init__', lambda _, self, parameters, *a, **k: seen.optimisers.append(self))
            patch.setattr(torch.optim.Adam, 'step', note_step)
            patch.setattr(train, 'held_out', held_out)
            patch.setattr(train, 'before_after_sheet', lambda *a: seen.sheets.append(a))
            patch.setattr(train.figures, 'loss_curve', lambda *a: seen.curves.append(a))
            patch.setattr(checkpoints, 'LOG_EVERY', 1)
            args = train.parse_args(['--data-root', str(root), '--out', str(tmp_path / folder), '--batch-size', '4',
                                     *([] if '--epochs' in flags else ['--steps', '1']), *flags])
            train.train(args)
        seen.args = args
        if (args.out / 'summary.json').exists():            # not of a second process
            seen.log = [json.loads(line) for line in (args.out / 'log.jsonl').read_text().splitlines()]
            seen.saved = torch.load(args.out / 'last.pt', weights_only=True)
            seen.summary = json.loads((args.out / 'summary.json').read_text())
        return seen

    return run
