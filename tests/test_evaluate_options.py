"""Each option of evaluate.py reaches the code: spies on what is loaded, read, asked and written."""

import errno
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import figures.pictures
import model
from benchmarks import maps
from conftest import ROOT
from known_world import KnownModel, Run, code, one_thread  # noqa: F401
from model import PRESETS, PROMPT, RELEASE_PROMPT, load_model, trained_state

WEIGHTS = {name: str(ROOT / f'miniature/weights/{name}.pt') for name in ('av', 'av_llm')}


@pytest.fixture
def run(monkeypatch, tmp_path):
    return Run(monkeypatch, tmp_path)


def parsed(*arguments):
    return evaluate.parse_args([str(argument) for argument in arguments])


# ------------------------------------------------------------------------------------------------
# What is scored
# ------------------------------------------------------------------------------------------------

def test_defaults():
    args = parsed()
    assert (args.task, args.threshold, args.untrained) == ('all', 'fixed:0.5', False)
    assert (args.batch_size, args.examples, args.out) == (16, 3, 'heat.png')
    assert {task: list(names) for task, names in args.wanted.items()} == {
        'single': ['vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k'],
        'segmentation': ['is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k'],
        'robustness': ['ext_vggss', 'ext_flickr', 'robust_s4', 'robust_ms3'],
        'interactive': ['is4', 'vpo_ms'], 'multisource': ['vgg_instruments', 'vgg_duet']}
    for name in ('preset', 'variant', 'checkpoint', 'prompt', 'data_root', 'clipseg', 'beats',
                 'limit', 'json', 'csv', 'figures', 'save_heatmaps', 'heatmaps', 'image', 'audio',
                 'device'):
        assert getattr(args, name) is None


def test_a_task_alone_opens_its_own_benchmarks_and_prints_its_table(run, capsys):
    results = run('--task', 'interactive')
    assert list(results) == ['interactive', 'clipseg_gt_text']
    assert list(results['interactive']) == [root[0] for root in run.roots] == ['is4', 'vpo_ms']
    title, head, _, *rows = capsys.readouterr().out.split('\n\n')[1].strip().split('\n')
    assert title.endswith('(Table 7)') and head.split()[2] == 'IIoU'
    assert [row.split() for row in rows] == [
        ['IS4', 'ours', '33.3', '66.7', '29.2', '40.8', '4'],
        ['oracle', '66.7', '100.0', '42.5', '52.5', '4'],
        ['VPO-MS', 'ours', '66.7', '100.0', '42.5', '52.5', '4'],
        ['oracle', '33.3', '66.7', '29.2', '40.8', '4']]


def test_named_benchmarks_are_read_once_and_stand_in_the_papers_order(run):
    results = run('--benchmarks', 'vpo_ms', 'is4', 'vggss')
    assert {task: list(sets) for task, sets in results.items() if task != 'clipseg_gt_text'} == {
        'single': ['vggss', 'is4', 'vpo_ms'], 'segmentation': ['is4', 'vpo_ms'],
        'interactive': ['is4', 'vpo_ms']}
    assert sorted(root[0] for root in run.roots) == ['is4', 'vggss', 'vpo_ms']
    ids = [name for batch in run.batches for name in batch['ids']]
    assert len(ids) == len(set(ids)) == 12


def test_the_order_holds_although_a_later_task_brings_an_earlier_benchmark(run):
    # single brings ade20k before segmentation brings avs_ms3
    results = run('--benchmarks', 'avs_s4', 'avs_ms3', 'ade20k')
    assert list(results['segmentation']) == ['avs_s4', 'avs_ms3', 'ade20k']


@pytest.mark.parametrize('arguments', [
    ['--image', 'a.png'], ['--audio', 'a.wav'], ['--untrained', '--checkpoint', 'a.pt'],
    ['--heatmaps', 'd', '--checkpoint', 'a.pt'], ['--heatmaps', 'd', '--untrained'],
    ['--heatmaps', 'd', '--device', 'cpu'],
    ['--heatmaps', 'd', '--image', 'a.png', '--audio', 'a.wav'],
    ['--task', 'interactive', '--benchmarks', 'vggss'], ['--benchmarks', 'coco'],
    ['--threshold', 'fixed:1.5'], ['--threshold', 'fixed:'], ['--threshold', 'fixed:²'],
    ['--threshold', 'otsu'],
    ['--threshold', '0.5'], ['--task', 'robustness', '--threshold', 'sweep'],
    ['--batch-size', '0'], ['--limit', '0'], ['--examples', '0'],
    ['--preset', 'huge'], ['--variant', 'ac'], ['--task', 'detection']])
def test_what_does_not_go_together_is_refused(arguments):
    with pytest.raises(SystemExit):
        parsed(*arguments)


@pytest.mark.parametrize('option', ['--json', '--csv', '--figures', '--save-heatmaps', '--out'])
def test_a_result_without_a_place_is_named_before_anything_is_loaded(run, tmp_path, option):
    own = ['--image', tmp_path / 'a_1.png', '--audio', tmp_path / 'a_1.wav']
    what = own if option == '--out' else ['--benchmarks', 'vggss']
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(OSError, match=f'cannot write into {tmp_path}/file.*: name another place'):
        run(*what, option, tmp_path / 'file/a.png')
    if option in ('--json', '--csv', '--out'):
        with pytest.raises(OSError, match=f'cannot write {tmp_path}: it is no file'):
            run(*what, option, tmp_path)
    assert run.loaded == [] and (tmp_path / 'file').read_text() == 'no folder'


def test_batches_are_of_the_size_that_is_asked_for(run):
    run('--benchmarks', 'vggss', '--batch-size', 3)
    assert [len(batch['ids']) for batch in run.batches] == [3, 1]


def test_a_limit_takes_the_first_of_each_condition(run):
    results = run('--benchmarks', 'is4', 'robust_s4', '--limit', 1)
    ids = [name for batch in run.batches for name in batch['ids']]
    assert ids == ['is4.a_1', 'robust_s4.a_1', 'robust_s4.a_1_silence', 'robust_s4.a_1_noise',
                   'robust_s4.a_1_offscreen']
    assert results['single']['is4']['n'] == results['single']['is4']['n_expected'] == 1
    assert results['robustness']['robust_s4']['n'] == 4


def test_a_limit_leaves_incomplete_frames_out_but_no_class_of_the_mixtures(run):
    results = run('--benchmarks', 'is4', 'vgg_duet', '--limit', 1)
    assert [root[-1] for root in run.roots] == [1, 1]
    scores = results['interactive']['is4']                  # a_1 alone, of a frame of two sounds
    assert scores['n'] == 1 and math.isnan(scores['IIoU']) and math.isnan(scores['IAUC_adap'])
    assert len(run.batches[-1]['ids']) == 1 and len(run.batches[-1]['classes']) == 4


def test_more_rows_and_other_candidates_are_for_mixtures(run, tmp_path, capsys):
    labels = tmp_path / 'labels.txt'
    labels.write_text('hen\ncat\ncow\ndog\ntree\n', encoding='utf-8')
    own = ('--benchmarks', 'vgg_duet', '--task', 'multisource')
    plain = run(*own)
    assert run.batches[-1]['names'] is None and set(plain) == {'multisource', 'clipseg_gt_text'}
    results = run(*own, '--mixture-rows', '--mixture-labels', labels)
    names = ['hen', 'cat', 'cow', 'dog', 'tree']
    assert run.batches[-1]['names'] == names
    assert torch.equal(run.batches[-1]['classes'], torch.cat([code(name) for name in names]))
    shown = capsys.readouterr().out
    for row in ('hard_mask', 'nearest_text', 'true_classes'):
        assert f' {row} ' in shown
        assert results[row]['multisource'] == results['multisource'] == plain['multisource']
    labels.write_text('hen\ncat\n', encoding='utf-8')
    with pytest.raises(ValueError, match="lacks 2 of the class names of vgg_duet, e.g. 'cow'"):
        run(*own, '--mixture-labels', labels)
    with pytest.raises(SystemExit):
        parsed('--mixture-rows')
    assert '--mixture-labels go with --task multisource' in capsys.readouterr().err


@pytest.mark.parametrize('policy', ['fixed:0', 'fixed:1', 'fixed:0.25', 'top50', 'adaptive'])
def test_thresholds_from_0_to_1_are_accepted(policy):
    assert parsed('--threshold', policy).threshold == policy


def test_only_extended_sets_ask_for_confidences_and_only_oracle_tasks_for_names(run):
    run('--benchmarks', 'vggss', 'flickr', 'avs_ms3', 'ext_vggss', 'ext_flickr', 'robust_s4',
        'robust_ms3', 'vgg_duet')
    asked = {batch['ids'][0].partition('.')[0]: batch for batch in run.batches}
    classes = torch.cat([code(name) for name in ('cat', 'cow', 'dog', 'hen')])
    assert torch.equal(asked.pop('vgg_duet')['classes'], classes)
    for name, batch in asked.items():
        assert batch['with_confidence'] == name.startswith('ext_')
        if name in ('vggss', 'avs_ms3'):
            words = {word: vector.tolist() for word, vector in batch['words'].items()}
            assert words == {word: code(word)[0].tolist() for word in ('cat', 'cow', 'dog')}
        else:
            assert not batch['words']
    assert len(asked) == 7


def test_the_model_is_shown_frames_normalised_as_clip_s_and_hears_their_sounds(run):
    run('--benchmarks', 'vggss')
    [batch] = run.batches
    mean = (.48145466, .4578275, .40821073)
    std = (.26862954, .26130258, .27577711)
    for k, (image, wav) in enumerate(zip(batch['image'], batch['wav']), 1):
        colour = (40 * k, 10, 255 - 40 * k)
        wanted = [(value / 255 - m) / s for value, m, s in zip(colour, mean, std)]
        assert image.shape == (3, 96, 96) and wav.shape == (32000,)
        assert image.mean((1, 2)).tolist() == pytest.approx(wanted, abs=1e-5)
        assert torch.allclose(wav, torch.tensor(k / 10), atol=1e-3)


# ------------------------------------------------------------------------------------------------
# Which model
# ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, checkpoint', [
    ([], WEIGHTS['av']), (['--variant', 'av'], WEIGHTS['av']),
    (['--variant', 'av_llm'], WEIGHTS['av_llm']), (['--checkpoint', 'my.pt'], 'my.pt'),
    (['--variant', 'av_llm', '--checkpoint', 'my.pt'], 'my.pt')])
def test_the_checkpoint_is_read_loaded_printed_and_reported(run, tmp_path, capsys, arguments,
                                                           checkpoint):
    run('--benchmarks', 'vggss', '--figures', tmp_path / 'p', '--threshold', 'top50',
        '--reading', 'paper', *arguments)
    [loaded] = run.loaded
    file = checkpoint.rpartition('/')[2]
    assert run.reports[0][-1]['reading'] == 'paper'
    assert run.reports[0][-1]['threshold'] == 'top50' and run.model.device.type == 'meta'
    assert run.checkpoints == [checkpoint] and loaded['checkpoint'] == checkpoint
    assert loaded['prompt'] is None and run.reports[0][-1]['checkpoint'].endswith(file)
    assert re.search(rf'^checkpoint: (.*/)?{re.escape(file)}$', capsys.readouterr().out, re.M)


def test_prompt_and_backbones_reach_the_model(run):
    common = ['--benchmarks', 'vggss', '--prompt', 'My <*>', '--clipseg', 'my/clipseg',
              '--beats', 'my/beats.pt']
    run(*common)
    run(*common, '--untrained')
    for loaded in run.loaded:
        assert (loaded['prompt'], loaded['clipseg']) == ('My <*>', 'my/clipseg')
        assert loaded['beats'] == 'my/beats.pt'


def test_an_untrained_model_has_no_checkpoint_and_the_draws_of_seed_0(run, tmp_path):
    torch.manual_seed(5)
    run('--benchmarks', 'vggss', '--untrained', '--figures', tmp_path / 'p')
    [loaded] = run.loaded
    torch.manual_seed(0)
    assert loaded['drawn'] == torch.rand(1).item()
    assert run.checkpoints == [] and loaded['checkpoint'] is None
    assert loaded['preset'] == 'miniature'
    assert run.reports[0][-1]['checkpoint'] == 'none, untrained'
    assert run.model.device.type == 'meta'                  # the one that start_processes gave


def test_backbones_and_initial_shift_are_the_given_ones_or_the_presets(monkeypatch):
    built = []
    monkeypatch.setattr(model, 'load_clipseg', lambda name: (f'clipseg of {name}', 'tokenizer'))
    monkeypatch.setattr(model, 'load_beats', lambda name: f'beats of {name}')
    monkeypatch.setattr(model, 'prompt_ids', lambda tokenizer, prompt: prompt)
    monkeypatch.setattr(model, 'SoundLocalizer', lambda *parts: built.append(parts))
    for preset, config in PRESETS.items():
        load_model(preset)
        load_model(preset, None, 'My <*>', 4, clipseg='mine', beats='my.pt')
        own = f'clipseg of {config.clipseg}', f'beats of {config.beats}', PROMPT, 1
        given = 'clipseg of mine', 'beats of my.pt', 'My <*>', 4
        assert built[-2:] == [(*own, config.w, config.b), (*given, config.w, config.b)]


PAPER_ROWS = {'av': "paper's AV alignment 49.5 64.0 46.3 54.1",
              'av_llm': "paper's AV + LLM alignment 52.1 64.5 46.9 54.5"}


@pytest.mark.parametrize('saved, arguments, preset, row', [
    (('miniature', 'av'), [], 'miniature', None), (('paper', 'av'), [], 'paper', 'av'),
    (('paper', 'av_llm'), [], 'paper', 'av_llm'), ((), [], 'paper', 'av'),     # the authors' file
    (('paper', 'av'), ['--variant', 'av_llm'], 'paper', 'av_llm'),
    (('miniature', 'av'), ['--preset', 'paper'], 'paper', 'av'),
    (('paper', 'av'), ['--preset', 'miniature'], 'miniature', None)])
def test_scale_and_paper_row_are_the_command_lines_or_the_checkpoints(
        monkeypatch, tmp_path, capsys, saved, arguments, preset, row):
    run = Run(monkeypatch, tmp_path, dict(zip(('preset', 'variant'), saved)))
    run('--benchmarks', 'vggss', '--checkpoint', 'my.pt', '--figures', tmp_path / 'p', *arguments)
    assert run.reports[0][1]['single'][1] == row            # in the report's table
    size_and_seconds = (96, 2.0) if preset == 'miniature' else (352, 10.0)
    assert run.loaded[0]['preset'] == preset and run.roots[0][2:4] == size_and_seconds
    said = re.sub(' +', ' ', capsys.readouterr().out)
    assert [name for name, line in PAPER_ROWS.items() if line in said] == ([row] if row else [])
    assert ('paper, oracle 49.5 65.3 48.6 55.7' in said) == (row is not None)


def test_no_checkpoint_ships_for_the_papers_scale(run):
    with pytest.raises(ValueError, match='no checkpoint ships'):
        run('--preset', 'paper')


@pytest.mark.parametrize('arguments, device', [([], None), (['--device', 'cpu'], 'cpu')])
def test_the_device_is_the_one_asked_for(run, arguments, device):
    run('--benchmarks', 'vggss', *arguments)
    assert run.devices == [device]


def test_a_checkpoint_is_named_as_it_was_given(run, capsys):
    run('--benchmarks', 'vggss', '--checkpoint', 'D:/my.pt')
    assert 'checkpoint: D:/my.pt\n' in capsys.readouterr().out


def test_the_data_root_is_the_given_one_or_the_presets_which_the_miniature_draws(run, monkeypatch):
    from miniature import world
    drawn = []
    own = [str(PRESETS[preset].data_root) for preset in ('miniature', 'paper')]
    monkeypatch.setattr(world, 'build', lambda root: drawn.append(str(root)))
    run('--benchmarks', 'vggss', '--limit', 2, root='elsewhere')
    assert run.roots[-1] == ('vggss', 'elsewhere', 96, 2.0, 2) and drawn == []
    run('--benchmarks', 'vggss', root=None)
    assert run.roots[-1] == ('vggss', own[0], 96, 2.0, None) and drawn == own[:1]
    run('--benchmarks', 'vggss', '--preset', 'paper', '--checkpoint', 'my.pt', root=None)
    assert run.roots[-1] == ('vggss', own[1], 352, 10.0, None) and drawn == own[:1]


def test_a_given_prompt_beats_the_checkpoints_which_beats_the_default(tmp_path):
    trained, _ = load_model()
    saved = {**trained_state(trained), 'preset': 'miniature'}
    own = 'A photo of the <*> now'
    torch.save({**saved, 'prompt': own}, tmp_path / 'own.pt')
    torch.save(saved, tmp_path / 'authors.pt')              # which does not name its prompt
    for file, given, wanted in (
            (None, None, PROMPT), ('own.pt', None, own), ('own.pt', 'The <*>', 'The <*>'),
            ('authors.pt', None, RELEASE_PROMPT), ('authors.pt', PROMPT, PROMPT)):
        arguments = ['--checkpoint', tmp_path / file] if file else ['--untrained']
        args = parsed(*arguments, *(['--prompt', given] if given else []))
        loaded, tokenizer, preset, variant, _ = evaluate.load(
            torch.device('cpu'), args.checkpoint, args.variant, args.preset, args.untrained,
            prompt=args.prompt, clipseg=None, beats=None)
        assert (preset, variant) == ('miniature', 'av')
        before, after = (tokenizer(part.strip()).input_ids for part in wanted.split('<*>'))
        assert loaded.prompt_before.tolist() == before[:-1]
        assert loaded.prompt_after.tolist() == after[1:]


# ------------------------------------------------------------------------------------------------
# A picture of one's own
# ------------------------------------------------------------------------------------------------

class OnePair(KnownModel):
    """Hot at the foot of the picture."""

    def parameters(self):
        return iter([torch.zeros(1)])

    def heatmap(self, image, wav, size):
        self.asked = image, wav, size
        return torch.linspace(0, 1, size[0]).square()[None, :, None].expand(1, *size).clone()


def test_a_picture_and_a_sound_of_ones_own_become_frame_heatmap_overlay(run, tmp_path, capsys):
    run.model = OnePair()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6                                         # orientation: turn clockwise to show
    Image.fromarray(pixels).save(tmp_path / 'mine.png', exif=tag)
    run('--image', tmp_path / 'mine.png', '--audio', tmp_path / 'c_1.wav',
        '--out', tmp_path / 'out.png', root=None)
    image, wav, size = run.model.asked
    assert image.shape == (1, 3, 96, 96) and size == (30, 20)
    assert wav.shape == (1, 32000) and torch.allclose(wav, torch.tensor(0.4), atol=1e-3)
    sheet = np.asarray(Image.open(tmp_path / 'out.png'))
    frame = np.rot90(pixels, -1)
    heat = np.broadcast_to(np.linspace(0, 1, 30, dtype=np.float32)[:, None] ** 2, (30, 20))
    tiles = [frame, figures.pictures.heat_colours(heat), figures.pictures.overlay(frame, heat)]
    for k, tile in enumerate(tiles):
        assert np.abs(sheet[:, 20 * k:20 * (k + 1)].astype(int) - tile).max() <= 1
    said = capsys.readouterr().out
    assert '30.0% of the frame is over 0.5, the peak is 1.00' in said and run.roots == []


def test_a_picture_that_cannot_be_written_leaves_what_was_there(run, tmp_path, monkeypatch):
    run.model = OnePair()
    Image.new('RGB', (30, 20)).save(tmp_path / 'mine.png')
    (tmp_path / 'out.png').write_text('mine')
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match='cannot write .*out.png .No space left on device.: free'):
        run('--image', tmp_path / 'mine.png', '--audio', tmp_path / 'c_1.wav',
            '--out', tmp_path / 'out.png', root=None)
    assert (tmp_path / 'out.png').read_text() == 'mine'
    with pytest.raises(OSError, match='cannot write .*out.xyz .*name a .png or .jpg file'):
        run('--image', tmp_path / 'mine.png', '--audio', tmp_path / 'c_1.wav',
            '--out', tmp_path / 'out.xyz', root=None)
    assert {path.name for path in tmp_path.glob('out*')} == {'out.png'}


def test_a_heatmap_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    maps.save_heatmaps(tmp_path, ['a'], torch.ones(1, 2, 2))
    monkeypatch.setattr(os, 'fsync', full_disk)
    with pytest.raises(OSError, match='cannot write .*a.npy .No space left.*--save-heatmaps'):
        maps.save_heatmaps(tmp_path, ['a'], torch.zeros(1, 2, 2))
    assert [file.name for file in tmp_path.iterdir()] == ['a.npy']
    assert np.load(tmp_path / 'a.npy').all()                # the one that was there


def full_disk(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')
