"""What a user meets on the command line: scores, pictures, and one clear sentence for every wrong input."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from conftest import failed_in_one_sentence
from model import load_model, trained_state


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
    (['--beats', 'nowhere/beats.pt'], ['nowhere/beats.pt', 'download']),
    (['--clipseg', 'nowhere/clipseg'], ['nowhere/clipseg', '--clipseg']),
    (['--data-root', 'nowhere/data'], ['nowhere/data', '--data-root']),
    (['--batch-size', 5000], ['train.csv', '--batch-size']),
])
def test_train_s_wrong_inputs(small_world, script, tmp_path, arguments, words):
    root = [] if '--data-root' in arguments else ['--data-root', small_world]
    failed_in_one_sentence(script('train.py', '--out', tmp_path / 'run', *root, *arguments), *words)
    assert not (tmp_path / 'run/summary.json').exists()


def test_train_names_empty_lists_and_bad_samples_and_skips_them_only_when_told(small_world, script, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    frames = sorted((root / 'vggsound/frames').glob('train*'))
    frames[0].write_bytes(b'torn')
    common = ['--data-root', root, '--batch-size', 8, '--epochs', 1]
    failed_in_one_sentence(script('train.py', *common, '--out', tmp_path / 'a'), frames[0].name, '--skip-bad-samples')
    done = script('train.py', *common, '--out', tmp_path / 'b', '--skip-bad-samples')
    assert done.returncode == 0 and f'skipped (1 so far): {frames[0]}' in done.stdout + done.stderr
    assert torch.load(tmp_path / 'b/last.pt', weights_only=True)['trainer']['skipped'] == 1
    (root / 'vggsound/train.csv').write_text('')
    failed_in_one_sentence(script('train.py', *common, '--out', tmp_path / 'c'), 'train.csv', 'lists no sample')


def test_a_full_disk_leaves_the_last_good_checkpoint(small_world, script, tmp_path):
    common = ['--data-root', small_world, '--batch-size', 8, '--save-seconds', 0, '--out', tmp_path, '--resume']
    assert script('train.py', *common, '--steps', 2).returncode == 0
    (tmp_path / 'summary.json').unlink()
    good = (tmp_path / 'last.pt').read_bytes()
    # a limit on file size is what a full disk looks like to the program, without filling one
    resource = pytest.importorskip('resource')          # not on Windows
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (len(good) // 2,) * 2)
    failed_in_one_sentence(script('train.py', *common, '--steps', 4, preexec_fn=limit), 'last.pt', 'free some space')
    assert (tmp_path / 'last.pt').read_bytes() == good and not list(tmp_path.glob('*.partial'))


def test_evaluate_s_wrong_inputs(small_world, script, tmp_path):
    model, _ = load_model('miniature', audio_tokens=2)
    torch.save({**trained_state(model), 'audio_tokens': 1, 'prompt': 'A photo of a <*>',
                'preset': 'miniature'}, tmp_path / 'two.pt')
    (tmp_path / 'bad.pt').write_bytes(b'PK torn')
    for arguments, words in (
            (['--checkpoint', tmp_path / 'none.pt'], ['none.pt', '--checkpoint']),
            (['--checkpoint', tmp_path / 'bad.pt'], ['bad.pt', 'not a checkpoint']),
            (['--checkpoint', tmp_path / 'two.pt'], ['two.pt does not fit', 'expected (1, 128, 1)']),
            (['--data-root', tmp_path], ['vggss.json', '--data-root']),
            (['--image', tmp_path / 'none.jpg', '--audio', tmp_path / 'none.wav'], ['none.jpg'])):
        root = [] if '--data-root' in arguments else ['--data-root', small_world]
        failed_in_one_sentence(script('evaluate.py', *root, *arguments), *words)


