"""benchmarks.check counts what is missing, unreadable or odd in a data root."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks import check as check_file
from benchmarks.check import boxes_out, check, main
from benchmarks.lists import BenchmarkSample

RNG = np.random.default_rng(0)


def write_pair(folder, name, pixels=None, wav=None, rate=16_000):
    for part in ('frames', 'audio'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = RNG.integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'frames/{name}.png')
    wav = RNG.uniform(-0.5, 0.5, 2 * rate) if wav is None else wav
    soundfile.write(folder / f'audio/{name}.wav', wav, rate)


@pytest.fixture
def root(tmp_path):
    """VGG-SS with a sample of each kind."""
    folder = tmp_path / 'vggss'
    names = 'good black twin silent short fast cut gone'.split()
    for name in names[:-1]:
        write_pair(folder, name)
    write_pair(folder, 'black', np.full((12, 20, 3), 3, np.uint8))
    shutil.copy(folder / 'frames/good.png', folder / 'frames/twin.png')
    write_pair(folder, 'silent', wav=np.full(32_000, 1e-4))
    write_pair(folder, 'short', wav=RNG.uniform(-0.5, 0.5, 16_000))
    write_pair(folder, 'fast', np.zeros((12, 30, 3), np.uint8) + 99, rate=44_100)
    content = (folder / 'audio/cut.wav').read_bytes()
    (folder / 'audio/cut.wav').write_bytes(content[:40_000])
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
    assert found.pop('MB') == 0
    assert found == {
        'samples': 8, 'in the paper': 5158, 'without files': 1, 'unreadable files': 2,
        'black frames': 1, 'equal frames': 1, 'frame sizes': 2, 'silent sounds': 1,
        'short sounds': 1, 'not 16 kHz': 1, 'boxes out of frame': 1}
    assert sentences['vggss'][0] == 'vggss lacks files of gone'
    assert any('cut.wav is cut short by' in sentence for sentence in sentences['vggss'])
    assert any('good.png is 9 x 9 pixels' in sentence for sentence in sentences['vggss'])


def test_the_command_prints_a_table_and_writes_json_and_fails(root, capsys):
    command = ['--preset', 'miniature', '--data-root', str(root), '--workers', '1']
    assert main([*command, '--benchmarks', 'vggss', 'flickr', '--json', str(root / 'c.json')]) == 1
    printed = capsys.readouterr()
    [row] = [line.split() for line in printed.out.splitlines() if line.startswith('vggss')]
    assert row[:4] == ['vggss', '8', '5158', '1']
    [absent] = [line.split() for line in printed.out.splitlines() if line.startswith('flickr')]
    assert absent[:4] == ['flickr', '-', '250', '-']
    assert 'flickr: no annotation file' in printed.err
    saved = json.loads((root / 'c.json').read_text())
    assert saved['counts']['vggss']['black frames'] == 1 and len(saved['sentences']['vggss']) == 3


def test_complete_pairs_are_good_and_shared_files_are_opened_once(tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'vggsound'
    for name in ('a_000001', 'b_000002'):
        write_pair(folder, name)
        Image.open(folder / f'frames/{name}.png').save(folder / f'frames/{name}.jpg')
    (folder / 'train.csv').write_text('a_000001\nb_000002\n')
    looked = []
    look_at = check_file.look_at
    monkeypatch.setattr(check_file, 'look_at', lambda job: looked.append(job) or look_at(job))
    assert main(['--preset', 'miniature', '--data-root', str(tmp_path), '--workers', '1',
                 '--benchmarks', 'vggsound']) == 0
    assert len(looked) == len(set(looked)) == 4
    assert 'one epoch of 2 pairs: ' in capsys.readouterr().out


def test_a_list_whose_files_are_all_missing_is_reported(tmp_path, capsys):
    (tmp_path / 'vggsound').mkdir()
    (tmp_path / 'vggsound/train.csv').write_text('a_000001\n')
    assert main(['--preset', 'miniature', '--data-root', str(tmp_path), '--workers', '1',
                 '--benchmarks', 'vggsound']) == 1
    assert 'vggsound lacks files of a_000001' in capsys.readouterr().err


def test_a_set_that_cannot_be_listed_costs_no_other_set(root, monkeypatch):
    def fail(root):
        raise PermissionError(13, 'Permission denied', 'flickr_test.csv')

    monkeypatch.setitem(check_file.BENCHMARKS, 'flickr', fail)
    counts, sentences = check(['flickr', 'vggss'], root, 2.0)
    assert counts['vggss']['samples'] == 8
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
