"""Backbones and data of toy size, with which a whole training takes a fraction of a second.

For tests of the wiring: what of an option, a file or a draw reaches which part. Pair n of the data
names itself: its frame is 10 * n in blue, and its sound begins with (n + 1) / 64.
"""

import copy
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
from transformers import AutoTokenizer, CLIPSegConfig, CLIPSegForImageSegmentation

import checkpoint
import losses
import model as model_file
import train
from beats import BEATs, BEATsConfig

SIZE, SECONDS = 32, 0.5         # of the model's frames and sounds
LARGE = 35                      # int(1.1 * SIZE): a frame of this size is cropped as it is
TRAIN, VAL = 12, 5              # pairs
MEAN = (0.48145466, 0.4578275, 0.40821073)          # CLIP's own, from OpenAI's repository
STD = (0.26862954, 0.26130258, 0.27577711)


# ---- data

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
    """Pairs 0 to 11 for training and 12 to 16 for validation."""
    folder = root / 'vggsound'
    (folder / 'frames').mkdir(parents=True)
    (folder / 'audio').mkdir()
    rows, columns = np.mgrid[:LARGE, :LARGE]
    for n in range(TRAIN + VAL):
        # red grows by 7 a column and green by 7 a row, so that a crop shows where it was taken
        frame = np.stack([7 * columns, 7 * rows, np.full_like(rows, 10 * n)], -1).astype(np.uint8)
        Image.fromarray(frame).save(folder / f'frames/{name(n)}.jpg', 'PNG')    # without loss
        # even pairs last a second and are loud at their end, odd ones last a quarter
        length = 16_000 if n % 2 == 0 else 4000
        sound = np.random.default_rng(n).integers(-3000, 3000, length).astype(np.int16)
        sound[0] = 512 * (n + 1)
        sound[8000:] = 30_000
        soundfile.write(folder / f'audio/{name(n)}.wav', sound, 16_000, subtype='PCM_16')
    (folder / 'train.csv').write_text(''.join(f'{name(n)}\n' for n in range(TRAIN)))
    (folder / 'val.csv').write_text(''.join(f'{name(n)}\n' for n in range(TRAIN, TRAIN + VAL)))
    return root


def write_captions(path, object_of):
    """A captions file in which pair n's answer is object_of(n)."""
    rest = {'image_caption': 'x', 'audio_caption': 'y', 'models': {}, 'error': None}
    lines = [json.dumps({'id': name(n), 'object': object_of(n), **rest}) for n in range(TRAIN)]
    path.write_text('\n'.join(lines) + '\n')
    return path


@pytest.fixture(scope='session')
def tiny_root(tmp_path_factory):
    return write_root(tmp_path_factory.mktemp('tiny'))


# ---- backbones

@functools.cache
def tiny_clipseg():
    """CLIPSeg of random weights with the miniature's vocabulary, and the tokenizer."""
    folder = model_file.PRESETS['miniature'].clipseg
    size = {'hidden_size': 32, 'intermediate_size': 32, 'num_attention_heads': 2}
    text = CLIPSegConfig.from_pretrained(folder).text_config.to_dict()
    torch.manual_seed(1)
    clipseg = CLIPSegForImageSegmentation(CLIPSegConfig(
        text_config={**text, **size, 'num_hidden_layers': 1},
        vision_config={**size, 'num_hidden_layers': 2, 'image_size': SIZE, 'patch_size': 8},
        projection_dim=16, reduce_dim=8, extract_layers=[0], conditional_layer=0,
        decoder_num_attention_heads=2, decoder_intermediate_size=16))
    with torch.no_grad():
        for parameter in clipseg.decoder.parameters():      # transformers begins with huge ones
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return clipseg.requires_grad_(False).eval(), AutoTokenizer.from_pretrained(folder)


@functools.cache
def tiny_beats():
    torch.manual_seed(2)
    config = BEATsConfig(encoder_layers=3, encoder_embed_dim=16, encoder_ffn_embed_dim=16,
                         encoder_attention_heads=2, embed_dim=8, conv_pos=8, conv_pos_groups=2)
    return BEATs(config).requires_grad_(False).eval()


def shrink(patch):
    """The miniature preset at toy size. -> the paths under which its backbones are asked for"""
    asked = SimpleNamespace(clipseg=[], beats=[])

    def load_clipseg(path):
        asked.clipseg.append(path)
        clipseg, tokenizer = tiny_clipseg()
        return copy.deepcopy(clipseg), tokenizer            # --precision bf16 rounds it in place

    def load_beats(path):
        asked.beats.append(path)
        return copy.deepcopy(tiny_beats())

    tiny_clipseg(), tiny_beats()            # made now, as they seed torch
    small = dataclasses.replace(model_file.PRESETS['miniature'], image_size=SIZE, seconds=SECONDS)
    patch.setattr(model_file, 'load_clipseg', load_clipseg)
    patch.setattr(model_file, 'load_beats', load_beats)
    patch.setitem(model_file.PRESETS, 'miniature', small)
    return asked


@pytest.fixture
def tiny(monkeypatch):
    """shrink, on one thread of the CPU."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)      # values are the CPU's
    threads = torch.get_num_threads()
    torch.set_num_threads(1)            # tensors so small only wait for a second thread
    yield shrink(monkeypatch)
    torch.set_num_threads(threads)


# ---- a training, watched

def watch(monkeypatch, owner, name, note):
    """After each call of owner.name, note(result, *arguments, **options)."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*arguments, **options):
        result = original(*arguments, **options)
        note(result, *arguments, **options)
        return result

    monkeypatch.setattr(owner, name, watched)


class Seen:
    """What the parts of one training were given.

    forwards: one dict per forward pass of a training step, {argument: value}, 'out' (the
    Alignment) and 'random' (the generator's state before it); validations: the same without
    gradients. terms: the loss terms of each such pass in training; answers: (C, rows) of L_ACL_C;
    weights: {term: gradient of the loss by it}. steps: dicts of 'lr' and, by parameter, 'before',
    'gradient' and 'after'. optimisers, loaded (models), saves (steps); held_out, sheets, curves:
    arguments of held_out, before_after_sheet and loss_curve; backbones: as `tiny`. args, code, log,
    saved, summary: of the finished run.
    """

    def __init__(self, backbones):
        self.backbones = backbones
        for kind in ('forwards', 'validations', 'terms', 'answers', 'weights', 'steps',
                     'optimisers', 'loaded', 'saves', 'held_out', 'sheets', 'curves'):
            setattr(self, kind, [])

    def watch(self, patch, hook):
        """hook(self, forward) is called after each forward pass."""
        def note_save(_, run, content):
            self.saves.append(content['trainer']['step'])

        def note_run(_, run, *arguments):
            self.run = run

        self.watch_forward(patch, hook)
        self.watch_optimiser(patch)
        watch(patch, losses, 'loss_terms', self.note_terms)
        watch(patch, losses, 'acl_c_of_answered', self.note_answers)
        watch(patch, train, 'load_model', lambda result, *a, **k: self.loaded.append(result[0]))
        watch(patch, checkpoint.Run, '__init__', note_run)
        watch(patch, checkpoint.Run, 'save', note_save)
        patch.setattr(train, 'held_out', self.fake_held_out)
        patch.setattr(train, 'before_after_sheet', lambda *a: self.sheets.append(a))
        patch.setattr(train.curves, 'loss_curve', lambda *a: self.curves.append(a))
        patch.setattr(checkpoint, 'LOG_EVERY', 1)

    def watch_forward(self, patch, hook):
        original = model_file.SoundLocalizer.forward
        signature = inspect.signature(original)

        @functools.wraps(original)
        def forward(*arguments, **options):
            given = signature.bind(*arguments, **options)
            given.apply_defaults()
            random = torch.get_rng_state()
            out = original(*arguments, **options)
            one = {**given.arguments, 'out': out, 'random': random}
            (self.forwards if torch.is_grad_enabled() else self.validations).append(one)
            if hook:
                hook(self, one)
            return out

        patch.setattr(model_file.SoundLocalizer, 'forward', forward)

    def note_terms(self, terms, out, *settings):
        if torch.is_grad_enabled():
            self.terms.append(terms)            # the dict to which the loop adds L_ACL_C
            self.weights.append({})
            for key, term in terms.items():
                self.note_weight(key, term)

    def note_answers(self, term, C, rows, *settings):
        self.answers.append((C, rows))
        self.note_weight('acl_c', term)

    def note_weight(self, key, term):
        term.register_hook(functools.partial(self.weights[-1].__setitem__, key))

    def watch_optimiser(self, patch):
        original = torch.optim.Adam.step

        def step(optimiser, closure=None):
            trained = {k: p for k, p in self.loaded[0].named_parameters() if p.grad is not None}
            one = {'lr': optimiser.param_groups[0]['lr'],
                   'before': {key: p.detach().clone() for key, p in trained.items()},
                   'gradient': {key: p.grad.clone() for key, p in trained.items()}}
            original(optimiser, closure)
            self.steps.append({**one, 'after': {k: p.detach().clone() for k, p in trained.items()}})

        patch.setattr(torch.optim.Adam, 'step', step)
        watch(patch, torch.optim.Adam, '__init__',
              lambda _, optimiser, *a, **k: self.optimisers.append(optimiser))

    def fake_held_out(self, model, *more, rows=None):
        self.held_out.append((model, *more, model.training))
        k = float(len(self.held_out))                       # 1 before the training, 2 after it
        scores = {who: {'cIoU': base + k, 'mIoU': None, 'area_noise': k / 10}
                  for who, base in (('ours', 10), ('oracle', 20), ('ceiling', 30))}
        return scores, {'boxes': 7}


@pytest.fixture
def training(tmp_path, monkeypatch, tiny, tiny_root):
    """training(*flags): train.py in this process, one step of 4 pairs unless flags say more."""
    def run(*flags, folder='run', root=tiny_root, hook=None):
        seen = Seen(tiny)
        length = [] if '--epochs' in flags else ['--steps', '1']
        where = ['--data-root', str(root)] if root else []
        seen.args = train.parse_args(['--out', str(tmp_path / folder), '--batch-size', '4',
                                      '--device', 'cpu', *where, *length, *flags])
        with monkeypatch.context() as patch:
            seen.watch(patch, hook)
            try:
                seen.code = train.train(seen.args)
            finally:
                if hasattr(seen, 'run') and hasattr(seen.run, 'lock'):
                    seen.run.lock.release()     # the end of a process would
        out = seen.args.out
        if (out / 'summary.json').exists():                 # not of a second process
            lines = (out / 'log.jsonl').read_text(encoding='utf-8').splitlines()
            seen.log = [json.loads(line) for line in lines]
            seen.saved = torch.load(out / 'last.pt', weights_only=True)
            seen.summary = json.loads((out / 'summary.json').read_text(encoding='utf-8'))
        return seen

    return run
