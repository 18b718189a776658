"""Each row of Tables 9 to 15 is trained with its own options, once, beside the paper's numbers."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import ablations
import train
from ablations import TABLES, commands_left, folder_of, main, mean_text
from figures.tables import paper_scores

# what the two scripts leave behind, without torch
TRAIN = '''
import json, pathlib, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
folder = pathlib.Path(options['--out'])
with open(folder / 'commands', 'a') as file:
    file.write('train\\n')
print('at step 7')
if options['--seed'] == '5' and options.get('--image-mask') == 'soft':
    sys.exit('train.py: the loss is not finite')
(folder / 'last.pt').touch()
(folder / 'summary.json').touch()
'''
EVALUATE = '''
import json, pathlib, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
path = pathlib.Path(options['--json'])
with open(path.parent / 'commands', 'a') as file:
    file.write('evaluate\\n')
seed = int(path.parent.name[-1])
cells = {'cIoU': 40 + seed, 'AUC': 50 + seed, 'mIoU': 60, 'F': 70, 'AP': 80, 'max_F1': 90 + seed}
path.write_text(json.dumps({'single': {'vggss': cells, 'flickr': {}},
                            'segmentation': {'avs_s4': cells},
                            'robustness': {'ext_vggss': cells, 'ext_flickr': {}}}))
'''


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """train.py and evaluate.py that end at once. -> --out"""
    (tmp_path / 'train.py').write_text(TRAIN, encoding='utf-8')
    (tmp_path / 'evaluate.py').write_text(EVALUATE, encoding='utf-8')
    monkeypatch.setattr(ablations, 'ROOT', tmp_path)
    return tmp_path / 'out'


def changed(options):
    """-> {setting of train.py: its value}, where it is not that of --variant av"""
    usual = vars(train.parse_args(['--variant', 'av']))
    given = vars(train.parse_args(options))
    return {name: given[name] for name in usual if given[name] != usual[name] and name != 'out'}


AV_LLM = {'variant': 'av_llm', 'lambda_c': 1}
CHANGED = {
    9: {'A': {'lambda_f': 0, 'lambda_reg': 0}, 'B': {'lambda_i': 0, 'lambda_reg': 0},
        'C': {'lambda_reg': 0}, 'D': {'lambda_f': 0}, 'E': {'lambda_i': 0}, 'F': {}},
    10: {'av': {}, 'audio': AV_LLM | {'captions_from': 'audio'},
         'vision': AV_LLM | {'captions_from': 'image'}, 'audio_vision': AV_LLM},
    11: {'1': {}, '2': {'audio_tokens': 2}, '4': {'audio_tokens': 4}, '8': {'audio_tokens': 8}},
    12: {'A photo of a <*>': {}, 'A photograph of a <*>': {'prompt': 'A photograph of a <*>'},
         'An image of a <*>': {'prompt': 'An image of a <*>'}, '<*>': {'prompt': '<*>'}},
    13: {'hard image': {'feature_mask': 'image'}, 'feature feature': {'image_mask': 'feature'},
         'soft feature': {'image_mask': 'soft'}, 'hard feature': {}},
    14: {'0.2 0.0': {'p_pos': 0.2}, '0.4 0.0': {}, '0.6 0.0': {'p_pos': 0.6},
         '0.4 0.2': {'p_neg': 0.2}},
    15: {'0.0': {}, '0.01': AV_LLM | {'lambda_c': 0.01}, '0.1': AV_LLM | {'lambda_c': 0.1},
         '1': AV_LLM, '10': AV_LLM | {'lambda_c': 10}, '100': AV_LLM | {'lambda_c': 100}}}


@pytest.mark.parametrize('number', TABLES)
def test_each_row_is_the_paper_s_and_trained_with_its_own_settings(number):
    assert {row for _, _, row in paper_scores([number])} == set(CHANGED[number])
    assert {row: changed(options) for row, options in TABLES[number].items()} == CHANGED[number]


def test_runs_of_equal_options_share_a_folder_and_others_do_not(tmp_path):
    runs = {}
    for rows in TABLES.values():
        for options in rows.values():
            for seed in (0, 1):
                runs.setdefault(folder_of(tmp_path, 'miniature', options, seed), []).append(
                    (options, seed))
    assert all(run == several[0] for several in runs.values() for run in several)
    assert len(runs) == 2 * 25
    assert len(runs[tmp_path / 'miniature/av-seed0']) == 7          # the default row of each table
    names = ('Foo', 'foo', 'a/b', 'a-b', 'a_b', 'a=b')
    options = [['--variant', 'av', '--clipseg', name] for name in names]
    folders = {folder_of(tmp_path, 'miniature', several, 0) for several in options}
    assert len(folders) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / 'miniature'}


def test_a_run_needs_only_the_commands_that_are_left(tmp_path):
    def left():
        return [' '.join(c).split()[0:1] + (['--resume'] if '--resume' in c else [])
                for c in commands_left(tmp_path, ['--variant', 'av'])]

    assert left() == [['train.py'], ['evaluate.py']]
    for name in ('previous.pt', 'last.pt'):                         # it was interrupted
        (tmp_path / name).touch()
        assert left() == [['train.py', '--resume'], ['evaluate.py']]
    (tmp_path / 'summary.json').touch()                             # it has finished
    assert left() == [['evaluate.py']]
    os.utime(tmp_path / 'last.pt', (5, 5))
    scores = {'single': dict.fromkeys(ablations.SCORED, {})}
    for damaged in ('', '[1]', '{"single": 3}', '{"single": {"vggss": {}}}'):       # or incomplete
        (tmp_path / 'scores.json').write_text(damaged)
        assert left() == [['evaluate.py']]
    (tmp_path / 'scores.json').write_text(json.dumps(scores))
    assert left() == []
    os.utime(tmp_path / 'scores.json', (4, 4))                      # the scores of an older last.pt
    assert left() == [['evaluate.py']]


def test_the_table_has_the_mean_of_the_seeds_beside_the_paper_and_is_found_again(stubs, capsys):
    command = ['--table', '13', '--seeds', '0', '2', '--out', str(stubs), '--jobs', '2']
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith('hard image'))
    assert row.split('image  ')[-1].split() == (
        '41.0 ± 1.4 26.9 51.0 ± 1.4 34.2 60.0 ± 0.0 25.0 70.0 ± 0.0 30.4 80.0 ± 0.0 13.3 '
        '91.0 ± 1.4 22.6').split()
    assert [len(list(stubs.rglob(name))) for name in ('summary.json', 'scores.json')] == [8, 8]
    assert main(command) == 0
    ran = [path.read_text() for path in stubs.rglob('commands')]
    assert ran == ['train\nevaluate\n'] * 8
    assert row in capsys.readouterr().out


def test_a_line_says_which_run_of_how_many_is_trained_scored_or_finished(stubs, capsys):
    command = ['--table', '14', '--out', str(stubs)]
    finished, *others = [folder_of(stubs, 'miniature', options, 0)
                         for options in TABLES[14].values()]
    finished.mkdir(parents=True)
    (finished / 'summary.json').touch()
    scores = {'single': dict.fromkeys(ablations.SCORED, {})}
    (finished / 'scores.json').write_text(json.dumps(scores))
    assert main(command) == 0
    expected = [f'run 1 of 4: {finished} is finished']
    for k, folder in enumerate(others, 2):
        expected += [f'run {k} of 4: {script}, whose output is in {folder}.log'
                     for script in ('train.py', 'evaluate.py')]
    assert capsys.readouterr().out.splitlines()[:7] == expected
    assert main([*command, '--dry-run']) == 0
    assert capsys.readouterr().out.splitlines() == [f'# {folder} is finished'
                                                    for folder in (finished, *others)]


def test_table_14_has_flickr_s_columns(stubs, capsys):
    assert main(['--table', '14', '--out', str(stubs)]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith('0.4 0.2'))
    assert row.split()[-12:] == '40.0 47.5 50.0 44.4 - 71.6 - 61.3 - 73.1 - 69.2'.split()
    assert 'Extended Flickr max-F1' in out


def test_a_run_that_fails_is_named_and_leaves_a_dash_and_the_others(stubs, capsys):
    assert main(['--table', '13', '--seeds', '5', '--out', str(stubs)]) == 1
    out, err = capsys.readouterr()
    assert 'av-image-mask-soft-seed5' in err
    assert err.rstrip().endswith('train.py: the loss is not finite')
    rows = {line[:12]: line.split()[-12:] for line in out.splitlines() if 'image' in line}
    assert rows['soft feature'][::2] == ['-'] * 6
    assert rows['hard image  '][0] == '45.0'


def test_a_dry_run_prints_the_commands_and_writes_nothing(stubs, capsys):
    assert main(['--table', '12', '--out', str(stubs), '--dry-run', '--', '--steps', '9']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and not stubs.exists()
    main(['--table', '12', '--out', str(stubs), '--dry-run', '--', '--steps=9'])
    assert capsys.readouterr().out.splitlines() == lines
    assert lines[2].startswith("python train.py --variant av --prompt 'A photograph of a <*>' "
                               '--steps 9 --seed 0 --preset miniature --out ')
    main(['--table', '14', '--out', str(stubs), '--dry-run', '--seeds', '3', '7', '--preset',
          'paper'])
    train = [line for line in capsys.readouterr().out.splitlines() if 'train.py' in line]
    for line, seed in zip(train[:2], (3, 7)):
        assert f'train.py --variant av --p-pos 0.2 --seed {seed} --preset paper --out' in line
        assert str(Path('paper', f'av-p-pos-0.2-seed{seed}')) in line


@pytest.mark.parametrize('lock', ['{}/lock', '{}.lock'], ids=['of train.py', 'of ablations.py'])
def test_a_run_waits_for_another_process_that_works_on_it_and_says_so(stubs, lock):
    folder = folder_of(stubs, 'miniature', TABLES[14]['0.4 0.2'], 0)
    folder.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, '-c', HOLD, lock.format(folder)], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()

    def write(text, **_):
        if 'another process' in text:
            said.append(text)
            holder.communicate('')          # it ends

    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, 'print', write, raising=False)
        assert main(['--table', '14', '--out', str(stubs)]) == 0
    assert len(said) == 1 and lock.format(folder) in said[0]


HOLD = '''
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
'''


def test_the_last_weights_are_scored_on_all_columns_with_the_files_of_their_training(tmp_path):
    files = '--beats b.pt --clipseg c --preset paper --data-root d --device cpu'.split()
    _, score = commands_left(tmp_path, ['--variant', 'av', '--lr', '1', *files])
    assert score == ['evaluate.py', '--checkpoint', str(tmp_path / 'last.pt'), '--benchmarks',
                     'vggss', 'flickr', 'avs_s4', 'ext_vggss', 'ext_flickr',
                     '--json', str(tmp_path / 'scores.json'), *files]


def test_jobs_share_the_gpus_that_the_scheduler_gave(tmp_path, monkeypatch):
    given = []
    two = threading.Barrier(2)              # neither of two jobs goes on without the other

    def run(folder, options, gpu, label):
        given.append(gpu)
        if gpu:
            two.wait(10)

    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(ablations, 'run', run)
    for visible, expected in (('2,3', {'2', '3'}), (None, {'0', '1'})):
        monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
        if visible:
            monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
        given.clear()
        assert ablations.run_all({tmp_path / str(k): [] for k in range(4)}, jobs=2) == {}
        assert {gpu['CUDA_VISIBLE_DEVICES'] for gpu in given} == expected and len(given) == 4
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    given.clear()
    assert ablations.run_all({tmp_path / 'one': []}, jobs=1) == {} and given == [{}]


def test_another_data_root_is_another_run(stubs, capsys):
    for root in ([], ['--data-root', 'a'], ['--data-root', 'b']):
        assert main(['--table', '14', '--out', str(stubs), *root]) == 0
    assert len(list(stubs.rglob('scores.json'))) == 3 * len(TABLES[14])


def test_an_out_that_is_a_file_is_one_sentence(stubs, tmp_path):
    with pytest.raises(OSError, match='cannot write into'):
        main(['--table', '14', '--out', str(tmp_path / 'train.py')])


def test_a_file_in_place_of_a_run_costs_that_run_only(stubs, capsys):
    file = folder_of(stubs, 'miniature', TABLES[14]['0.4 0.2'], 0)
    file.parent.mkdir(parents=True)
    file.touch()
    assert main(['--table', '14', '--out', str(stubs)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f'ablations.py: {file}: cannot use {file} (File exists): name another place')


def test_one_seed_has_no_deviation_and_a_missing_score_no_part():
    assert mean_text([40.04]) == '40.0'
    assert mean_text([40, None, 42]) == '41.0 ± 1.4'
    assert mean_text([1, 2, 6]) == '3.0 ± 2.6'
    assert mean_text([None]) is None


@pytest.mark.parametrize('wrong', [['--table', '8'], ['--table', '9', '--jobs', '0'],
                                   ['--table', '9', '--seeds', '1', '1'], [],
                                   ['--table', '9', '--', '--seed=3'],
                                   ['--table', '9', '--', '--data-root', 'x']])
def test_a_command_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(SystemExit):
        main(wrong)
