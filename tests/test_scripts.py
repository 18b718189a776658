"""What a user meets on the command line: scores, pictures, and one sentence for a wrong input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import baselines
import captions
import evaluate
import inversion
import train
from conftest import ROOT, failed_in_one_sentence
from model import load_model, trained_state
from speed import bench
from tiny import tiny_root     # noqa: F401


def run_evaluate(*arguments):
    return evaluate.evaluate(evaluate.parse_args(list(map(str, arguments))))


@pytest.mark.parametrize('parse_args', [train.parse_args, evaluate.parse_args])
def test_help_names_the_paper(parse_args, capsys):
    with pytest.raises(SystemExit) as end:
        parse_args(['--help'])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and 'ection' in shown and 'Table' in shown


def test_evaluate_scores_the_shipped_checkpoint(small_world, tmp_path, capsys):
    run_evaluate('--task', 'single', '--data-root', small_world, '--json', tmp_path / 'a.json',
                 '--csv', tmp_path / 'a.csv', '--figures', tmp_path / 'pictures')
    scores = json.loads((tmp_path / 'a.json').read_text(encoding='utf-8'))
    columns = {'cIoU', 'cIoU_adap', 'AUC', 'AUC_adap', 'n', 'n_expected'}
    for name in ('vggss', 'is4'):
        ours = scores['single'][name]
        oracle = scores['clipseg_gt_text']['single'][name]
        assert set(ours) == columns == set(oracle)
        assert ours['n'] == ours['n_expected'] == 16
        assert ours['cIoU_adap'] > 40
        assert Image.open(tmp_path / f'pictures/single_{name}.png').width > 400
    said = capsys.readouterr().out
    for word in ('av.pt', 'Tables 1 and 2', 'oracle'):
        assert word in said
    lines = (tmp_path / 'a.csv').read_text(encoding='utf-8').splitlines()
    assert len(lines) == 1 + (7 + 5) * 6                    # Flickr and ADE20K have no oracle


def test_evaluate_says_n_of_m(small_world, tmp_path, capsys):
    root = shutil.copytree(small_world, tmp_path / 'world')
    listed = json.loads((root / 'vggss/vggss.json').read_text())
    (root / f'vggss/frames/{listed[0]["file"]}.jpg').unlink()
    (root / f'vggss/audio/{listed[1]["file"]}.wav').write_bytes(b'')
    run_evaluate('--benchmarks', 'vggss', '--data-root', root, '--json', tmp_path / 'a.json')
    assert 'scored 14 of 16' in capsys.readouterr().out
    scores = json.loads((tmp_path / 'a.json').read_text())['single']['vggss']
    assert (scores['n'], scores['n_expected']) == (14, 16)


def test_one_picture_and_one_sound_of_your_own(script, tmp_path):
    random = np.random.default_rng(0)
    picture, sound, out = (tmp_path / name for name in ('a.jpg', 'a.flac', 'h.png'))
    Image.fromarray(random.integers(0, 255, (90, 160, 3), np.uint8)).save(picture)
    soundfile.write(sound, random.normal(0, 0.1, (44100, 2)), 44100)
    done = script('evaluate.py', '--image', picture, '--audio', sound, '--out', out)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (3 * 160, 90)


@pytest.mark.parametrize('arguments, words', [
    (['--beats', 'nowhere/beats.pt'], 'nowhere/beats.pt.*download'),
    (['--clipseg', 'nowhere/clipseg'], 'nowhere/clipseg.*--clipseg'),
    (['--data-root', 'nowhere/data'], 'nowhere/data.*--data-root'),
    (['--batch-size', '5000'], 'train.csv.*--batch-size'),
    (['--out', 'a' * 300], 'File name too long')])
def test_train_s_wrong_inputs(tiny_root, tmp_path, arguments, words):      # noqa: F811
    given = ['--data-root', str(tiny_root), '--out', str(tmp_path / 'run'), '--device', 'cpu']
    with pytest.raises((OSError, ValueError), match=words):
        train.train(train.parse_args(given + arguments))
    assert not (tmp_path / 'run/summary.json').exists()


def test_train_py_ends_with_one_sentence(script, tmp_path):
    (tmp_path / 'vggsound/frames').mkdir(parents=True)
    (tmp_path / 'vggsound/audio').mkdir()
    (tmp_path / 'vggsound/train.csv').write_text('')
    done = script('train.py', '--data-root', tmp_path, '--out', tmp_path / 'run')
    failed_in_one_sentence(done, 'train.csv', 'lists no sample')


def test_evaluate_s_wrong_inputs(small_world, tmp_path):
    model, _ = load_model('miniature', audio_tokens=2)
    saved = {**trained_state(model), 'audio_tokens': 1, 'prompt': 'A photo of a <*>',
             'preset': 'miniature'}
    torch.save(saved, tmp_path / 'two.pt')
    (tmp_path / 'bad.pt').write_bytes(b'PK truncated')
    pair = ['--image', tmp_path / 'none.jpg', '--audio', tmp_path / 'none.wav']
    two = 'two.pt does not fit.*fga.reduce_potentials.1.weight'
    for root, arguments, words in (
            (small_world, ['--checkpoint', tmp_path / 'none.pt'], 'none.pt.* --checkpoint'),
            (small_world, ['--checkpoint', tmp_path / 'bad.pt'], 'bad.pt is no checkpoint'),
            (small_world, ['--checkpoint', tmp_path / 'two.pt'], two),
            (tmp_path, [], 'vggss.json.*--data-root'),
            (small_world, pair, 'none.jpg')):
        with pytest.raises((OSError, ValueError), match=words) as said:
            run_evaluate('--data-root', root, *arguments)
        assert '\n' not in str(said.value)


# ------------------------------------------------------------------------------------------------
# Options that would be ignored, empty paths, and results that would overwrite something
# ------------------------------------------------------------------------------------------------

def refused(script, arguments, capsys):
    """What the command line says of options that it refuses."""
    with pytest.raises(SystemExit) as end:
        script.parse_args(list(map(str, arguments)))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


PAIR = '--image a.jpg --audio a.wav'
BESIDE_A_PAIR = ['--task all', '--benchmarks is4', '--threshold fixed:0.5', '--batch-size 16',
                 '--limit 3', '--json x', '--csv x', '--figures x', '--save-heatmaps x',
                 '--heatmaps x']
BESIDE_HEATMAPS = ['--checkpoint y', '--untrained', '--prompt a<*>', '--clipseg y', '--beats y',
                   '--device cpu', '--save-heatmaps x']
OF_AV_LLM = ['--lambda-c 1', '--captions x', '--captions-from both', '--same-answers negatives']
IGNORED = [
    (evaluate, '--untrained --checkpoint y', '--untrained and --checkpoint do not go together'),
    (evaluate, '--untrained --variant av', '--untrained and --variant do not go together'),
    (evaluate, '--out heat.png', '--out goes with --image'),
    (evaluate, '--image a.jpg', '--image goes with --audio'),
    (evaluate, '--audio a.wav', '--audio goes with --image'),
    (evaluate, '--examples 3', '--examples goes with --figures'),
    (train, '--cache-share 1', '--cache-share is for --cache-audio'),
    (train, '--epochs 1 --steps 2', '--steps: not allowed with argument --epochs'),
    (train, '--variant av_llm --captions x --captions-from image',
     '--captions-from: not allowed with argument --captions'),
    (captions, 'image --captions-from audio', '--captions-from is for the stage object'),
    (captions, 'image --audio-captions x', '--audio-captions is for the stage audio'),
    (captions, 'all --captions-from image --audio-captions x',
     '--audio-captions is for the stage audio'),
    (captions, 'all --audio-captions x --audio-model y',
     '--audio-captions and --audio-model do not go together'),
    (captions, 'object --retry-failed', '--retry-failed is for the stage image or audio'),
    (bench, 'load --repeats 3', '--repeats is for the section step or evaluate'),
    (bench, 'step --heatmaps 1000', '--heatmaps is for the section metrics'),
    (bench, 'metrics --cached-audio', '--cached-audio is for the section step or memory')]
for kind, first, others in (('--image', PAIR, BESIDE_A_PAIR),
                            ('--heatmaps', '--heatmaps x', BESIDE_HEATMAPS)):
    for more in others:
        words = f'{kind} and {more.split()[0]} do not go together'
        IGNORED.append((evaluate, f'{first} {more}', words))
for more in OF_AV_LLM:
    IGNORED.append((train, more, f'{more.split()[0]} is for --variant av_llm'))


@pytest.mark.parametrize('script, arguments, words', IGNORED)
def test_an_option_that_would_be_ignored_is_an_error(script, arguments, words, capsys):
    assert words in refused(script, arguments.split(), capsys)


def test_the_defaults_of_options_that_others_need():
    args = train.parse_args([])
    assert (args.lambda_c, args.captions_from) == (0.0, 'both')
    assert (args.same_answers, args.cache_share) == ('negatives', 1.0)
    assert train.parse_args(['--variant', 'av_llm']).lambda_c == 1.0
    args = evaluate.parse_args([])
    assert (args.task, args.threshold) == ('all', 'fixed:0.5')
    assert (args.batch_size, args.examples) == (16, 3)


def test_what_goes_together_still_does():
    args = train.parse_args('--variant av_llm --lambda-c 0 --captions x'.split())   # Table 15
    assert (args.lambda_c, args.captions) == (0.0, 'x')
    args = train.parse_args('--cache-audio --cache-share 0.5 --data-root x'.split())
    assert args.cache_audio == Path('x/cache/beats')
    assert train.parse_args(['--cache-audio', 'y']).cache_audio == 'y'
    more = ['--data-root', 'x', '--variant', 'av_llm', '--prompt', 'a <*>', '--preset', 'paper']
    assert evaluate.parse_args([*PAIR.split(), *more]).out == 'heat.png'
    args = captions.parse_args('image --device cpu --llm x --object-tokens 5'.split())
    assert args.captions_from == 'both'
    args = bench.parse_args(['metrics', '--heatmaps', '9'])
    assert (args.repeats, args.heatmaps) == (3, 9)


@pytest.mark.parametrize('script, first, options', [
    (evaluate, [], '--checkpoint --data-root --clipseg --beats --json --csv --figures '
                   '--save-heatmaps --heatmaps --image --audio --out'),
    (train, [], '--out --data-root --clipseg --beats --captions'),
    (captions, ['all'], '--data-root --out --ids --audio-captions --image-model --audio-model '
                        '--llm'),
    (bench, [], '--json')])
def test_an_empty_path_is_an_error(script, first, options, capsys):
    for option in options.split():
        for empty in ('', ' '):
            said = refused(script, [*first, option, empty], capsys)
            assert f'argument {option}: the path is empty' in said


OWN = '--image heat.png --audio a.wav'
OVERWRITING = [
    (evaluate, OWN, '--out would overwrite --image'),       # the default of --out
    (evaluate, f'{OWN} --out hard.png', '--out would overwrite --image'),
    (evaluate, f'{OWN} --out maps/../a.wav', '--out would overwrite --audio'),
    (evaluate, f'{OWN} --out link --checkpoint last.pt', '--out would overwrite --checkpoint'),
    (evaluate, '--json new --csv ./new', '--csv would overwrite --json'),
    (evaluate, '--json last.pt --checkpoint link', '--json would overwrite --checkpoint'),
    (evaluate, '--csv beats.pt --beats beats.pt', '--csv would overwrite --beats'),
    (evaluate, '--json clipseg/config.json --clipseg clipseg',
     '--json would overwrite --clipseg'),
    (evaluate, '--csv maps/is4/confidence.csv --heatmaps maps',
     '--csv would overwrite --heatmaps'),
    (evaluate, '--figures figures --beside slavc=maps --save-heatmaps maps',
     '--save-heatmaps would overwrite --beside'),
    (evaluate, '--save-heatmaps world --data-root world', 'a file of the data'),
    (evaluate, '--figures world/vggss/frames --data-root world', 'a file of the data'),
    (evaluate, '--json world/vggss/vggss.json --data-root world', 'a file of the data'),
    (evaluate, '--csv world/captions.jsonl --data-root world', 'a file of the data'),
    (evaluate, '--json world/world.json --data-root world', 'a file of the data'),
    (baselines, '--json world/vggss/vggss.json --data-root world', 'a file of the data'),
    (inversion, 'train --overwrite --out world/vggss/vggss.json --data-root world',
     'a file of the data'),
    (inversion, 'say --figure world/captions.jsonl --data-root world', 'a file of the data'),
    (captions, 'all --out gama.jsonl --audio-captions gama.jsonl',
     '--out would overwrite --audio-captions'),
    (captions, 'all --ids a.wav --out a.wav', '--out would overwrite --ids'),
    (captions, 'all --out .', '--out . is a folder: name a file in it'),
    (captions, 'all --out new.answers', '--out new.answers is a folder: name a file in it'),
    (bench, '--json .', '--json . is a folder: name a file in it'),
    (train, '--beats last.pt --out . --overwrite', '--out would overwrite --beats'),
    (train, '--beats a/last.pt --out a', '--out would overwrite --beats'),
    (train, '--variant av_llm --captions a/log.jsonl --out a', '--out would overwrite --captions')]


def test_a_result_never_overwrites_an_input_or_another_result(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('heat.png', 'a.wav', 'last.pt', 'beats.pt', 'gama.jsonl', 'audio_captions',
                 'maps/is4/confidence.csv', 'world/vggss/vggss.json', 'world/captions.jsonl',
                 'clipseg/config.json'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('mine')
    (tmp_path / 'link').symlink_to('last.pt')
    (tmp_path / 'hard.png').hardlink_to('heat.png')
    for script, arguments, words in OVERWRITING:
        assert words in refused(script, arguments.split(), capsys), arguments
    weights = ROOT / 'miniature/weights'
    for script, arguments, words in (
            (evaluate, [*OWN.split(), '--out', tmp_path / 'heat.png'],
             '--out would overwrite --image'),
            (evaluate, ['--json', weights / 'av.pt'], 'the weights that ship'),
            (bench, ['--json', weights / 'beats.pt'], '--json would overwrite the weights')):
        assert words in refused(script, arguments, capsys), arguments
    for arguments in (f'{OWN} --out new.png', '--json a.json --csv a.csv --data-root .',
                      '--heatmaps maps --json maps/scores.json',
                      '--json r/a.json --figures r --save-heatmaps r',
                      '--figures r --save-heatmaps r/maps --beside slavc=maps',
                      '--json maps/a.json --figures maps --beside slavc=maps'):
        evaluate.parse_args(arguments.split())
