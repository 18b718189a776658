"""Lists and captions as others write them: read as they are, or one sentence with the line."""

import json
import shutil

import pytest

import benchmarks
import data
from benchmarks import maps
from captions import read_audio_captions, read_texts

IDS = ['a_000001', 'b_000020', 'c_000300']


def as_lines(key):
    return ''.join(json.dumps({'id': i, key: f'dog {k}'}) + '\n' for k, i in enumerate(IDS))


@pytest.mark.parametrize('key', ['object', 'audio_caption'])
def test_json_lines_of_other_programs_are_read(tmp_path, key):
    path, text = tmp_path / 'made.jsonl', as_lines(key)
    for content in (text.rstrip('\n'), '\ufeff' + text, text.replace('\n', '\n\n \n'),
                    text.replace('\n', '\r\n'), '\ufeff\n' + text + '  '):
        path.write_bytes(content.encode())
        assert list(read_texts(path, key).items()) == [
            ('a_000001', 'dog 0'), ('b_000020', 'dog 1'), ('c_000300', 'dog 2')]
    for content in (text[:-3], text + '{"id"', text + '\n[1]', text.rstrip('\n')[:-1]):
        path.write_text(content)
        number = content.count('\n') + 1
        with pytest.raises(ValueError, match=f'made.jsonl: line {number} is not a JSON object'):
            read_texts(path, key)
    path.write_text(text.replace('"dog 1"', r'"\ud83d"'))     # half of an emoji
    assert read_texts(path, key)['b_000020'] == '?'
    path.write_text(text.replace('"dog 1"', 'NaN'))
    with pytest.raises(ValueError, match=r"'b_000020'.*both texts"):
        read_texts(path, key)
    path.write_text(text, encoding='utf-16')
    with pytest.raises(ValueError, match='made.jsonl is not a UTF-8 text'):
        read_texts(path, key)


def test_captions_made_elsewhere_lose_line_breaks_and_must_be_of_all_pairs(tmp_path):
    path, table = tmp_path / 'a.jsonl', tmp_path / 'a.csv'
    path.write_text(json.dumps({'id': 'x', 'audio_caption': ' a dog\n barks  '}))
    assert read_texts(path, 'audio_caption') == {'x': 'a dog barks'}
    for content in ('', json.dumps({'id': 'y', 'audio_caption': None})):
        path.write_text(json.dumps({'id': 'x', 'audio_caption': 'a dog'}) + '\n' + content)
        with pytest.raises(ValueError, match='lacks 1 of the 2 pairs, the first y'):
            read_audio_captions(path, ['x', 'y'])
    table.write_text('id,audio_caption\nx, a dog\ny,a cat, and a bell\n')
    with pytest.raises(ValueError, match='line 3: 3 fields where id,audio_caption has 2'):
        read_texts(table, 'audio_caption')


@pytest.mark.parametrize('text', [
    'a_000001\nb_000020\nc_000300\n',
    'a_000001.mp4,dog\nb_000020.mp4,"rowboat, canoe"\nc_000300.mp4,people "cheering"',
    'a,1,dog,train\nb,20,"rowboat, canoe, kayak rowing",train\nc,300,cat,train\n',
    '# YouTube ID, start seconds, label, train/test split\n a , 1,dog,train\n\n  \n'
    'b,20.0,bell,TRAIN\n , ,\nc,300,cat,train\n',
    'YouTube ID,start second,label,split\na,1,dog,train\nb,20,bell,train\nc,300,cat,train\n',
    'id,label\r\na_000001.jpg,dog\r\nb_000020.wav,rowboat, canoe, kayak rowing\r\n'
    'c_000300,5,dog\r\n'])
def test_every_form_of_a_list_names_the_same_pairs(tmp_path, text):
    (tmp_path / 'train.csv').write_bytes(text.encode())
    assert data.read_ids(tmp_path / 'train.csv', training=True) == IDS


def test_of_vggsound_s_own_list_training_takes_the_split_train_and_says_so(small_world, tmp_path,
                                                                           capsys):
    root = shutil.copytree(small_world, tmp_path / 'world')
    path = root / 'vggsound/train.csv'
    ids = data.read_ids(path)
    rows = [[i.rpartition('_')[0], str(int(i.rpartition('_')[2])), 'dog',
             ['test', 'train', 'train', 'val', 'train', 'train'][k % 6]] for k, i in enumerate(ids)]
    path.write_text(''.join(','.join(row) + '\n' for row in rows))
    taken = [i for k, i in enumerate(ids) if k % 3]
    assert data.VGGSound(root, 'train', 96, 2.0).ids == taken and data.read_ids(path) == ids
    assert capsys.readouterr().out == f'{path}: left out 32 lines of other splits than "train"\n'
    shutil.copyfile(path, root / 'vggsound/val.csv')        # for validation, whatever the split
    kept = data.VGGSound(root, 'val', 96, 2.0, skip_bad=True)
    assert kept.ids == ids
    path.write_text('a,1,dog,test\n')
    with pytest.raises(ValueError, match='no line of the split "train"'):
        data.VGGSound(root, 'train', 96, 2.0)


def test_a_list_of_which_nothing_has_files_is_told_the_forms(small_world, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    path = root / 'vggsound/train.csv'
    ids = data.read_ids(path)
    for text in ('\n'.join(f'{i};dog' for i in ids), '\n'.join(f'{i}\tdog' for i in ids),
                 'x_1,dog\n'):
        path.write_text(text)
        words = f'train.csv names .*{text[:3]}.*a line is "<youtubeid>_<start second.*,split"'
        for skip_bad in (False, True):
            with pytest.raises(ValueError, match=words):
                data.VGGSound(root, 'train', 96, 2.0, skip_bad=skip_bad)


@pytest.mark.parametrize('text, words', [
    ('a_000001,dog\nb_000020,cat\na_000001,dog\n', 'names a_000001 twice'),
    ('a_000001.mp4,dog\na,1,dog,train\n', 'names a_000001 twice'),
    ('a_000001,dog\n ,cat\n', 'line 2 names no id'), ('# a comment\n\n', 'lists no sample'),
    ('a_000001'.encode('utf-16'), 'not a UTF-8 text'),
    ('a_000001\n'.encode('utf-16-le'), 'zero bytes, as UTF-16')])
def test_odd_lists_of_pairs_are_one_sentence(tmp_path, text, words):
    path = tmp_path / 'train.csv'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f'train.csv.*{words}') as error:
        data.read_ids(path)
    assert len(str(error.value)) < 300 and '\n' not in str(error.value)


def test_one_stray_quote_in_a_long_csv_is_a_short_sentence_and_swallows_no_line(tmp_path):
    """Read in one go, '"dog' of line 70 would end at the quote of line 90, and hide 20 lines."""
    lines = [f'x_{k:06d},dog {k}' for k in range(20_000)]
    lines[69], lines[89] = 'x_000069,"dog', 'x_000089,dog"'
    path = tmp_path / 'made.csv'
    path.write_text('\n'.join(lines))
    (tmp_path / 'confidence.csv').write_text('\n'.join(lines))
    for read in (data.read_ids, lambda path: benchmarks.lists.read_rows(path, ('id', 'label')),
                 lambda path: read_texts(path, 'audio_caption'),
                 lambda path: maps.read_confidences(tmp_path)):
        with pytest.raises(ValueError, match=r'\.csv, line (70|1)\b') as error:
            read(path)
        assert len(str(error.value)) < 300 and '\n' not in str(error.value)
    lines[69] = 'x_000069,dog'                              # a quote within a text is a letter
    path.write_text('\n'.join(lines))
    assert len(data.read_ids(path)) == 20_000
    assert len(benchmarks.lists.read_rows(path, ('id', 'label'))) == 20_000
    found = read_texts(path, 'audio_caption')
    assert found['x_000089'] == 'dog"'


def test_a_name_that_an_annotation_file_holds_twice_is_named(small_world, tmp_path):
    root = shutil.copytree(small_world, tmp_path / 'world')
    labels = root / 'vpo_ms/labels.csv'
    first = labels.read_text().split(',')[0]
    with open(labels, 'a') as file:
        file.write(f'{first},other\n')
    with pytest.raises(ValueError, match=f'labels.csv names {first} twice'):
        benchmarks.BENCHMARKS['vpo_ms'](root)
    labels.write_text(f'{first}.jpg,other\n')               # the oracle's row would be missing
    with pytest.raises(ValueError, match=f'labels.csv names no sample of its set.*{first}'):
        benchmarks.BENCHMARKS['vpo_ms'](root)
    for file, name, read in (('avsbench/s4/s4_box.json', 'image', benchmarks.BENCHMARKS['avs_s4']),
                             ('vggss/vggss.json', 'file', benchmarks.BENCHMARKS['vgg_duet'])):
        entries = json.loads((root / file).read_text())
        (root / file).write_text(json.dumps(entries + entries[:1]))
        with pytest.raises(ValueError, match=f'{file} names .* twice'):
            read(root)


def test_blank_lines_of_spaces_are_no_lines_of_a_benchmark(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('\ufeffx_1,dog\r\n  \r\n,\r\nx_2,a "fast" car \r\n')
    rows = benchmarks.lists.read_rows(path, ('id', 'label'))
    assert rows == [('x_1', 'dog'), ('x_2', 'a "fast" car')]


def test_a_second_beside_a_youtube_id_is_its_start_and_a_number_beside_an_id_a_label(tmp_path):
    path = tmp_path / 'train.csv'
    path.write_text('-0BIyqJj9ZU,30\nabcdefghijk,7.0\nabcdefghijk_000030,7\nball_000030,5\n'
                    'dog,5\nid,7\n')          # an id, as it is not in the first line
    assert data.read_ids(path, training=True) == ['-0BIyqJj9ZU_000030', 'abcdefghijk_000007',
                                                  'abcdefghijk_000030', 'ball_000030', 'dog', 'id']
