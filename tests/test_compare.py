"""evaluate.py --compare: each number stands in its row, measured before the paper's."""

import json

import pytest

from figures.compare import comparison


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines_of(text):
    """{(table, benchmark, method): [cells]}; a cell is 'measured | paper'"""
    found = {}
    for part in text.split('\n\n'):
        title, _, rule, *lines = part.split('\n')
        number = int(title.partition('(Table ')[2][0])
        widths = [len(dashes) for dashes in rule.split('  ')]
        for line in lines:
            cells = []
            for width in widths:
                cells.append(' '.join(line[:width].split()))
                line = line[width + 2:]
            benchmark = cells[0] or benchmark
            found[number, benchmark, cells[1]] = cells[2:]
    return found


def scores(first, n=7, **more):
    return {'cIoU': first, 'cIoU_adap': first + 1, 'AUC': first + 2, 'AUC_adap': first + 3, 'n': n,
            'n_expected': 7, **more}


def test_each_result_stands_in_its_row_beside_the_papers_number(tmp_path):
    av = written(tmp_path, 'av.json', {
        'single': {'vggss': scores(10), 'is4': scores(20, n=5)},
        'clipseg_gt_text': {'single': {'vggss': scores(30), 'is4': None}}})
    av_llm = written(tmp_path, 'av_llm.json', {
        'single': {'vggss': scores(40)},
        'clipseg_gt_text': {'single': {'vggss': scores(99)}}})
    baselines = written(tmp_path, 'mine.json', {
        'wav2clip': {'single': {'vggss': {'cIoU': 50, 'cIoU_adap': None, 'AUC': 52}}},
        'clipseg_clap_text': {'robustness': {'robust_s4': {'FPR_noise': 0.256, 'F_noise': 60}}}})
    found = lines_of(comparison([av, av_llm, baselines]))
    assert found[1, 'VGG-SS', 'ours, AV alignment'] == [
        '10.0 | 49.5', '11.0 | 64.0', '12.0 | 46.3', '13.0 | 54.1', '7']
    assert found[1, 'VGG-SS', 'ours, AV + LLM alignment'][0] == '40.0 | 52.1'
    assert found[2, 'IS4', 'ours, AV alignment'][::4] == ['20.0 | 65.9', '5 of 7']
    oracle = '(Oracle) CLIPSeg (w/ GT Text)'
    assert found[1, 'VGG-SS', oracle][0] == '30.0 | 49.5'           # of the first result
    assert found[2, 'IS4', oracle] == ['- | 74.3', '- | 88.5', '- | 59.3', '- | 69.1', '-']
    assert found[1, 'Flickr-SoundNet', oracle] == ['- | -'] * 4 + ['-']
    assert found[1, 'VGG-SS', 'WAV2CLIP ICASSP22'] == [
        '50.0 | 37.7', '- | -', '52.0 | 39.9', '- | -', '-']
    assert found[1, 'VGG-SS', 'SLAVC (w/ OGL) NeurIPS22'][:3] == ['- | 39.8', '- | 59.1', '- | -']
    noise = found[5, 'AVSBench-Robust S4', 'CLIPSeg (w/ CLAP Text)']    # no row of the paper's
    assert noise[6:8] == ['60.0 | -', '0.26 | -']


def test_the_eight_tables_have_the_papers_rows_in_its_order(tmp_path):
    mine = written(tmp_path, 'av.json', {'multisource': {'vgg_duet': {'CAP': 1.0}}})
    found = lines_of(comparison([mine]))
    assert list(dict.fromkeys(number for number, *_ in found)) == list(range(1, 9))
    assert [len([key for key in found if key[0] == number]) for number in range(1, 9)] == [
        56, 80, 20, 4, 20, 96, 32, 14]
    assert [method for *where, method in found if where == [3, 'Extended Flickr']] == [
        'SLAVC NeurIPS22', 'MarginNCE ICASSP23', 'FNAC CVPR23', 'DenseAV CVPR24',
        'Alignment TPAMI25', 'WAV2CLIP ICASSP22', 'AudioCLIP ICASSP22', 'ImageBind CVPR23',
        'ours, AV alignment', 'ours, AV + LLM alignment']
    assert found[8, 'VGGSound-Duet', 'ours, AV alignment'][0] == '1.0 | 56.8'
    assert found[8, 'VGGSound-Instruments', 'NoPrior CVPR24'] == ['- | -'] * 6 + ['-']
    assert found[4, 'Extended Flickr', 'FNAC CVPR23'][-2] == '- | 42.5'


def test_the_name_of_a_file_is_the_name_of_its_row(tmp_path):
    result = {'single': {'vggss': {'cIoU': [1.0, 2.0, 3.0]}}}       # of a sweep the middle one
    other = written(tmp_path, 'seed 1.json', result)
    prior = written(tmp_path, 'SLAVC NeurIPS22.json', result)
    found = lines_of(comparison([other, prior]))
    rows = [method for number, benchmark, method in found if benchmark == 'VGG-SS']
    assert len(rows) == 29 and rows[-1] == 'seed 1'
    assert found[1, 'VGG-SS', 'seed 1'][0] == '2.0 | -'
    assert found[1, 'VGG-SS', 'SLAVC NeurIPS22'][0] == '2.0 | 37.8'


def test_tasks_of_one_row_may_come_from_several_files_but_each_once(tmp_path):
    one = written(tmp_path, 'one.json', {'wav2clip': {'single': {'vggss': {'cIoU': 1.0}}}})
    two = written(tmp_path, 'two.json', {'wav2clip': {'single': {'is4': {'cIoU': 2.0}}}})
    found = lines_of(comparison([one, two]))
    assert found[1, 'VGG-SS', 'WAV2CLIP ICASSP22'][0] == '1.0 | 37.7'
    assert found[2, 'IS4', 'WAV2CLIP ICASSP22'][0] == '2.0 | 40.5'
    with pytest.raises(ValueError, match='one.json is the second result for wav2clip on vggss'):
        comparison([one, two, one])


@pytest.mark.parametrize(('content', 'reason'), [
    ('', 'is not readable as JSON'), ('{"single": ', 'is not readable as JSON'),
    ('[' * 100_000, 'is not readable as JSON'), ('[1, 2]', 'in place of its tasks'),
    ('{}', 'it has no scores'), ({'trained': {}}, "'trained' is none of the tasks"),
    ({'single': 3}, '3 stands in place of its benchmarks of single'),
    ({'single': {'avs_ms3': {}}}, "'avs_ms3' is none of the benchmarks of single"),
    ({'wav2clip': {'double': {}}}, "'double' is none of the tasks"),
    ({'single': {'is4': [7]}}, 'stands in place of its metrics of is4'),
    ({'single': {'is4': {'cIoU': 'high'}}}, 'cIoU of is4 is no number'),
    ({'single': {'is4': {'cIoU': []}}}, 'cIoU of is4 is no number'),
    ({'single': {'is4': None}, 'clipseg_gt_text': 5}, '5 stands in place of its tasks')])
def test_what_is_no_result_is_named(tmp_path, content, reason):
    path = written(tmp_path, 'av.json', content)
    with pytest.raises(ValueError, match=reason) as problem:
        comparison([path])
    assert str(path) in str(problem.value) and '\n' not in str(problem.value)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='is not readable as JSON'):
        comparison([path])
