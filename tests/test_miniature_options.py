"""The miniature's scripts: options reach what is run, and each draw of random numbers is used."""

import hashlib
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from beats import BEATsConfig
from media import read_pickled_mask
from miniature import drawings, scenes, sounds, world
from miniature.pretraining import __main__ as command
from miniature.pretraining import (captioners, language, lessons, tiny_beats, tiny_clap,
                                   tiny_clipseg, tiny_owlv2, tiny_spaces)

SPLITS = {'vggss': 3, 'ext_vggss': 9, 'flickr': 2, 'ext_flickr': 3, 'vpo_ss': 2, 'vpo_ms': 4,
          'avs_s4': 1, 'avs_ms3': 3, 'ade20k': 3, 'vgg_instruments': 4, 'vgg_duet': 3}


# ---- miniature.world

@pytest.mark.parametrize('options, expected', [
    ([], ('data/miniature', 0, False)), (['--seed', '7', '--out', 'there'], ('there', 7, False)),
    (['--force'], ('data/miniature', 0, True))])
def test_the_world_s_options_reach_it(monkeypatch, capsys, options, expected):
    asked = []
    keep = lambda out, seed, force: asked.append((out, seed, force)) or out
    monkeypatch.setattr(world, 'build', keep)
    monkeypatch.setattr(sys, 'argv', ['world', *options])
    world.main()
    assert asked == [expected] and capsys.readouterr().out == f'{expected[0]}\n'


@pytest.mark.filterwarnings('ignore::RuntimeWarning')           # each is imported already
@pytest.mark.parametrize('name, place', [('drawings', 'file/a.png'), ('sounds', 'file')])
def test_a_sheet_or_sounds_that_cannot_be_written_are_one_sentence(tmp_path, monkeypatch, capsys,
                                                                  name, place):
    (tmp_path / 'file').touch()
    monkeypatch.setattr(sys, 'argv', [name, str(tmp_path / place)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f'miniature.{name}', run_name='__main__')
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith(f'miniature.{name}: cannot use {tmp_path / place} (')
    assert said.count('\n') == 1


def fingerprint(place):
    """-> hash of lists, boxes and exact masks; mean of all pictures; mean level of all sounds."""
    exact, bright, loud = hashlib.sha256(), [], []
    for path in sorted(p for p in (place, *place.rglob('*')) if p.is_file()):
        if path.suffix == '.wav':
            loud.append(np.abs(soundfile.read(path)[0]).mean())
        elif path.suffix == '.jpg' or path.parent.name == 'visual_frames':
            bright.append(np.array(Image.open(path)).mean())
        elif path.suffix == '.png':
            exact.update(np.array(Image.open(path)).tobytes())
        elif path.suffix == '.pkl':
            exact.update(read_pickled_mask(path).numpy().tobytes())
        else:
            exact.update(path.read_bytes())
    return exact.hexdigest()[:12], np.mean(bright or [0]), np.mean(loud or [0])


# Of seed 5. What the shipped weights were trained and first tested on, since version 1 of the world
FIRST = {'train': 3, 'val': 2, 'vggss': 2, 'is4': 2}
OF_FIRST = {
    'is4': ('2ecb4aa59474', 126.461, 0.061046),
    'scenes.jsonl': ('734de5c70bad', 0.000, 0.000000),
    'vggsound': ('1f1be7794f10', 120.464, 0.111658),
    'vggss': ('ddb05d1ee6c4', 133.037, 0.032887)}
# and what version 2 added
OF_OTHERS = {
    'ade20k': ('8c68d1676c05', 114.254, 0.084370),
    'avsbench': ('1071cc1169c4', 144.415, 0.070457),
    'flickr': ('c510afc753fe', 104.298, 0.075919),
    'scenes.jsonl': ('25e9b2e904b1', 0.000, 0.000000),
    'vgg_duet': ('fd36931484ea', 0.000, 0.000000),
    'vgg_instruments': ('0a3c1f2b0ae9', 128.337, 0.096673),
    'vggss': ('b7c0b0cc28ab', 126.720, 0.099121),
    'vpo_ms': ('a30fd975b728', 74.364, 0.088706),
    'vpo_ss': ('df07f66e2b4b', 64.130, 0.047495)}


@pytest.mark.parametrize('splits, fingerprints', [(FIRST, OF_FIRST), (SPLITS, OF_OTHERS)])
def test_the_world_is_still_what_was_trained_on_and_scored(splits, fingerprints, tmp_path):
    """Lists, boxes and masks to the bit; frames and sounds to what another encoder could change."""
    root = world.build(tmp_path / 'w', seed=5, splits=splits, processes=1)
    assert {path.name for path in root.iterdir()} == {*fingerprints, 'world.json'}
    for name, (exact, bright, loud) in fingerprints.items():
        found = fingerprint(root / name)
        assert found[0] == exact, name
        assert found[1:] == (pytest.approx(bright, abs=0.05), pytest.approx(loud, rel=1e-3)), name


def test_force_draws_another_world_over_what_is_there(tmp_path):
    build = lambda seed, **more: world.build(tmp_path / 'w', seed, {'val': 1}, 1, **more)
    frame = build(0) / 'vggsound/frames/val00000_000000.jpg'
    first = frame.read_bytes()
    (tmp_path / 'w/notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='--force'):
        build(1)
    build(1, force=True)
    assert frame.read_bytes() != first and not (tmp_path / 'w/notes.txt').exists()


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine():
    rate = lambda step: tiny_beats.cosine_schedule(step, 100, 2, warmup=10)
    assert [rate(step) for step in (0, 50, 75, 100)] == pytest.approx([0.2, 1, 1 - 0.5**0.5, 0])


def test_a_sample_s_generator_differs_in_seed_split_and_index():
    drawn = {tuple(scenes.sample_generator(seed, split, index).integers(1 << 40, size=2))
             for seed in (0, 1) for split in ('train', 'val') for index in (0, 1)}
    assert len(drawn) == 8


@pytest.mark.parametrize('name', [*drawings.SOUNDING, *sounds.AMBIENT, 'silence'])
def test_each_sound_is_drawn_anew_and_repeats_with_its_generator(name):
    clips = [sounds.sound(name, np.random.default_rng(seed)) for seed in (1, 1, 4)]
    assert np.array_equal(clips[0], clips[1]) and not np.array_equal(clips[0], clips[2])
    more = [sounds.sound(name, np.random.default_rng(seed)) for seed in range(4, 8)]
    peaks = {float(np.abs(clip).max()) for clip in more}
    if name != 'silence':
        assert len(peaks) == 4 and 0.15 <= min(peaks) and max(peaks) <= 0.9


def test_two_sounds_at_once_have_half_gain_each():
    assert sounds.mixture(np.ones(3), np.array([0, 2, 4])).tolist() == [0.5, 1.5, 2.5]


# ---- miniature.pretraining

STAGES = {'beats': ('pretrain_beats', 'check_beats'),
          'clipseg': ('pretrain_clipseg', 'check_clipseg'),
          'decoder': ('tune_decoder', 'check_clipseg'),
          'captioners': ('pretrain_captioners', 'check_captioners'),
          'clap': ('pretrain_clap', 'check_clap'), 'owlv2': ('pretrain_owlv2', 'check_owlv2'),
          'spaces': ('pretrain_spaces', 'check_spaces')}


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Runs the command line. -> what was called, in order"""
    called = []

    def spy(name):
        return lambda *given: called.append((name, *given)) or {'quality': 0.5}
    for name in {name for pair in STAGES.values() for name in pair}:
        monkeypatch.setattr(command, name, spy(name))

    def run(*options):
        called.clear()
        monkeypatch.setattr(sys, 'argv', ['pretrain', '--out', str(tmp_path / 'w'), *options])
        command.main()
        return called
    return run


def test_all_stages_are_trained_in_their_order_with_seed_and_steps(stages, tmp_path, capsys):
    folder = tmp_path / 'w'
    assert stages() == [('pretrain_beats', folder / 'beats.pt', 0),
                        ('pretrain_clipseg', folder / 'clipseg', 0, 4600),
                        ('tune_decoder', folder / 'clipseg', 0), ('pretrain_captioners', folder, 0),
                        ('pretrain_clap', folder / 'clap', 0), ('pretrain_owlv2', folder, 0),
                        ('pretrain_spaces', folder, 0)]
    assert stages('--seed', '3', '--steps', '9')[1:3] == [
        ('pretrain_clipseg', folder / 'clipseg', 3, 9), ('tune_decoder', folder / 'clipseg', 3)]
    assert [call[2] for call in stages('--seed', '3')] == [3] * 7
    assert 'quality: 0.500' in capsys.readouterr().out
    assert command.WEIGHTS == Path(world.__file__).parent / 'weights'


@pytest.mark.parametrize('name', list(STAGES))
def test_only_one_stage_is_trained_or_checked(stages, name):
    train, check = STAGES[name]
    assert [call[0] for call in stages('--only', name)] == [train]
    (checked,) = stages('--only', name, '--check', '--seed', '2')
    assert (checked[0], checked[2]) == (check, 2)


def test_a_check_measures_each_of_the_weights_once_and_trains_nothing(stages):
    called = [call[0] for call in stages('--check')]
    assert called == ['check_beats', 'check_clipseg', 'check_captioners', 'check_clap',
                      'check_owlv2', 'check_spaces']


def test_the_captioners_are_trained_into_their_own_folders_on_the_same_seed(monkeypatch, tmp_path):
    called = []
    for name in ('pretrain_mistral', 'pretrain_qwen2_audio', 'pretrain_blip2', 'check_captioners'):
        keep = lambda *given, name=name: called.append((name, *given))
        monkeypatch.setattr(captioners, name, keep)
    captioners.pretrain_captioners(tmp_path, 6)
    assert called == [('pretrain_mistral', tmp_path / 'mistral', 6),
                      ('pretrain_qwen2_audio', tmp_path / 'qwen2_audio', 6),
                      ('pretrain_blip2', tmp_path / 'blip2', tmp_path / 'clipseg', 6),
                      ('check_captioners', tmp_path, 6)]


@pytest.fixture
def serial(monkeypatch):
    """Scenes and sounds are drawn in this process."""
    here = lambda function, jobs, label, processes: [function(job) for job in jobs]
    for module in (tiny_beats, tiny_clipseg, tiny_owlv2, tiny_spaces, lessons):
        monkeypatch.setattr(module, 'in_parallel', here)


def test_the_tiny_beats_trains_on_its_seed_with_the_asked_steps(serial, monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_beats, 'CLIPS_PER_SOUND', 1)
    monkeypatch.setattr(tiny_beats, 'BATCH', 2)
    monkeypatch.setattr(tiny_beats, 'BEATS', BEATsConfig(
        encoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=2,
        embed_dim=16, conv_pos=8, conv_pos_groups=2, finetuned_model=True, predictor_class=16))
    monkeypatch.setattr(tiny_beats, 'check_beats', lambda path, seed: {'seed': seed})
    weights = []
    for seed, steps in ((0, 1), (0, 1), (1, 1), (0, 2)):
        assert tiny_beats.pretrain_beats(tmp_path / 'beats.pt', seed, steps) == {'seed': seed}
        saved = torch.load(tmp_path / 'beats.pt', weights_only=True)
        weights.append(saved['model']['predictor.weight'])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])


@pytest.fixture
def few(serial, monkeypatch, tmp_path):
    """The models of the baselines on a handful of pairs. -> a folder that holds a clipseg"""
    for module, name, value in (
            (tiny_clap, 'CLIPS_PER_SOUND', 1), (tiny_clap, 'BATCH', 4), (tiny_clap, 'STEPS', 2),
            (tiny_owlv2, 'SCENES', 4), (tiny_owlv2, 'BATCH', 2), (tiny_owlv2, 'STEPS', 2),
            (tiny_spaces, 'PAIRS', 6), (tiny_spaces, 'AUDIOCLIP_PAIRS', 2),
            (tiny_spaces, 'BATCH', dict.fromkeys(tiny_spaces.BATCH, 2)),
            (tiny_spaces, 'STEPS', dict.fromkeys(tiny_spaces.STEPS, 1))):
        monkeypatch.setattr(module, name, value)
    for module, name in ((tiny_clap, 'clap'), (tiny_owlv2, 'owlv2'), (tiny_spaces, 'spaces')):
        monkeypatch.setattr(module, f'check_{name}', lambda folder, seed: {'seed': seed})
    shutil.copytree(command.WEIGHTS / 'clipseg', tmp_path / 'clipseg')
    return tmp_path


@pytest.mark.parametrize('name, files', [
    ('clap', ['clap/model.safetensors']), ('owlv2', ['owlv2/model.safetensors']),
    ('spaces', ['wav2clip.pt', 'audioclip.pt', 'imagebind.pth'])])
def test_the_models_of_the_baselines_train_on_their_seed(few, name, files):
    kept = []
    for seed in (0, 0, 1):
        assert command.run_stage(name, False, few, seed, None) == {'seed': seed}
        kept.append([(few / file).read_bytes() for file in files])
    assert kept[0] == kept[1]
    assert all(one != other for one, other in zip(kept[0], kept[2], strict=True))


def test_the_tiny_clip_trains_on_scenes_with_their_own_words(monkeypatch, tmp_path):
    numbers, picked = np.arange(50), []

    def loss(clipseg, tokenizer, batch, rng):
        images, owners, things, places = batch
        assert images.tolist() == (owners - 100).tolist() == things == places
        picked[-1].append(things)
        return {'image': clipseg.clip.logit_scale}
    monkeypatch.setattr(tiny_clipseg, 'scene_set', lambda split, count, seed: (
        numbers, numbers + 100, numbers.tolist(), numbers.tolist()))
    monkeypatch.setattr(tiny_clipseg, 'pretraining_loss', loss)
    monkeypatch.setattr(tiny_clipseg, 'check_clipseg', lambda folder, seed: {'seed': seed})
    monkeypatch.setattr(tiny_clipseg, 'BATCH', 5)
    for seed in (0, 0, 1):
        picked.append([])
        assert tiny_clipseg.pretrain_clipseg(tmp_path / 'clipseg', seed, steps=3) == {'seed': seed}
    assert [len(batch) for batch in picked[0]] == [5, 5, 5]
    assert picked[0] == picked[1] != picked[2]


def test_sounds_and_scenes_of_a_set_have_their_own_labels_and_seeds(serial):
    clips, labels = tiny_beats.sound_set('train', 2, 3)
    assert labels.tolist() == [k // 2 for k in range(2 * len(tiny_beats.HEARD))]
    name, index = tiny_beats.HEARD[4], 1
    again = sounds.sound(name, scenes.sample_generator(3, f'beats-train-{name}', index))
    assert np.array_equal(clips[2 * 4 + index], (again * 32767).astype(np.int16))
    assert not np.array_equal(clips, tiny_beats.sound_set('test', 2, 3)[0])
    images, owners, things, places = tiny_clipseg.scene_set('train', 3, 3)
    for k in range(3):
        scene = scenes.draw_scene(scenes.sample_generator(3, 'clip-train', k))
        assert np.array_equal(images[k], scene.image) and places[k] == scene.place
        names = [drawings.CLASSES[c] for c, _ in things[k]]
        assert names == [thing.name for thing in scene.objects]
        for i, thing in enumerate(scene.objects):
            assert np.array_equal(owners[k] == i + 1, thing.mask)
    assert not np.array_equal(images, tiny_clipseg.scene_set('test', 3, 3)[0])
    assert not np.array_equal(images, tiny_clipseg.scene_set('train', 3, 4)[0])


def test_a_batch_of_sounds_is_shifted_scaled_mixed_and_labelled_with_what_is_in_it():
    """Sound k is a sine of 100 (k + 1) cycles: the spectrum says whether it is heard."""
    turn = 2 * np.pi * np.arange(32_000) / 32_000
    clips = np.stack([(20_000 * np.sin(100 * (k + 1) * turn)).astype(np.int16) for k in range(16)])
    rng, mixed, silent, loudness = np.random.default_rng(0), 0, 0, []
    for _ in range(6):
        wavs, targets = tiny_beats.beats_batch(clips, np.arange(16), rng)
        assert wavs.shape == (48, 32_000) and targets.shape == (48, 16)
        spectrum = torch.fft.rfft(wavs).abs()[:, 100:1700:100]      # (48, 16)
        for heard, target, wav in zip(spectrum, targets, wavs):
            assert torch.equal(heard > 1000, target > 0)
            mixed += int(target.sum() == 2)
            silent += int(target.sum() == 0)
            if target.sum() == 1:
                loudness.append(wav.abs().max().item())
        assert len(set(wavs[targets.sum(1) == 1, 0].tolist())) > 10     # each at a shift of its own
    assert 60 < mixed < 120 and 3 < silent < 30                     # a third, and 4%, of 288
    assert min(loudness) > 0.3 * 0.6 * 0.5 and max(loudness) < 1.1 * 0.62 and max(loudness) > 0.6


def test_zoom_shift_and_flip_move_the_image_and_its_owners_alike():
    torch.manual_seed(0)
    owners = np.zeros((24, 96, 96), np.uint8)
    owners[:, 30:60, 10:30] = 1
    images = np.repeat(owners[..., None], 3, 3) * 200               # bright where the object is
    x, owner = tiny_clipseg.augment(images, owners)
    boxes = set()
    for picture, inside in zip(x[:, 0], owner == 1):
        assert inside.any() and picture[inside].mean() > picture[~inside].mean() + 1
        boxes.add(scenes.box_of(inside.numpy()))
    assert len(boxes) > 20 and len({box[0] > 48 for box in boxes}) == 2     # some are flipped
    assert len({round(picture.max().item(), 3) for picture in x}) > 20      # and brighter
    assert x.shape == (24, 3, 96, 96) and owner.dtype == torch.long


def test_hidden_parts_are_gone_from_the_image_the_owners_and_the_list():
    rng, kinds = np.random.default_rng(0), {'one': 0, 'none': 0, 'all': 0}
    things = [[(0, 'red'), (1, 'blue')]] * 60
    owner = torch.zeros(60, 96, 96, dtype=torch.long)
    owner[:, 10:40, 10:40], owner[:, 50:90, 50:90] = 1, 2
    x = torch.ones(60, 3, 96, 96)
    visible = tiny_clipseg.hide_parts(x, owner, things, rng)
    for seen, left, picture in zip(visible, owner, x):
        assert {int(i) for i in left.unique()} - {0} == {i + 1 for i in seen}
        kinds[{0: 'none', 1: 'one', 2: 'all'}[len(seen)]] += 1
        assert picture.all() == (len(seen) == 2)
        if len(seen) == 1:
            where = (slice(15, 35),) * 2 if seen == [1] else (slice(55, 85),) * 2
            # the other one, but for speckles
            assert picture[(slice(None), *where)].mean() < 0.4
    assert kinds['one'] > 15 and kinds['none'] >= 1 and kinds['all'] > 15


# ---- the miniature's captioners

def test_captions_are_vaguer_the_fainter_a_sound():
    said = lambda peak: {language.audio_caption('dog', peak, np.random.default_rng(k))
                         for k in range(30)}
    assert said(0.8) == {'a dog barks', 'a barking dog'}
    assert said(0.65) == {'short deep barking', 'an animal barks again and again'}
    assert said(0.5) == {'an animal makes short calls'}
    assert said(0.2) == {'short bursts with pauses'}


def test_the_quality_of_captions_and_answers_is_counted_pair_by_pair(monkeypatch):
    seen = ['a red dog and a blue cup', 'a green bird', 'a red car']
    heard = ['a dog barks', 'a bird sings', 'a bell rings']
    things = [[('dog', 'red'), ('cup', 'white')], [('bird', 'green'), ('bell', 'red')],
              [('drum', 'red')]]
    found = captioners.caption_quality(seen, heard, things, ['dog', 'bird', 'drum'])
    assert found == {
        'image captions: objects named that are there': 3 / 4,      # not the car
        'image captions: objects there that are named': 3 / 5,      # not bell and drum
        'image captions: colours right': 2 / 3,                     # not the cup's
        'audio captions: true of the sound': pytest.approx(2 / 3),
        'audio captions: true of this sound alone': pytest.approx(2 / 3)}
    asked = []

    def answer(model, tokenizer, prompts, tokens):
        asked.extend(prompts)
        assert tokens == 12
        return ['dog', 'I cannot tell', 'drum'][:len(prompts)]
    monkeypatch.setattr(captioners, 'answer_prompts', answer)
    found = captioners.answer_quality(None, None, seen, heard, ['dog', 'bird', 'bell'])
    assert found['answers right, both'] == pytest.approx(1 / 3)
    assert found['answers refused, audio'] == pytest.approx(1 / 3)
    for k, end in ((1, 'Image caption: a green bird, Audio caption: a bird sings'),
                   (5, 'Image caption: a red car'), (6, 'Audio caption: a dog barks')):
        assert len(asked) == 9 and asked[k].endswith(end)
