"""What a user meets on the command line: scores, pictures, and one clear sentence for every wrong input."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import captions
import evaluate
import train
from conftest import ROOT, failed_in_one_sentence
from model import load_model, trained_state
from speed import bench
from tiny import tiny_root     # noqa: F401


def test_help_names_the_paper(script):
    for name in ('train.py', 'evaluate.py'):
        shown = script(name, '--help')
        assert shown.returncode == 0 and 'ection' in shown.stdout and 'Table' in shown.stdout


def test_evaluate_scores_the_shipped_checkpoint(small_world, script, tmp_path):
    done = script('evaluate.py', '--task', 'single', '--data-root', small_world, '--json', tmp_path / 'a.json',
                  '--csv', tmp_path / 'a.csv', '--figures', tmp_path / 'pictures')
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / 'a.json').read_text())
    for name in ('vggss', 'is4'):
        ours, oracle = scores['single'][name], scores['clipseg_gt_text']['single'][name]
        assert set(ours) == {'cIoU', 'cIoU_adap', 'AUC', 'AUC_adap', 'n', 'n_expected'} == set(oracle)
        assert ours['n'] == ours['n_expected'] == 16 and ours['cIoU_adap'] > 40
        assert Image.open(tmp_path / f'pictures/single_{name}.png').width > 400
    assert 'av.pt' in done.stdout and 'Tables 1 and 2' in done.stdout and 'oracle' in done.stdout
    assert len((tmp_path / 'a.csv').read_text().splitlines()) == 1 + (7 + 5) * 6       # Flickr and ADE20K have no oracle


def test_evaluate_says_n_of_m(small_world, script, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    listed = json.loads((root / 'vggss/vggss.json').read_text())
    (root / f'vggss/frames/{listed[0]["file"]}.jpg').unlink()
    (root / f'vggss/audio/{listed[1]["file"]}.wav').write_bytes(b'')
    done = script('evaluate.py', '--benchmarks', 'vggss', '--data-root', root, '--json', tmp_path / 'a.json')
    assert done.returncode == 0 and 'scored 14 of 16' in done.stdout, done.stdout + done.stderr
    scores = json.loads((tmp_path / 'a.json').read_text())['single']['vggss']
    assert (scores['n'], scores['n_expected']) == (14, 16)


def test_one_picture_and_one_sound_of_your_own(script, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), np.uint8)).save(tmp_path / 'a.jpg')
    soundfile.write(tmp_path / 'a.flac', np.random.default_rng(0).normal(0, 0.1, (44100, 2)), 44100)
    done = script('evaluate.py', '--image', tmp_path / 'a.jpg', '--audio', tmp_path / 'a.flac',
                  '--out', tmp_path / 'h.png')
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / 'h.png').size == (3 * 160, 90)


@pytest.mark.parametrize('arguments, words', [
    (['--beats', 'nowhere/beats.pt'], 'nowhere/beats.pt.*download'),
    (['--clipseg', 'nowhere/clipseg'], 'nowhere/clipseg.*--clipseg'),
    (['--data-root', 'nowhere/data'], 'nowhere/data.*--data-root'),
    (['--batch-size', 5000], 'train.csv.*--batch-size'),
    (['--out', 'a' * 300], 'File name too long')])
def test_train_s_wrong_inputs(tiny_root, tmp_path, arguments, words):      # noqa: F811
    given = ['--data-root', tiny_root, '--out', tmp_path / 'run', '--device', 'cpu', *arguments]
    with pytest.raises((OSError, ValueError), match=words):
        train.train(train.parse_args(list(map(str, given))))
    assert not (tmp_path / 'run/summary.json').exists()


def test_train_py_ends_with_one_sentence(script, tmp_path):
    (tmp_path / 'vggsound/frames').mkdir(parents=True)
    (tmp_path / 'vggsound/audio').mkdir()
    (tmp_path / 'vggsound/train.csv').write_text('')
    done = script('train.py', '--data-root', tmp_path, '--out', tmp_path / 'run')
    failed_in_one_sentence(done, 'train.csv', 'lists no sample')


def test_evaluate_s_wrong_inputs(small_world, tmp_path):
    model, _ = load_model('miniature', audio_tokens=2)
    torch.save({**trained_state(model), 'audio_tokens': 1, 'prompt': 'A photo of a <*>',
                'preset': 'miniature'}, tmp_path / 'two.pt')
    (tmp_path / 'bad.pt').write_bytes(b'PK truncated')
    for arguments, words in (
            (['--checkpoint', tmp_path / 'none.pt'], 'none.pt.* --checkpoint'),
            (['--checkpoint', tmp_path / 'bad.pt'], 'bad.pt is not a checkpoint'),
            (['--checkpoint', tmp_path / 'two.pt'], 'two.pt does not fit.*fga.reduce_potentials.1.weight'),
            (['--data-root', tmp_path], 'vggss.json.*--data-root'),
            (['--image', tmp_path / 'none.jpg', '--audio', tmp_path / 'none.wav'], 'none.jpg')):
        root = [] if '--data-root' in arguments else ['--data-root', small_world]
        with pytest.raises((OSError, ValueError), match=words) as said:
            evaluate.evaluate(evaluate.parse_args(list(map(str, [*root, *arguments]))))
        assert '\n' not in str(said.value)


# ------------------------------------------------------------------------------------------------
# Options that would be ignored, empty paths, and results that would overwrite something
# ------------------------------------------------------------------------------------------------

def refused(parse_args, arguments, capsys):
    """What the command line says of options that it refuses."""
    with pytest.raises(SystemExit) as end:
        parse_args(list(map(str, arguments)))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


PAIR = ['--image', 'a.jpg', '--audio', 'a.wav']


@pytest.mark.parametrize('parse_args, arguments, words', [
    *[(evaluate.parse_args, [*PAIR, *more], f'--image and {more[0]} do not go together') for more in (
        ['--task', 'all'], ['--benchmarks', 'is4'], ['--threshold', 'fixed:0.5'], ['--batch-size', 16],
        ['--limit', 3], ['--json', 'x'], ['--csv', 'x'], ['--figures', 'x'], ['--save-heatmaps', 'x'], ['--heatmaps', 'x'])],
    *[(evaluate.parse_args, ['--heatmaps', 'x', *more], f'--heatmaps and {more[0]} do not go together') for more in (
        ['--checkpoint', 'y'], ['--untrained'], ['--prompt', 'a <*>'], ['--clipseg', 'y'], ['--beats', 'y'],
        ['--device', 'cpu'], ['--save-heatmaps', 'x'])],
    (evaluate.parse_args, ['--untrained', '--checkpoint', 'y'], '--untrained and --checkpoint do not go together'),
    (evaluate.parse_args, ['--untrained', '--variant', 'av'], '--untrained and --variant do not go together'),
    (evaluate.parse_args, ['--out', 'heat.png'], '--out goes with --image'),
    (evaluate.parse_args, ['--image', 'a.jpg'], '--image goes with --audio'),
    (evaluate.parse_args, ['--audio', 'a.wav'], '--audio goes with --image'),
    (evaluate.parse_args, ['--examples', 3], '--examples goes with --figures'),
    *[(train.parse_args, more, f'{more[0]} is for --variant av_llm') for more in (
        ['--lambda-c', 1], ['--captions', 'x'], ['--captions-from', 'both'], ['--same-answers', 'negatives'])],
    (train.parse_args, ['--cache-share', 1], '--cache-share is for --cache-audio'),
    (train.parse_args, ['--epochs', 1, '--steps', 2], '--epochs and --steps do not go together'),
    (train.parse_args, ['--variant', 'av_llm', '--captions', 'x', '--captions-from', 'image'],
     '--captions and --captions-from do not go together'),
    (captions.parse_args, ['image', '--captions-from', 'both'], '--captions-from is for the stage object'),
    (captions.parse_args, ['image', '--audio-captions', 'x'], '--audio-captions is for the stage audio'),
    (captions.parse_args, ['all', '--captions-from', 'image', '--audio-captions', 'x'], '--audio-captions is for the stage audio'),
    (captions.parse_args, ['object', '--retry-failed'], '--retry-failed is for the stage image or audio'),
    (captions.parse_args, ['all', '--retry-failed', '--overwrite'], 'leave out --retry-failed'),
    (bench.parse_args, ['load', '--repeats', 3], '--repeats is for the section step or evaluate'),
    (bench.parse_args, ['step', '--heatmaps', 1000], '--heatmaps is for the section metrics'),
    (bench.parse_args, ['metrics', '--cached-audio'], '--cached-audio is for the section step or memory')])
def test_an_option_that_would_be_ignored_is_an_error(parse_args, arguments, words, capsys):
    assert words in refused(parse_args, arguments, capsys)


def test_what_goes_together_still_does_and_defaults_are_the_same():
    args = train.parse_args([])
    assert (args.lambda_c, args.captions_from, args.same_answers, args.cache_share) == (0.0, 'both', 'negatives', 1.0)
    args = train.parse_args(['--variant', 'av_llm', '--lambda-c', '0', '--captions', 'x'])     # a sweep of Table 15
    assert (args.lambda_c, args.captions) == (0.0, 'x') and train.parse_args(['--variant', 'av_llm']).lambda_c == 1.0
    args = train.parse_args(['--cache-audio', '--cache-share', '0.5', '--data-root', 'x'])
    assert args.cache_audio == '' and train.parse_args(['--cache-audio', 'y']).cache_audio == 'y'
    args = evaluate.parse_args([])
    assert (args.task, args.threshold, args.batch_size, args.examples) == ('all', 'fixed:0.5', 16, 3)
    args = evaluate.parse_args([*PAIR, '--data-root', 'x', '--variant', 'av_llm', '--prompt', 'a <*>', '--preset', 'paper'])
    assert args.out == 'heat.png'
    assert captions.parse_args(['image', '--device', 'cpu', '--llm', 'x', '--object-tokens', '5']).captions_from == 'both'
    args = bench.parse_args(['metrics', '--heatmaps', '9'])
    assert (args.repeats, args.heatmaps) == (3, 9)


@pytest.mark.parametrize('parse_args, options', [
    (evaluate.parse_args, ['--checkpoint', '--data-root', '--clipseg', '--beats', '--json', '--csv', '--figures',
                           '--save-heatmaps', '--heatmaps', '--image', '--audio', '--out']),
    (train.parse_args, ['--out', '--data-root', '--clipseg', '--beats', '--captions']),
    (lambda given: captions.parse_args(['all', *given]), ['--data-root', '--out', '--ids', '--audio-captions', '--image-model',
                                                          '--audio-model', '--llm']),
    (bench.parse_args, ['--json'])])
def test_an_empty_path_is_an_error(parse_args, options, capsys):
    for option in options:
        for empty in ('', ' '):
            assert f'argument {option}: the path is empty' in refused(parse_args, [option, empty], capsys)


def test_a_result_never_overwrites_an_input_or_another_result(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('heat.png', 'a.wav', 'last.pt', 'beats.pt', 'gama.jsonl', 'audio_captions', 'maps/is4/confidence.csv',
                 'world/vggss/vggss.json', 'world/captions.jsonl', 'clipseg/config.json'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('mine')
    (tmp_path / 'link').symlink_to('last.pt')
    (tmp_path / 'hard.png').hardlink_to('heat.png')
    pair = ['--image', 'heat.png', '--audio', 'a.wav']
    for parse_args, arguments, words in (
            (evaluate.parse_args, pair, '--out would overwrite --image'),                  # the default of --out
            (evaluate.parse_args, [*pair, '--out', tmp_path / 'heat.png'], '--out would overwrite --image'),
            (evaluate.parse_args, [*pair, '--out', 'hard.png'], '--out would overwrite --image'),
            (evaluate.parse_args, [*pair, '--out', 'maps/../a.wav'], '--out would overwrite --audio'),
            (evaluate.parse_args, [*pair, '--out', 'link', '--checkpoint', 'last.pt'], '--out would overwrite --checkpoint'),
            (evaluate.parse_args, ['--json', 'new', '--csv', './new'], '--csv would overwrite --json'),
            (evaluate.parse_args, ['--json', 'last.pt', '--checkpoint', 'link'], '--json would overwrite --checkpoint'),
            (evaluate.parse_args, ['--csv', 'beats.pt', '--beats', 'beats.pt'], '--csv would overwrite --beats'),
            (evaluate.parse_args, ['--json', 'clipseg/config.json', '--clipseg', 'clipseg'], '--json would overwrite --clipseg'),
            (evaluate.parse_args, ['--csv', 'maps/is4/confidence.csv', '--heatmaps', 'maps'], '--csv would overwrite --heatmaps'),
            (evaluate.parse_args, ['--json', 'world/vggss/vggss.json', '--data-root', 'world'], 'a file of the data'),
            (evaluate.parse_args, ['--csv', 'world/captions.jsonl', '--data-root', 'world'],
             'a file of the data'),
            (evaluate.parse_args, ['--json', 'world/world.json', '--data-root', 'world'],
             'a file of the data'),
            (evaluate.parse_args, ['--json', ROOT / 'miniature/weights/av.pt'], 'the weights that ship'),
            (captions.parse_args, ['all', '--out', 'gama.jsonl', '--audio-captions', 'gama.jsonl'],
             '--out would overwrite --audio-captions'),
            (captions.parse_args, ['audio', '--out', 'captions.jsonl', '--audio-captions', 'audio_captions'],
             'the folder of the audio stage would overwrite --audio-captions'),
            (captions.parse_args, ['all', '--ids', 'a.wav', '--out', 'a.wav'], '--out would overwrite --ids'),
            (captions.parse_args, ['all', '--out', '.'], '--out . is a folder: name a file in it'),
            (bench.parse_args, ['--json', ROOT / 'miniature/weights/beats.pt'], '--json would overwrite the weights'),
            (bench.parse_args, ['--json', '.'], '--json . is a folder: name a file in it'),
            (train.parse_args, ['--beats', 'last.pt', '--out', '.', '--overwrite'], '--out would overwrite --beats')):
        assert words in refused(parse_args, arguments, capsys), arguments
    for arguments in ([*pair, '--out', 'new.png'], ['--json', 'a.json', '--csv', 'a.csv', '--data-root', '.'],
                      ['--heatmaps', 'maps', '--json', 'maps/scores.json']):
        evaluate.parse_args(arguments)
