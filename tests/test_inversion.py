"""Text inversion (section 4.4): what the captioner learns, and the two commands."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import inversion
from conftest import ROOT
from inversion import Captioner, Mapper, main, names_class, parse_args, take_steps, tokenise
from model import PRESETS, load_model

SCALE = dataclasses.replace(inversion.SCALES['miniature'],
                            gpt2={'n_embd': 16, 'n_layer': 1, 'n_head': 2, 'n_positions': 96})


@pytest.fixture(scope='module')
def tokenizer():
    return AutoTokenizer.from_pretrained(SCALE.tokenizer)


def captioner(tokenizer, dim=8):
    torch.manual_seed(0)
    return Captioner(SCALE, dim, tokenizer)


# ---- the captioner

def test_a_caption_is_learnt_from_an_embedding_of_any_length(tokenizer):
    captions = ['a dog barks', 'a cat meows', 'a bell rings and a drum is played']
    model = captioner(tokenizer)
    E = torch.eye(8)[:3]
    batches = [[0, 1, 2]] * 80
    loss = take_steps(model, 5 * E, *tokenise(tokenizer, captions), batches, 2e-2, 10, 0.0)
    assert loss < 0.5 and not model.training
    assert model.say(0.1 * E, tokenizer) == captions
    assert model.say(E, tokenizer, beam=1) == captions


def test_padding_takes_no_part_in_the_loss(tokenizer):
    model = captioner(tokenizer).eval()
    E = torch.randn(2, 8)
    short = tokenise(tokenizer, ['a dog barks'])
    tokens, mask = tokenise(tokenizer, ['a dog barks', 'a bell rings and a drum is played'])
    assert mask[0].sum() == short[1].sum() == len(tokenizer('a dog barks').input_ids) + 1
    assert mask[1].all() and tokens[1, -1] == tokenizer.eos_token_id
    padded = model(E[:1], tokens[:1], mask[:1])
    torch.testing.assert_close(padded, model(E[:1], *short))
    torch.testing.assert_close(padded, model(5 * E[:1], *short))        # of length 1 again


def test_the_loss_is_that_of_each_token_given_the_prefix_and_those_before(tokenizer):
    model = captioner(tokenizer).eval()
    e = F.normalize(torch.randn(1, 8), dim=1)
    tokens, mask = tokenise(tokenizer, ['a dog barks'])
    expected = []
    for k, token in enumerate(tokens[0]):
        x = torch.cat([model.mapper(e), model.gpt2.transformer.wte(tokens[:, :k])], 1)
        logits = model.gpt2(inputs_embeds=x).logits[0, -1]
        expected.append(-logits.log_softmax(0)[token])
    torch.testing.assert_close(model(e, tokens, mask), torch.stack(expected).mean())


def test_a_long_caption_is_cut_and_still_ends(tokenizer):
    tokens, mask = tokenise(tokenizer, ['a dog ' * 60])
    assert tokens.shape == mask.shape == (1, inversion.LONGEST)
    assert tokens[0, -1] == tokenizer.eos_token_id


def test_the_prefix_depends_on_the_embedding_and_has_its_shape():
    mapper = Mapper(8, 16, prefix=3, layers=1, heads=2)
    prefix = mapper(torch.randn(5, 8))
    assert prefix.shape == (5, 3, 16)
    assert not torch.allclose(prefix[0], prefix[1])
    mapper.transformer = torch.nn.Identity()
    assert torch.equal(mapper(torch.randn(2, 8)), mapper.queries.expand(2, -1, -1))


def test_noise_has_the_variance_of_capdec(tokenizer, monkeypatch):
    told = []

    def forward(self, e, tokens, mask):
        told.append(e)
        return self.mapper(e).sum()

    monkeypatch.setattr(Captioner, 'forward', forward)
    rows = list(range(200))
    E = 7 * torch.randn(200, 8)
    for noise in (0.0, inversion.NOISE):
        take_steps(captioner(tokenizer), E, rows_of_zeros(200), rows_of_zeros(200), [rows], 0.0, 1,
                   noise)
    unit = F.normalize(E, dim=1)
    torch.testing.assert_close(told[0], unit)
    assert (told[1] - unit).var().item() == pytest.approx(0.016, rel=0.2)


def test_the_rate_rises_while_it_warms_up_then_falls_to_0_and_no_weight_decays(
        tokenizer, monkeypatch):
    steps = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            group = self.param_groups[0]
            steps.append((group['lr'], group['weight_decay'], model.training))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, 'AdamW', Watched)
    model = captioner(tokenizer).eval()
    take_steps(model, torch.eye(8), rows_of_zeros(8), rows_of_zeros(8) + 1, [[0, 1]] * 6, 0.4, 2,
               0.0)
    assert steps == [(pytest.approx(0.4 * share), 0, True)
                     for share in (0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4)]


def test_a_sentence_is_searched_in_five_beams_from_an_embedding_of_length_1(
        tokenizer, monkeypatch):
    model = captioner(tokenizer).eval()
    told = {}
    monkeypatch.setattr(model.gpt2, 'generate', lambda **options: told.update(options)
                        or torch.tensor(tokenizer(['a  dog', 'a  cat']).input_ids))
    e = 5 * torch.eye(8)[:2]
    assert model.say(e, tokenizer) == ['a dog', 'a cat']
    torch.testing.assert_close(told.pop('inputs_embeds'), model.mapper(e / 5).detach())
    assert told.pop('attention_mask').tolist() == [[1] * SCALE.prefix] * 2
    assert told == {'num_beams': 5, 'do_sample': False, 'max_new_tokens': 67}


def rows_of_zeros(count):
    return torch.zeros(count, 1, dtype=torch.long)


@pytest.mark.parametrize('sentence, label, expected', [
    ('A dog barks.', 'dog', True), ('birds chirping', 'bird', True), ('a dog barks', 'cat', False),
    ('a phone ringing', 'telephone', True), ('a tone', 'telephone', False),
    ('hot dogs', 'dog barking', False), ('a dog is barking', 'dog barking', True),
    ('', 'dog', False), ('a concert', 'cat', False), ('an', 'swan', False)])
def test_a_sentence_names_a_class(sentence, label, expected):
    assert names_class(sentence, label) is expected


def test_the_paper_s_settings_are_capdec_s():
    paper = inversion.SCALES['paper']
    assert (paper.tokenizer, paper.pretrained, paper.gpt2) == ('gpt2', 'gpt2', {})
    assert (paper.prefix, paper.layers, paper.lr, paper.warmup) == (40, 8, 2e-5, 5000)
    assert (paper.epochs, paper.batch_size) == (10, 34)
    assert (inversion.BEAM, inversion.LONGEST, inversion.NOISE) == (5, 67, 0.016)
    assert parse_args(['train']).condition == 'image'


# ---- the two commands

@pytest.fixture
def small(monkeypatch, small_world):
    """The commands on a small world, with a toy GPT-2."""
    monkeypatch.setitem(inversion.SCALES, 'miniature', SCALE)
    monkeypatch.setattr(inversion, 'LONGEST', 12)
    where = ['--data-root', str(small_world), '--device', 'cpu']
    return lambda command, *more: main([command, *where, *map(str, more)])


def test_train_then_say_prints_four_shares_and_draws_figure_12(small, tmp_path, capsys):
    out, figure = tmp_path / 'new/a.pt', tmp_path / 'new/figure12.png'
    small('train', '--out', out, '--epochs', 1)
    assert f'{out}: 1 steps of 64 from 96 pairs' in capsys.readouterr().out
    small('say', '--captioner', out, '--figure', figure, '--beam', 2)
    said = capsys.readouterr().out
    for source in inversion.SOURCES:
        assert re.search(rf'^{re.escape(source)} +\d+\.\d +16$', said, re.M), said
    assert f'{figure}: in the manner of Figure 12' in said
    with Image.open(figure) as picture:
        assert picture.width > 600


def test_the_condition_and_the_seed_decide_what_the_captioner_is_told(small, tmp_path,
                                                                      monkeypatch):
    told = []
    said = []
    monkeypatch.setattr(inversion, 'take_steps', lambda captioner, E, tokens, mask, batches, lr,
                        warmup, noise: told.append((E, noise, batches, captioner)) or 0.0)
    monkeypatch.setattr(inversion, 'tokenise', lambda tokenizer, texts:
                        said.append(texts) or tokenise(tokenizer, texts))
    for options in (['image'], ['text'], ['image', '--seed', 1]):
        small('train', '--out', tmp_path / str(len(told)), '--condition', *options)
    (frames, without, batches, first), (texts, noise, *_), (_, _, other, second) = told
    assert frames.shape == texts.shape == (96, 128)
    assert (without, noise) == (0.0, inversion.NOISE)
    model, clip_tokenizer = load_model('miniature')
    torch.testing.assert_close(texts, model.embed_text(clip_tokenizer, said[0], '<*>'))
    assert len(frames.unique(dim=0)) > 90
    assert 12 < len(set(said[0])) <= 24 and said[0] == said[1] != said[2]   # two of each class
    assert len(batches) == 6 and batches[0] != batches[1] and batches[0] != other[0]
    assert not torch.equal(first.mapper.queries, second.mapper.queries)


def test_captions_of_a_file_are_learnt_and_pairs_without_one_left_out(small, small_world, tmp_path,
                                                                     monkeypatch):
    ids = [line.split(',')[0] for line in
           (small_world / 'vggsound/train.csv').read_text(encoding='utf-8').splitlines()]
    lines = [{'id': i, 'audio_caption': f' a   {"dog" if k else "cat"} ', 'error': None}
             for k, i in enumerate(ids)]
    lines[5]['audio_caption'] = None                                    # of a pair that failed
    path = tmp_path / 'captions.jsonl'
    path.write_text('\n'.join(map(json.dumps, lines[::-1])), encoding='utf-8')
    captions = []
    monkeypatch.setattr(inversion, 'tokenise', lambda tokenizer, texts:
                        captions.extend(texts) or tokenise(tokenizer, texts))
    small('train', '--captions', path, '--out', tmp_path / 'a.pt', '--epochs', 1)
    assert captions == ['a cat'] + ['a dog'] * 94


def test_captions_of_the_data_root_are_those_of_its_sounds(tmp_path):
    line = {'id': 'a', 'image_caption': 'a lawn', 'audio_caption': 'a dog', 'object': 'dog',
            'error': None}
    (tmp_path / 'captions.jsonl').write_text(json.dumps(line), encoding='utf-8')
    pairs = SimpleNamespace(list=tmp_path / 'vggsound/train.csv')
    assert inversion.read_captions(None, pairs, 'paper', 0) == {'a': 'a dog'}


def test_a_row_s_share_is_of_sentences_from_the_embedding_that_it_names(small, tmp_path,
                                                                       monkeypatch, capsys):
    told = []
    loaded = []
    load = inversion.load
    captioner = SimpleNamespace(say=lambda e, tokenizer, beam: told.append(beam) or e)
    captioner.to = lambda device: captioner
    monkeypatch.setattr(inversion, 'read_captioner', lambda *_: captioner)
    monkeypatch.setattr(inversion, 'load', lambda *given, **options: loaded.append(options)
                        or load(*given, **options))
    monkeypatch.setattr(inversion, 'embed_samples', lambda model, untrained, samples, words: (
        [f'a {s["label"]}!' for s in samples], ['nothing'] * len(samples),
        [s['label'] if k % 2 else '' for k, s in enumerate(samples)],
        [s['label'] if k % 4 else '' for k, s in enumerate(samples)]))
    drawn = []
    monkeypatch.setattr(inversion, 'draw_figure_12', lambda *given: drawn.append(given))
    checkpoint = ROOT / 'miniature/weights/av_llm.pt'
    small('say', '--beam', 3, '--figure', tmp_path / 'f.png', '--checkpoint', checkpoint)
    lines = capsys.readouterr().out.splitlines()
    for name, share in (('A of the sound', '100.0'), ('A, untrained', '0.0'),
                        ('the frame', '50.0'), ('the class name', '75.0')):
        assert f'{name}|{share}|16' in [re.sub('  +', '|', line) for line in lines]
    assert set(told) == {3}
    assert [(each['checkpoint'], each['untrained'], each['variant']) for each in loaded] == [
        (str(checkpoint), False, 'av'), (None, True, 'av')]
    (_, shown, said, maps), = drawn
    labels = [s['label'] for s in shown]
    assert said == [f'a {label}!' for label in labels] and len(set(labels)) == len(labels) == 5
    assert [f'{label}: a {label}!' for label in labels] == lines[-6:-1]


def test_the_embeddings_are_of_the_sound_untrained_the_frame_and_the_name(monkeypatch):
    model, untrained = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    model.clipseg = 'CLIP'
    model.embed_audio = lambda wav: 2 * wav
    untrained.embed_audio = lambda wav: 3 * wav
    monkeypatch.setattr(inversion, 'embed_image', lambda clipseg, image: 5 * image)
    samples = [{'wav': torch.ones(4) * k, 'image': torch.ones(4) * k, 'label': str(k)}
               for k in (1, 2)]
    words = {'1': torch.full((4,), 7), '2': torch.full((4,), 14)}
    found = inversion.embed_samples(model, untrained, samples, words)
    assert [e[:, 0].tolist() for e in found] == [[2, 4], [3, 6], [5, 10], [7, 14]]


def test_figure_12_shows_the_map_of_the_name_then_of_the_sound(monkeypatch):
    drawn = []
    monkeypatch.setattr(inversion, 'sheet_of_samples', lambda path, samples, maps, columns, *_:
                        drawn.append((list(maps), columns[2:])))
    inversion.draw_figure_12('f.png', [{'label': 'dog'}], ['a dog'],
                             {'ours': ['A'], 'oracle': ['name']})
    assert drawn == [([('name', 'A')], ['class name', 'sound'])]


def test_gpt2_s_own_weights_are_where_training_begins(small, tmp_path, monkeypatch, tokenizer):
    began = []
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SCALE.gpt2)).save_pretrained(tmp_path)
    first = GPT2LMHeadModel.from_pretrained(tmp_path).transformer.wte.weight
    monkeypatch.setitem(inversion.SCALES, 'miniature',
                        dataclasses.replace(SCALE, pretrained=str(tmp_path)))
    monkeypatch.setattr(inversion, 'take_steps', lambda captioner, *more: began.append(
        captioner.gpt2.transformer.wte.weight.clone()) or 0.0)
    small('train', '--out', tmp_path / 'a.pt')
    assert torch.equal(began[0], first)


def test_your_own_sound_and_pictures_get_a_sentence_each(small, small_world, tmp_path, capsys):
    out = tmp_path / 'a.pt'
    small('train', '--out', out, '--epochs', 1)
    folder = small_world / 'vggss'
    sound = next((folder / 'audio').iterdir())
    frames = sorted((folder / 'frames').iterdir())
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for frame in frames[:2]:
        shutil.copy(frame, pictures)
    capsys.readouterr()
    small('say', '--captioner', out, '--audio', sound, '--image', pictures)
    small('say', '--captioner', out, '--image', frames[0])
    lines = [line for line in capsys.readouterr().out.splitlines() if 'checkpoint' not in line]
    places = [sound, *(pictures / frame.name for frame in frames[:2]), frames[0]]
    assert [line.split(': ')[0] for line in lines] == list(map(str, places))
    wav, rate = soundfile.read(sound)
    soundfile.write(tmp_path / 'long.wav', np.tile(wav, 3), rate)
    small('say', '--captioner', out, '--audio', tmp_path / 'long.wav')
    assert 'hears the first 2.0 of 6.0 s of long.wav\n' in capsys.readouterr().out


def test_a_phone_s_picture_is_embedded_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6                                     # orientation: turn clockwise to show
    Image.fromarray(pixels).save(tmp_path / 'turned.png', exif=tag)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / 'upright.png')
    model, _ = load_model('miniature')
    turned, upright = inversion.embed_frames(
        model, [tmp_path / 'turned.png', tmp_path / 'upright.png'], 32)
    assert torch.equal(turned, upright)


# ---- what is refused

def test_a_finished_captioner_is_not_lost(small, tmp_path):
    (tmp_path / 'a.pt').write_bytes(b'x')
    with pytest.raises(FileExistsError, match='--overwrite'):
        small('train', '--out', tmp_path / 'a.pt')
    small('train', '--out', tmp_path / 'a.pt', '--overwrite', '--epochs', 1)
    assert torch.load(tmp_path / 'a.pt', weights_only=True)['preset'] == 'miniature'


def test_bad_files_are_named(small, small_world, tmp_path):
    bad = tmp_path / 'bad'
    bad.write_bytes(b'no')
    with pytest.raises(FileNotFoundError, match='no captions at .*none: .*by captions.py'):
        small('train', '--out', tmp_path / 'a.pt', '--captions', tmp_path / 'none')
    with pytest.raises(ValueError, match='bad: line 1 is not a JSON object'):
        small('train', '--out', tmp_path / 'a.pt', '--captions', bad)
    bad.write_text('{"id": "x", "audio_caption": "a dog"}', encoding='utf-8')
    with pytest.raises(ValueError, match='^0 of 96 pairs .* have a caption'):
        small('train', '--out', tmp_path / 'a.pt', '--captions', bad)
    bad.write_text('{"id": "x", "audio_caption": ["x"]}', encoding='utf-8')
    with pytest.raises(ValueError, match='bad: .* needs an id and an audio_caption, both texts'):
        small('train', '--out', tmp_path / 'a.pt', '--captions', bad)
    bad.write_text('{"id": "x", "audio_caption": "a dog"}\n' * 2, encoding='utf-8')
    with pytest.raises(ValueError, match='bad names x twice'):
        small('train', '--out', tmp_path / 'a.pt', '--captions', bad)
    with pytest.raises(OSError, match='cannot write into .*bad'):
        small('train', '--out', bad / 'a.pt')
    with pytest.raises(FileNotFoundError, match='there is no file .*none: make one'):
        small('say', '--captioner', tmp_path / 'none')
    with pytest.raises(ValueError, match='bad is no checkpoint'):
        small('say', '--captioner', bad)
    with pytest.raises(ValueError, match='av.pt is no captioner'):
        small('say', '--captioner', ROOT / 'miniature/weights/av.pt')


def test_a_captioner_of_a_failed_training_is_refused(small, tmp_path):
    path = tmp_path / 'a.pt'
    small('train', '--out', path, '--epochs', 1)
    saved = torch.load(path, weights_only=True)
    saved['captioner']['mapper.queries'][:] = torch.nan
    torch.save(saved, path)
    with pytest.raises(ValueError, match='a.pt is no captioner'):
        small('say', '--captioner', path)


def test_gpt2_that_is_not_there_is_named(small, tmp_path, monkeypatch):
    scale = dataclasses.replace(SCALE, tokenizer=str(tmp_path / 'gpt2'))
    monkeypatch.setitem(inversion.SCALES, 'miniature', scale)
    with pytest.raises(OSError, match='no usable AutoTokenizer at .*gpt2.* by --preset'):
        small('train', '--out', tmp_path / 'a.pt')


def test_bad_sounds_pictures_and_checkpoints_are_named(small, small_world, tmp_path):
    out = tmp_path / 'a.pt'
    small('train', '--out', out, '--epochs', 1)
    empty = tmp_path / 'empty'
    empty.mkdir()
    for option, path, sentence in (('--audio', tmp_path / 'none.wav', 'none.wav is missing'),
                                   ('--image', tmp_path / 'none.jpg', 'none.jpg is missing'),
                                   ('--image', out, 'a.pt is not a readable picture'),
                                   ('--image', empty, 'no picture .* in .*empty'),
                                   ('--checkpoint', out, 'a.pt is not a checkpoint')):
        with pytest.raises((OSError, ValueError), match=sentence):
            small('say', '--captioner', out, option, path)


@pytest.mark.parametrize('line, words', [
    ('say --figure a.png --audio b.wav', '--figure shows VGG-SS'),
    ('train --seed -1', 'argument --seed: must be at least 0'),
    ('train --epochs 0', 'must be at least 1'), ('say --beam 0', 'must be at least 1'),
    ('say --captioner a.pt --figure a.png --captioner a.png', '--figure would overwrite'),
    ('train --captions a.jsonl --out a.jsonl', '--out would overwrite'),
    ('train --out miniature/weights/av.pt', 'the weights that ship')])
def test_wrong_options_are_refused(line, words, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit):
        parse_args(line.split())
    assert words in capsys.readouterr().err


def test_each_run_has_its_own_file():
    places = {str(parse_args(['train', *more]).out) for more in (
        [], ['--seed', '1'], ['--condition', 'text'], ['--preset', 'paper'])}
    assert len(places) == 4
    assert parse_args(['say', '--seed', '1']).captioner == parse_args(['train', '--seed', '1']).out
    assert set(inversion.SCALES) == set(PRESETS)
