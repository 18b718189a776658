"""The language model's answers beside their embeddings, and what a model is made of."""

import json
from types import SimpleNamespace

import pytest
import torch

import answers
import model
from model import load_clipseg


class Text(torch.nn.Module):
    """In CLIP's place: a text's embedding is the number in it and its length."""

    def __init__(self):
        super().__init__()
        self.clipseg = torch.nn.Module()
        self.clipseg.clip = torch.nn.Module()
        self.clipseg.clip.text_model = torch.nn.Linear(1, 1)
        self.clipseg.clip.vision_model = torch.nn.Linear(1, 1)
        self.asked = []

    def embed_text(self, tokenizer, texts, template):
        self.asked.append((tokenizer, len(texts), template))
        return torch.tensor([[float(text.split()[1]), len(text)] for text in texts])


def write(path, objects):
    lines = [json.dumps({'id': i, 'object': text}) + '\n' for i, text in objects.items()]
    path.write_text(''.join(lines))


def settings(root, **more):
    return SimpleNamespace(**{'captions': None, 'data_root': root, 'captions_from': 'both', **more})


def test_each_pair_has_the_embedding_of_its_own_answer(tmp_path, capsys):
    numbers = [(7 * k) % 300 for k in range(600)]           # 300 answers, each of two pairs
    objects = {f'pair{k}': f'dog {number}' for k, number in enumerate(numbers)} | {'without': ''}
    write(tmp_path / 'captions.jsonl', dict(sorted(objects.items(), reverse=True)))
    text = Text()
    C, row_of = answers.load_answers(settings(tmp_path), text, 'words', list(objects), 'cpu')
    assert C.shape == (300, 2) and C.dtype == torch.float32 and 'without' not in row_of
    assert [C[row_of[f'pair{k}'], 0].item() for k in range(600)] == numbers
    assert text.asked == [('words', 256, '<*>'), ('words', 44, '<*>')]      # the texts as they are
    assert '600 of 601 pairs have an answer, 300 different ones' in capsys.readouterr().out


def test_embeddings_are_kept_until_the_answers_or_the_text_encoder_change(tmp_path):
    path, text = tmp_path / 'captions.jsonl', Text()

    def load(first):
        write(path, {'a': first, 'b': 'cat 5'})
        args = settings(tmp_path)
        C, row_of = answers.load_answers(args, text, None, ['a', 'b'], 'cpu')
        return C[row_of['a']].tolist(), C[row_of['b']].tolist(), args.answers
    first = load('dog 1')
    assert first[:2] == ([1, 5], [5, 5]) and load('dog 1') == first and len(text.asked) == 1
    with torch.no_grad():
        text.clipseg.clip.vision_model.weight.add_(1)
    assert load('dog 1') == first and len(text.asked) == 1
    with torch.no_grad():
        text.clipseg.clip.text_model.weight.add_(1)
    assert load('dog 1') == first and len(text.asked) == 2
    second = load('zebra 2')                                # which now stands after the cat
    assert second[:2] == ([2, 7], [5, 5]) and len(text.asked) == 3
    assert second[2] != first[2]                            # --resume tells other answers by it


def test_captions_and_captions_from_name_the_file(tmp_path):
    for name, first in (('captions', 1), ('captions-image', 2), ('captions-audio', 3), ('mine', 4)):
        write(tmp_path / f'{name}.jsonl', {'a': f'dog {first}', 'b': 'cat 9'})
    for more, first in (({}, 1), ({'captions_from': 'image'}, 2), ({'captions_from': 'audio'}, 3),
                        ({'captions': tmp_path / 'mine.jsonl', 'captions_from': 'image'}, 4)):
        args = settings(tmp_path, **more)
        C, row_of = answers.load_answers(args, Text(), None, ['a', 'b'], 'cpu')
        assert C[row_of['a'], 0] == first
    write(tmp_path / 'captions.jsonl', {'a': 'dog 1', 'b': 'dog 1'})
    with pytest.raises(ValueError, match='1 different answers'):
        answers.load_answers(settings(tmp_path), Text(), None, ['a', 'b'], 'cpu')


def test_the_miniature_s_captions_are_made_by_captions_py_outside_of_torchrun(monkeypatch):
    asked = []
    monkeypatch.setenv('RANK', '0')

    def run(command, env):
        asked.append((command, env))
        return SimpleNamespace(returncode=len(asked) - 1)
    monkeypatch.setattr(answers.subprocess, 'run', run)
    answers.make_captions('image')
    (command, environment), = asked
    assert command[1:] == [str(model.ROOT / 'captions.py'), 'all', '--captions-from', 'image']
    assert 'RANK' not in environment and 'PATH' in environment
    with pytest.raises(ValueError, match='captions.py failed'):
        answers.make_captions('both')


# ---- load_model

@pytest.fixture
def asked(monkeypatch):
    """Names of backbones that were asked for; the miniature's come instead."""
    names, config = [], model.PRESETS['miniature']
    tiny, ears = load_clipseg(config.clipseg), model.load_beats(config.beats)
    monkeypatch.setattr(model, 'load_clipseg', lambda name: names.append(name) or tiny)
    monkeypatch.setattr(model, 'load_beats', lambda path: names.append(path) or ears)
    return names


def test_named_backbones_prompt_and_tokens_take_the_place_of_the_preset_s(asked):
    localizer, tokenizer = model.load_model('paper', prompt='the <*> is loud', audio_tokens=2,
                                            clipseg='there', beats='here.pt')
    assert asked == ['there', 'here.pt']
    assert localizer.prompt_before.tolist() == tokenizer('the').input_ids[:-1]
    assert localizer.prompt_after.tolist() == tokenizer('is loud').input_ids[1:]
    assert localizer.audio_tokens(torch.zeros(1, 32_000)).shape == (1, 2, 128)


def test_a_checkpoint_brings_its_weights_prompt_and_tokens_unless_others_are_named(asked, tmp_path):
    torch.manual_seed(3)
    trained, tokenizer = model.load_model('miniature', audio_tokens=2)
    trained.masker_i.w.data.fill_(3)
    saved = {**model.trained_state(trained), 'prompt': 'An image of a <*>', 'audio_tokens': 2}
    torch.save(saved, tmp_path / 'last.pt')
    loaded, _ = model.load_model('paper', tmp_path / 'last.pt')
    assert loaded.prompt_before.tolist() == tokenizer('An image of a').input_ids[:-1]
    for name, weight in trained.audio_proj.state_dict().items():
        assert torch.equal(loaded.audio_proj.state_dict()[name], weight), name
    assert (loaded.masker_i.w.item(), loaded.masker_i.b.item()) == (3, trained.masker_i.b.item())
    other, _ = model.load_model('miniature', tmp_path / 'last.pt', prompt='<*>')
    assert other.prompt_before.tolist() == tokenizer('').input_ids[:-1]


def test_a_prompt_and_its_audio_tokens_must_fit_the_text_encoder(asked):
    assert model.load_model('miniature', prompt='a ' * 14 + '<*>', audio_tokens=8)
    with pytest.raises(ValueError, match='takes 25 tokens with its 8 of audio, .* reads 24: shorten'):
        model.load_model('miniature', prompt='a ' * 15 + '<*>', audio_tokens=8)


def test_a_checkpoint_with_one_number_or_weight_too_odd_is_refused(asked, tmp_path):
    path = tmp_path / 'last.pt'
    saved = model.trained_state(model.load_model('miniature')[0])
    torch.save({**saved, 'masker_i': {**saved['masker_i'], 'v': torch.ones(1)}}, path)
    with pytest.raises(ValueError, match='last.pt does not fit this model: it also holds masker_i.v'):
        model.load_model('miniature', path)
    weight = saved['audio_proj']['fc1.weight'].clone()
    weight[0, 1] = float('nan')
    torch.save({**saved, 'audio_proj': {**saved['audio_proj'], 'fc1.weight': weight}}, path)
    with pytest.raises(ValueError, match='last.pt holds weights that are not finite'):
        model.load_model('miniature', path)
