"""The language model's answers beside their embeddings, and what a model is made of."""

import json
import shutil

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, CLIPModel

import captions
import model
from model import load_clipseg


class Text:
    """In CLIP's place: a text's embedding is the number in it and its length."""

    def __init__(self):
        self.asked = []

    def embed_text(self, tokenizer, texts, template):
        self.asked.append((tokenizer, len(texts), template))
        numbers = [[float(text.split()[1]), len(text)] for text in texts]
        return torch.tensor(numbers, dtype=torch.float16)


def write(path, objects):
    lines = [json.dumps({'id': i, 'object': text}) + '\n' for i, text in objects.items()]
    path.write_text(''.join(lines))
    return path


def test_each_pair_has_the_embedding_of_its_own_answer(tmp_path, capsys):
    numbers = [(7 * k) % 257 for k in range(600)]           # 257 answers, of two or three pairs
    objects = {f'pair{k}': f'dog {number}' for k, number in enumerate(numbers)} | {'without': ''}
    more = {**objects, 'of another list': 'dog 257'}
    path = write(tmp_path / 'c.jsonl', dict(sorted(more.items(), reverse=True)))
    text = Text()
    C, row_of, _ = captions.load_answers(path, text, 'words', list(objects))
    assert C.shape == (257, 2) and C.dtype == torch.float32 and 'without' not in row_of
    assert [C[row_of[f'pair{k}'], 0].item() for k in range(600)] == numbers
    assert text.asked == [('words', 256, '<*>'), ('words', 1, '<*>')]      # the texts as they are
    assert '600 of 601 pairs have an answer, 257 different ones' in capsys.readouterr().out


def test_the_digest_tells_other_answers(tmp_path):
    path = tmp_path / 'c.jsonl'

    def digest(**objects):
        return captions.load_answers(write(path, objects), Text(), None, list(objects))[2]
    first = digest(a='dog 1', b='cat 2')
    assert first == digest(b='cat 2', a='dog 1') and isinstance(first, str)
    assert len({first, digest(a='cat 2', b='dog 1'), digest(a='dog 1', b='cat 3')}) == 3


def test_one_answer_for_all_has_nothing_to_be_told_apart_from(tmp_path):
    path = write(tmp_path / 'c.jsonl', {'a': 'dog 1', 'b': 'dog 1'})
    with pytest.raises(ValueError, match='1 different answers'):
        captions.load_answers(path, Text(), None, ['a', 'b'])


def test_a_data_root_has_a_file_for_each_kind_of_captions(tmp_path):
    names = {kind: captions.captions_path(str(tmp_path), kind) for kind in captions.OBJECT_PROMPTS}
    assert names == {'both': tmp_path / 'captions.jsonl',
                     'image': tmp_path / 'captions-image.jsonl',
                     'audio': tmp_path / 'captions-audio.jsonl'}


def test_training_has_the_miniature_captioned_in_its_own_process_alone(monkeypatch):
    asked, failed = [], {}

    def caption_pairs(args, device, rank=0, processes=1):
        asked.append((list(args.settings), args.captions_from, args.out, device.type, rank,
                      processes))
        return failed
    monkeypatch.setenv('RANK', '0')                         # of the training's torchrun
    monkeypatch.setattr(captions, 'caption_pairs', caption_pairs)
    captions.make_captions('image', 'cpu')
    out = model.ROOT / 'data/miniature/captions-image.jsonl'
    assert asked == [(['image', 'object'], 'image', out, 'cpu', 0, 1)]
    failed['a_1'] = 'a_1.jpg is no picture'
    with pytest.raises(ValueError, match='1 pairs could not be captioned: a_1.jpg is no'):
        captions.make_captions('both')


# ---- models of transformers

def test_a_model_comes_frozen_in_eval_mode_and_in_the_asked_precision():
    folder = model.PRESETS['miniature'].clipseg         # of which a CLIP is a part
    for dtype in (torch.float32, torch.bfloat16):
        clip = model.load_pretrained(CLIPModel, folder, '--clip', dtype)
        assert not clip.training and {weight.dtype for weight in clip.parameters()} == {dtype}
        assert not any(weight.requires_grad for weight in clip.parameters())


def test_a_model_that_is_absent_damaged_incomplete_or_of_another_kind_is_named(tmp_path):
    weights = model.ROOT / 'miniature/weights'

    def sentence(error, folder, part=CLIPModel):
        load = model.load_pretrained if part is CLIPModel else model.from_pretrained
        with pytest.raises(error) as said:
            load(part, str(folder), '--clip')
        assert '\n' not in str(said.value) and str(said.value).endswith('by --clip')
        assert str(folder) in str(said.value)
        return str(said.value)

    assert 'no usable CLIPModel' in sentence(OSError, tmp_path / 'none')
    assert 'no usable AutoTokenizer' in sentence(OSError, tmp_path / 'none', AutoTokenizer)
    assert 'is no usable CLIPModel: ' in sentence(ValueError, weights / 'mistral')
    folder = shutil.copytree(weights / 'clipseg', tmp_path / 'clip')
    clip = CLIPModel.from_pretrained(folder)
    clip.logit_scale.data.fill_(torch.nan)
    clip.save_pretrained(folder)
    assert '1 weights are missing or not numbers, e.g. logit_' in sentence(ValueError, folder)
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    for sizes in ({'num_hidden_layers': 9}, {'hidden_size': 9}, {'vocab_size': 9}):
        changed = {**config, 'text_config': {**config['text_config'], **sizes}}
        (folder / 'config.json').write_text(json.dumps(changed), encoding='utf-8')
        sentence((OSError, ValueError), folder)
    (folder / 'config.json').write_text(json.dumps(config), encoding='utf-8')
    complete = (folder / 'model.safetensors').read_bytes()
    for content in (complete[:len(complete) // 2], b'damaged', b''):
        (folder / 'model.safetensors').write_bytes(content)
        assert 'no usable CLIPModel' in sentence(OSError, folder)


@pytest.mark.parametrize('name, part', [
    ('clipseg', AutoTokenizer), ('qwen2_audio', AutoProcessor), ('mistral', AutoTokenizer)])
def test_a_tokenizer_without_its_vocabulary_is_refused_rather_than_empty(tmp_path, name, part):
    folder = shutil.copytree(model.ROOT / 'miniature/weights' / name, tmp_path / name)
    for file in folder.glob('tokenizer*'):
        file.unlink()
    with pytest.raises(OSError, match=f'no usable {part.__name__} at '):
        model.from_pretrained(part, str(folder), '--llm')


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
    assert len(localizer.audio_proj.fga.reduce_potentials) == 2


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
    with pytest.raises(ValueError, match='25 tokens with its 8 of audio, .* reads 24: shorten'):
        model.load_model('miniature', prompt='a ' * 15 + '<*>', audio_tokens=8)


def test_a_checkpoint_with_one_number_or_weight_too_odd_is_refused(asked, tmp_path):
    path = tmp_path / 'last.pt'
    saved = model.trained_state(model.load_model('miniature')[0])
    torch.save({**saved, 'masker_i': {**saved['masker_i'], 'v': torch.ones(1)}}, path)
    with pytest.raises(ValueError, match='last.pt does not fit .*Unexpected key.*"v"'):
        model.load_model('miniature', path)
    torch.save({**saved, 'audio_proj': {**saved['audio_proj'], 3: torch.ones(1)}}, path)
    with pytest.raises(ValueError, match='last.pt does not fit'):
        model.load_model('miniature', path)
    weight = saved['audio_proj']['fc1.weight'].clone()
    weight[0, 1] = float('nan')
    torch.save({**saved, 'audio_proj': {**saved['audio_proj'], 'fc1.weight': weight}}, path)
    with pytest.raises(ValueError, match='last.pt holds weights that are not finite'):
        model.load_model('miniature', path)


@pytest.mark.parametrize('name, value', [
    ('prompt', None), ('prompt', 3), ('prompt', 'a photo'), ('audio_tokens', '2'),
    ('audio_tokens', 1.0), ('audio_tokens', True), ('audio_tokens', -1), ('preset', 'large'),
    ('preset', ['paper']), ('preset', torch.ones(2)), ('variant', 'llm'), ('variant', None)])
def test_a_checkpoint_with_an_option_of_a_wrong_type_is_refused(tmp_path, name, value):
    torch.save({'audio_proj': {}, 'masker_i': {}, name: value}, tmp_path / 'last.pt')
    with pytest.raises(ValueError, match=f'last.pt: its .{name}. is none that .*: train one'):
        model.read_checkpoint(tmp_path / 'last.pt')
