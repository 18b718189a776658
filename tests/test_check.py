"""benchmarks.check counts what is missing, unreadable or odd in a data root."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks import check as check_file
from benchmarks.check import check, main
from benchmarks.lists import BenchmarkSample, boxes_out
from model import PRESETS

RNG = np.random.default_rng(0)


def write_pair(folder, name, pixels=None, wav=None, rate=16_000):
    for part in ('frames', 'audio'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = RNG.integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'frames/{name}.png')
    wav = RNG.uniform(-0.5, 0.5, 2 * rate) if wav is None else wav
    soundfile.write(folder / f'audio/{name}.wav', wav, rate)


def write_number(path, place, number):
    """Change four bytes in the header of a WAV."""
    content = bytearray(path.read_bytes())
    content[place:place + 4] = number.to_bytes(4, 'little')
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    """VGG-SS with a sample of each kind."""
    folder = tmp_path / 'vggss'
    names = 'good black twin silent short long fast cut renamed more mute blind gone'.split()
    for name in names[:-1]:
        write_pair(folder, name)
    dark = np.full((12, 20, 3), check_file.BLACK, np.uint8)
    write_pair(folder, 'black', dark)
    dark[5, 7, 1] += 1                                      # one pixel is enough to be not black
    shutil.copy(folder / 'frames/good.png', folder / 'frames/twin.png')
    write_pair(folder, 'silent', wav=np.full(32_000, 1e-4))
    write_pair(folder, 'short', dark, wav=RNG.uniform(-0.5, -0.1, 16_000))
    write_pair(folder, 'long', wav=RNG.uniform(-0.5, 0.5, 48_000))
    write_pair(folder, 'fast', np.zeros((12, 30, 3), np.uint8) + 99, rate=44_100)
    content = (folder / 'audio/cut.wav').read_bytes()
    (folder / 'audio/cut.wav').write_bytes(content[:40_000])
    write_number(folder / 'audio/renamed.wav', 24, 15_000)  # the rate, not the bytes a second
    write_number(folder / 'audio/more.wav', 40, 56_000)     # of 64,000 bytes of data
    (folder / 'audio/mute.wav').unlink()
    (folder / 'frames/blind.png').unlink()
    (folder / 'gt_masks').mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / 'gt_masks/good.png')
    boxes = {name: [[0.1, 0.1, 0.5, 0.5]] for name in names}
    boxes['fast'] = [[0, 0, 1.2, 1], [0, 0, 1, 1]]
    (folder / 'vggss.json').write_text(json.dumps(
        [{'file': name, 'class': 'dog', 'bbox': box} for name, box in boxes.items()]))
    return tmp_path


def test_each_finding_is_counted_once(root):
    counts, sentences = check(['vggss'], root, 2.0)
    found = counts['vggss']
    assert found.pop('GB of frames and sounds on disk') == pytest.approx(0.0008, rel=0.2)
    # of 10 readable sounds: 6 of 2 s, then short, long, renamed, more
    seconds = 6 * 2 + 1 + 3 + 32_000 / 15_000 + 28_000 / 16_000
    assert found.pop('hours of sound') == pytest.approx(seconds / 3600)
    assert found == {
        'samples': 13, 'samples in the paper': 5158, 'samples without frame': 2,
        'samples without sound': 2, 'samples without mask': 0,
        'unreadable files, and masks unlike their frame': 2, 'black frames': 1,
        'frames equal to another': 1, 'sizes of frames': 2, 'silent sounds': 1,
        'sounds shorter than the model hears': 1, 'sounds longer than the model hears': 1,
        'headers unlike the sound': 2, 'sounds not at 16 kHz': 2, 'boxes out of frame': 1}
    folder = root / 'vggss'
    assert f'{folder}/audio/mute.wav is missing' in sentences['vggss']
    assert f'{folder}/frames/blind.jpg is missing' in sentences['vggss']
    assert len([sentence for sentence in sentences['vggss'] if 'gone' in sentence]) == 2
    assert any('cut.wav is cut short by' in sentence for sentence in sentences['vggss'])
    assert any('good.png is 9 x 9 pixels' in sentence for sentence in sentences['vggss'])


def test_a_mask_is_looked_for_beside_a_frame_and_without_one(tmp_path):
    (tmp_path / 'mask.png').write_bytes(b'no picture')
    frames = [tmp_path / 'a.jpg', tmp_path / 'b.jpg']       # the sample is counted once
    sample = BenchmarkSample('a', frames, [], None, None, [tmp_path / 'mask.png'])
    [(path, job)] = check_file.jobs_of([sample], 2.0).items()
    counts, sentences = check_file.count('vggss', [sample], {path: check_file.look_at(job)})
    assert counts['samples without frame'] == 1 and counts['samples without mask'] == 0
    assert 'mask.png is not a readable picture' in sentences[1]


def test_an_unreadable_frame_is_counted_once_whatever_number_of_masks_it_has(tmp_path):
    (tmp_path / 'a.jpg').write_bytes(b'no picture')
    masks = [tmp_path / 'dog.png', tmp_path / 'cat.png']
    for mask in masks:
        Image.new('L', (9, 9)).save(mask)
    samples = [BenchmarkSample(mask.stem, [tmp_path / 'a.jpg'], [], None, None, [mask])
               for mask in masks]
    jobs = check_file.jobs_of(samples, 2.0)
    found = {path: check_file.look_at(job) for path, job in jobs.items()}
    counts, sentences = check_file.count('is4', samples, found)
    assert len(found) == 3 and len(sentences) == 1
    assert counts['unreadable files, and masks unlike their frame'] == 1


@pytest.mark.parametrize('kind, subtype', [('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('FLAC', 'PCM_16'),
                                           ('WAV', 'IMA_ADPCM'), ('WAVEX', 'PCM_24')])
def test_a_good_header_is_like_its_data(tmp_path, kind, subtype):
    sound = np.zeros((16_001, 2))               # an odd number: some formats pad it
    soundfile.write(tmp_path / 'a.wav', sound, 16_000, subtype, format=kind)
    assert not check_file.header_unlike_data(tmp_path / 'a.wav')
    if kind != 'FLAC' and subtype != 'IMA_ADPCM':
        write_number(tmp_path / 'a.wav', 24, 44_100)        # the rate, not the bytes a second
        assert check_file.header_unlike_data(tmp_path / 'a.wav')
        write_number(tmp_path / 'a.wav', 24, 16_000)
    for more, unlike in ((7, False), (1, kind != 'FLAC')):  # 7 are padding; 8 could be a head
        with open(tmp_path / 'a.wav', 'ab') as file:
            file.write(bytes(more))
        assert check_file.header_unlike_data(tmp_path / 'a.wav') == unlike


def test_a_header_that_the_end_of_the_file_cuts_is_left_out(tmp_path):
    soundfile.write(tmp_path / 'a.wav', np.zeros(16_000), 16_000)
    with open(tmp_path / 'a.wav', 'ab') as file:
        file.write(b'fmt \x10\0\0\0\1\0')
    look = functools.partial(check_file.look_at_sound, tmp_path / 'a.wav', 1.0)
    assert 'error' not in check_file.look_at(look)


def test_a_sound_that_does_not_state_its_length_is_as_long_as_what_it_holds(tmp_path):
    soundfile.write(tmp_path / 'a.wav', RNG.uniform(-0.5, 0.5, 32_000), 16_000)
    write_number(tmp_path / 'a.wav', 40, 0)
    found = check_file.look_at_sound(tmp_path / 'a.wav', 2.0)
    assert found['seconds'] == 2.0 and not found['short'] and not found['long']


def test_a_stereo_sound_of_avsbench_needs_half_of_the_seconds(tmp_path):
    soundfile.write(tmp_path / 'a.wav', RNG.uniform(-0.5, 0.5, (32_000, 2)), 16_000)
    for stereo, is_short in ((True, False), (False, True)):
        sample = BenchmarkSample('a', [], [tmp_path / 'a.wav'], stereo=stereo)
        [job] = check_file.jobs_of([sample], 4.0).values()
        assert check_file.look_at(job)['short'] == is_short


def test_the_command_prints_what_it_found_and_writes_all_counts_and_fails(root, capsys):
    command = ['--preset', 'miniature', '--data-root', str(root), '--workers', '1']
    assert main([*command, '--benchmarks', 'vggss', 'flickr', '--json', str(root / 'c.json')]) == 1
    printed = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in printed.out.splitlines()]
    first = lines.index(['vggss'])
    assert lines[first + 1:first + 3] == [['13', 'samples'], ['5,158', 'samples in the paper']]
    assert ['1', 'black frames'] in lines and 'without mask' not in printed.out     # there are 0
    assert lines[-4:-1] == [['flickr'], ['1', 'unreadable lists'],
                            ['250', 'samples in the paper']]
    assert 'flickr: no annotation file' in printed.err
    saved = json.loads((root / 'c.json').read_text())
    assert saved['counts']['vggss']['black frames'] == 1 and len(saved['sentences']['vggss']) == 6
    assert saved['counts']['vggss']['samples without mask'] == 0


def test_complete_pairs_are_good_and_shared_files_are_opened_once(tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'vggsound'
    for name in ('a_000001', 'b_000002'):
        write_pair(folder, name)
        Image.open(folder / f'frames/{name}.png').save(folder / f'frames/{name}.jpg')
    (folder / 'train.csv').write_text('a,1,dog,train\nb,2,dog,train\nc,3,dog,test\n')
    looked = []
    look_at = check_file.look_at
    monkeypatch.setattr(check_file, 'look_at', lambda job: looked.append(job) or look_at(job))
    assert main(['--preset', 'miniature', '--data-root', str(tmp_path), '--workers', '1',
                 '--benchmarks', 'vggsound', 'vggsound']) == 0      # as Duet has VGG-SS's files
    assert len(looked) == len(set(looked)) == 4
    printed = capsys.readouterr().out
    assert '4 files in ' in printed
    assert '0.00 hours to read an epoch at this speed\n' in printed
    assert "0.00 GB of the paper's features (--cache-audio)\n" in printed


def test_a_list_whose_files_are_all_missing_is_reported(tmp_path, capsys):
    (tmp_path / 'vggsound').mkdir()
    (tmp_path / 'vggsound/train.csv').write_text('a_000001\n')
    assert main(['--preset', 'miniature', '--data-root', str(tmp_path), '--workers', '1',
                 '--benchmarks', 'vggsound']) == 1
    assert 'vggsound/frames/a_000001.jpg is missing' in capsys.readouterr().err


def test_without_options_the_miniature_is_drawn_and_checked(monkeypatch):
    drawn = []
    checked = []

    def check_nothing(names, root, seconds, workers):
        checked.append((root, seconds))
        return {name: {'samples': 0} for name in names}, {}

    monkeypatch.setattr(check_file.world, 'build', drawn.append)
    monkeypatch.setattr(check_file, 'check', check_nothing)
    root = Path(PRESETS['miniature'].data_root)
    assert main([]) == main(['--data-root', 'own']) == main(['--preset', 'paper']) == 0
    assert drawn == [root]
    assert checked == [(root, 2.0), (Path('own'), 2.0), (Path(PRESETS['paper'].data_root), 10.0)]


def test_a_set_that_cannot_be_listed_costs_no_other_set(root, monkeypatch):
    def fail(root):
        raise PermissionError(13, 'Permission denied', 'flickr_test.csv')

    monkeypatch.setitem(check_file.BENCHMARKS, 'flickr', fail)
    counts, sentences = check(['flickr', 'vggss'], root, 2.0)
    assert counts['vggss']['samples'] == 13
    assert 'flickr_test.csv (Permission denied)' in sentences['flickr'][0]


def test_json_neither_overwrites_the_data_nor_is_lost_after_hours(root, monkeypatch, capsys):
    monkeypatch.setattr(check_file, 'check', None)      # not reached
    command = ['--preset', 'miniature', '--data-root', str(root), '--json']
    with pytest.raises(SystemExit):
        main([*command, str(root / 'vggss/vggss.json')])
    assert 'would overwrite a file of the data' in capsys.readouterr().err
    with pytest.raises(OSError, match='it is no file'):
        main([*command, str(root)])


def test_boxes_beyond_the_frame_are_counted_in_its_own_unit():
    def sample(boxes, unit=1.0, frames=1):
        return BenchmarkSample('a', ['x'] * frames, [], None, boxes, unit=unit)

    assert boxes_out(sample([[0, 0, 224, 224], [-1, 0, 5, 5]], 224)) == 1
    assert boxes_out(sample([[[0, 0, 1, 1.5]], [[0, 0, 1, 1], [0, 0, 2, 2]]], frames=2)) == 2
    assert boxes_out(sample(None)) == 0
