"""Which label and which region a sound gets in baselines.py, and what is refused."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import baselines
from benchmarks.lists import read_labels
from conftest import ROOT
from encoders import regions, spaces
from encoders.regions import Detector, box_iou, crop, padded_square, read_boxes, suppress
from evaluate import evaluate, feed
from evaluate import parse_args as evaluate_args
from figures.tables import paper_scores
from localise import embed_names, localise
from media import box_map, normalise
from metrics import Extended
from model import load_model

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


class Colours:
    """A space of three dimensions: sound n of a wav is colour n, and so is text n or an image."""

    def __init__(self):
        self.heard = 0              # sounds embedded

    def embed_audio(self, wav):
        self.heard += len(wav)
        return torch.eye(3)[wav[:, 0].long()]

    def embed_text(self, labels):
        return torch.eye(3)[[list(COLOURS).index(label) for label in labels]]

    def embed_image(self, images):
        pixels = [np.asarray(image, np.float32).mean((0, 1)) for image in images]
        return F.normalize(torch.tensor(np.stack(pixels)))


def striped(width=96, height=96):
    """Three columns: red, green and blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for k, colour in enumerate(COLOURS.values()):
        pixels[:, k * width // 3:(k + 1) * width // 3] = colour
    return Image.fromarray(pixels)


def sample(name, colour, picture, label=None):
    image = normalise(picture.resize((96, 96)))
    wav = torch.full((32_000,), float(list(COLOURS).index(colour)))
    return {'id': name, 'wav': wav, 'image': image, 'label': label, 'condition': 'positive'}


# ---- A region for a sound ------------------------------------------------------------------------

THIRDS = torch.tensor([[0, 0, 1 / 3, 1], [1 / 3, 0, 2 / 3, 1], [2 / 3, 0, 1, 1]])


def test_a_sound_gets_the_region_that_is_most_similar_to_it(tmp_path):
    picture = striped()
    picture.save(tmp_path / 'frame.png')
    samples = [sample(name, name, picture) for name in ('blue', 'red', 'blue')]
    asked = []

    def propose(ids, pictures):
        asked.append((ids, [p.size for p in pictures]))
        return [THIRDS]
    files = dict.fromkeys(COLOURS, tmp_path / 'frame.png')
    space = Colours()
    maps = baselines.localise_by_region({'wav2clip': space}, propose, files, {}, samples)
    assert asked == [(['blue'], [(96, 96)])]                # a frame's regions are proposed once
    assert space.heard == 2                                 # and a sound is heard once
    for k, place in enumerate((2, 0, 2)):
        assert torch.equal(maps['wav2clip'][k], box_map(THIRDS[place]))
        assert set(maps['wav2clip'][k].unique().tolist()) == {0.0, 1.0}
        assert samples[k]['confidence']['wav2clip'] == pytest.approx(1, abs=1e-5)


def test_the_confidence_of_an_extended_set_is_that_of_the_row():
    meters = {row: Extended() for row in ('wav2clip', 'imagebind')}
    boxes = box_map([[0, 0, 1, 1]])
    samples = [{'id': 'a', 'boxes': boxes, 'condition': 'sounding',
                'confidence': {'wav2clip': 0.25, 'imagebind': 0.75}}]
    for row, meter in meters.items():
        feed(meter, samples, [boxes], row)
    assert meters['wav2clip'].confidence == [0.25] and meters['imagebind'].confidence == [0.75]


def test_a_region_is_cut_out_with_at_least_one_pixel():
    picture = striped(9, 6)
    assert crop(picture, (1 / 3, 0, 2 / 3, 0.5)).size == (3, 3)
    assert np.asarray(crop(picture, (1 / 3, 0, 2 / 3, 0.5))).tolist() == [[[0, 255, 0]] * 3] * 3
    assert crop(picture, (0.999, 0.999, 1, 1)).size == (1, 1)
    assert crop(picture, (0, 0, 0.0001, 0.0001)).size == (1, 1)
    assert crop(picture, (1, 1, 1, 1)).size == (1, 1)


def test_of_overlapping_boxes_the_most_object_like_is_kept():
    boxes = torch.tensor([[0, 0, .5, .5], [0, 0, .5, .3], [.5, .5, 1, 1], [0, 0, 1, 1],
                          [0, 0, .5, .125]])
    scores = torch.tensor([1., 2., 0., 3., .5])
    assert box_iou(boxes[0], boxes[1:]).tolist() == pytest.approx([0.6, 0, 0.25, 0.25])
    assert box_iou(boxes[1], boxes[4:]).tolist() == pytest.approx([0.125 / 0.3])
    assert suppress(boxes, scores, 10) == [3, 1, 4, 2]      # 0.42 is kept, 0.6 is not
    assert suppress(boxes, scores, 2) == [3, 1]


class FakeOwlv2:
    """Two cells; the second is more object-like. Boxes: centre, width, height of the square."""
    device = 'cpu'
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=8))
    boxes = torch.tensor([[[.25, .125, .5, .25], [.75, .25, .75, .5]]])

    def to(self, device):
        return self

    def image_embedder(self, pixel_values):
        self.seen = pixel_values
        return torch.zeros(len(pixel_values), 1, 2, 4), None

    def objectness_predictor(self, cells):
        return torch.tensor([[0., 1.]]).expand(len(cells), -1)

    def box_predictor(self, cells, grid):
        return self.boxes.expand(len(cells), -1, -1)


def test_boxes_of_the_padded_square_become_shares_of_the_frame(monkeypatch):
    fake = FakeOwlv2()
    monkeypatch.setattr(regions, 'load_pretrained', lambda *given: fake)
    wide = Image.new('RGB', (40, 20), (255, 0, 0))          # the square is 40 x 40
    [found] = Detector('any', 'cpu').propose([wide])
    # y is twice as large a share; what reaches beyond the frame is clipped
    assert torch.allclose(found, torch.tensor([[.375, 0, 1, 1], [0, 0, .5, .5]]))
    assert torch.equal(fake.seen[0], padded_square(wide, 8))
    grey = normalise(Image.new('RGB', (8, 4), regions.GREY))
    assert torch.allclose(fake.seen[0, :, 5:], grey[:, 1:])         # below the frame
    assert len(Detector('any', 'cpu').propose([wide], 1)[0]) == 1


# ---- Boxes made elsewhere ------------------------------------------------------------------------

def boxes_file(tmp_path, *lines):
    path = tmp_path / 'boxes.jsonl'
    path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line)
                              for line in lines), encoding='utf-8')
    return path


def entry(name='a', boxes=((0, 0, .5, 1), (.5, 0, 1, 1)), scores=(.2, .9)):
    return {'id': name, 'boxes': list(map(list, boxes)), 'scores': list(scores)}


def test_boxes_of_a_file_come_best_first_and_none_means_the_whole_frame(tmp_path):
    found = read_boxes(boxes_file(tmp_path, entry(), '', entry('b', (), ())))
    assert found['a'].tolist() == [[.5, 0, 1, 1], [0, 0, .5, 1]]
    assert found['b'].tolist() == [[0, 0, 1, 1]]
    assert read_boxes(boxes_file(tmp_path, entry()), 1)['a'].tolist() == [[.5, 0, 1, 1]]


def test_whole_pixels_of_a_box_of_a_file_stay_whole(tmp_path):
    share = [9 / 224, 11 / 224, 13 / 224, 15 / 224]
    [box] = read_boxes(boxes_file(tmp_path, entry(boxes=[share], scores=[1])))['a']
    rows, columns = box_map(box).nonzero(as_tuple=True)
    assert sorted({*columns.tolist()}) == [9, 10, 11, 12]
    assert sorted({*rows.tolist()}) == [11, 12, 13, 14]


@pytest.mark.parametrize('line, word', [
    (entry(boxes=[[0, 0, 224, 112], [0, 0, 1, 1]]), 'shares of the frame'),
    (entry(boxes=[[-.1, 0, 1, 1], [0, 0, 1, 1]]), 'shares of the frame'),
    (entry(boxes=[[.5, 0, .5, 1], [0, 0, 1, 1]]), 'has an area'),
    (entry(scores=[1, 10 ** 400]), 'expected'), (entry(scores=[1]), 'expected'),
    (entry(scores=[1, float('nan')]), 'expected'),
    (entry(boxes=[[0, 0, 1], [0, 0, 1]]), 'expected'), ({'id': 'a'}, 'expected'),
    ({'id': 'a', 'boxes': [0, 0, 1, 1], 'scores': [1]}, 'expected'),
    ({'id': 1, 'boxes': [], 'scores': []}, 'expected'), ('id,boxes', 'line 2 is not a JSON object'),
    ('[' * 4000, 'line 2 is not'), ('[1]', 'line 2 is not')])
def test_a_bad_line_of_boxes_is_named(tmp_path, line, word):
    with pytest.raises(ValueError, match=f'boxes.jsonl: .*{word}') as said:
        read_boxes(boxes_file(tmp_path, entry('first'), line))
    assert isinstance(line, str) or str(line['id']) in str(said.value)


def test_files_of_boxes_without_what_is_needed_are_refused(tmp_path):
    with pytest.raises(ValueError, match='holds no boxes'):
        read_boxes(boxes_file(tmp_path, ''))
    with pytest.raises(ValueError, match='boxes.jsonl names a twice: keep one'):
        read_boxes(boxes_file(tmp_path, entry(), entry()))
    with pytest.raises(FileNotFoundError, match='--boxes'):
        read_boxes(tmp_path / 'none.jsonl')
    dataset = SimpleNamespace(samples=[SimpleNamespace(id='a'), SimpleNamespace(id='b')])
    dataset = type('Two', (), {'samples': dataset.samples, '__len__': lambda self: 2})()
    with pytest.raises(ValueError, match='no line for 1 of the 2 samples of is4, the first b'):
        baselines.check_ids({'a': None}, {'is4': dataset}, 'boxes.jsonl')


# ---- A class name for a sound --------------------------------------------------------------------

@pytest.fixture(scope='module')
def miniature():
    return load_model('miniature', ROOT / 'miniature/weights/av.pt')


def test_a_sound_gets_clipsegs_map_of_the_label_that_is_most_similar(miniature):
    model, tokenizer = miniature
    labels = list(COLOURS)
    picture = striped()
    samples = [sample('0', 'green', picture, 'green'), sample('1', 'red', picture, 'green'),
               sample('2', 'blue', picture)]
    correct = {'clipseg_clap_text': []}
    colours = {'clipseg_clap_text': Colours()}
    localiser = baselines.text_localiser(model, tokenizer, colours, labels, {}, correct)
    maps = localiser(samples)['clipseg_clap_text']
    words = embed_names(model, tokenizer, SimpleNamespace(
        samples=[SimpleNamespace(label=label) for label in labels]))
    for one, label in zip(samples, ('green', 'red', 'blue')):
        one['label'] = label                                # what the oracle is told
    oracle = localise(model, samples, words)['oracle']
    for mine, theirs in zip(maps, oracle):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert correct == {'clipseg_clap_text': [True, False]}     # the third names no class


def test_embeddings_of_a_space_have_length_1_and_its_texts_the_prompt():
    found = spaces.load_spaces(baselines.METHODS, spaces.WEIGHTS['miniature'], 'cpu')
    wav = torch.rand(2, 32_000, generator=torch.Generator().manual_seed(0)) - 0.5
    for method, space in found.items():
        embedded = [space.embed_audio(wav)]
        if method in baselines.TEXTS:
            embedded.append(space.embed_text(['dog', 'red bell']))
        else:
            embedded.append(space.embed_image([striped(), striped(40, 60)]))
        for rows in embedded:
            assert torch.allclose(rows.norm(dim=1), torch.ones(2), atol=1e-5), method
    clip = spaces.Clip(spaces.WEIGHTS['miniature'].clip, 'cpu')
    for method, space, prompt in (
            ('clipseg_clap_text', found['clipseg_clap_text'], 'This is a sound of dog'),
            ('clipseg_wav2clip_text', clip, 'A photo of a dog')):
        ids = space.tokenizer([prompt], return_tensors='pt')
        plain = F.normalize(space.model.get_text_features(**ids).pooler_output)
        assert torch.allclose(found[method].embed_text(['dog']), plain, atol=1e-5), method


def test_clap_hears_sounds_at_its_own_rate():
    heard = []

    def extractor(wavs, sampling_rate, return_tensors):
        heard.append((len(wavs[0]), sampling_rate))
        return {'input_features': torch.ones(1, 4)}
    extractor.sampling_rate = 48_000
    clap = spaces.Clap.__new__(spaces.Clap)
    clap.extractor = extractor
    clap.model = SimpleNamespace(device='cpu', get_audio_features=lambda input_features:
                                 SimpleNamespace(pooler_output=input_features))
    clap.embed_audio(torch.zeros(1, 16_000))
    assert heard == [(48_000, 48_000)]


def dataset_of(*classes):
    return SimpleNamespace(name='is4', classes=list(classes))


def test_candidates_are_the_benchmarks_own_names_or_those_of_a_file(tmp_path, capsys):
    path = tmp_path / 'labels.txt'
    path.write_text('dog\ncat, tabby\n\n', encoding='utf-8')
    assert read_labels(path, '--labels') == ['dog', 'cat, tabby']
    path.write_bytes(b'dog\r\n"cat, tabby"\r\n')          # cut from a csv
    assert read_labels(path, '--labels') == ['dog', 'cat, tabby']
    assert baselines.candidates(dataset_of('frog'), None, None, path) == ['frog']
    assert baselines.candidates(dataset_of(), None, None, path) == ['dog', 'cat, tabby']
    given = ['dog', 'cat']
    assert baselines.candidates(dataset_of('dog', 'frog'), given, path, None) == given
    assert 'is4: 1 of its 2 class names are not in' in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of the 2 class names of is4, e.g. 'bird'"):
        baselines.candidates(dataset_of('bird', 'frog'), given, path, None)


def test_bad_files_of_labels_are_refused(tmp_path):
    path = tmp_path / 'labels.txt'
    for content, word in ((b'\n \n', 'holds no class name'), (b'dog\ndog\n', "names dog twice"),
                          (b'\xff\xfe', 'not a UTF-8 text')):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=word):
            read_labels(path, '--labels')
    with pytest.raises(FileNotFoundError, match='--labels'):
        read_labels(tmp_path / 'none.txt', '--labels')


def test_the_list_for_sets_without_names_is_all_of_vggsound():
    labels = read_labels(spaces.WEIGHTS['paper'].labels, '--labels')
    assert len(labels) == 309 and 'race car, auto racing' in labels


# ---- The command line, and the shipped models ----------------------------------------------------

@pytest.mark.parametrize('line, words', [
    ('--method clipseg_clap_text --boxes b.jsonl', '--boxes has no effect'),
    ('--method imagebind --labels l.txt', '--labels has no effect'),
    ('--method wav2clip --audioclip a.pt', '--audioclip has no effect'),
    ('--method clipseg_clap_text --task robustness', 'no row of clipseg_clap_text there'),
    ('--task single --benchmarks robust_s4', '--task single has the benchmarks'),
    ('--boxes b.jsonl --detector d', 'do not go together'),
    ('--proposals 0', '--proposals: must be at least 1, not 0'),
    ('--boxes b.jsonl --json b.jsonl', '--json would overwrite --boxes'),
    ('--task multisource', 'invalid choice')])
def test_options_without_effect_are_refused(line, words, capsys):
    with pytest.raises(SystemExit):
        baselines.parse_args(line.split())
    assert words in ' '.join(capsys.readouterr().err.split())


TINY = ROOT / 'miniature/weights'


@pytest.mark.parametrize('method, option, value, words', [
    ('wav2clip', '--wav2clip', TINY / 'audioclip.pt', 'no checkpoint of WAV2CLIP'),
    ('audioclip', '--audioclip', TINY / 'imagebind.pth', 'no checkpoint of AudioCLIP'),
    ('imagebind', '--imagebind', TINY / 'av.pt', 'no checkpoint of ImageBind'),
    ('clipseg_clap_text', '--clap', TINY / 'owlv2', '--clap'),
    ('wav2clip', '--clip', TINY / 'clap', '--clip'),
    ('wav2clip', '--detector', TINY / 'clipseg', '--detector'),
    ('imagebind', '--detector', ROOT / 'nowhere', 'nowhere')])
def test_another_models_weights_are_named_in_one_sentence(method, option, value, words):
    args = baselines.parse_args(['--method', method, option, str(value), '--limit', '1'])
    with pytest.raises((ValueError, OSError)) as error:
        baselines.run(args)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_wav2clip_wants_the_clip_that_it_was_trained_with(monkeypatch):
    clip = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(projection_dim=512)))
    with pytest.raises(ValueError, match='a CLIP of 128 dimensions, and --clip names one of 512'):
        spaces.Wav2clip(TINY / 'wav2clip.pt', clip, 'cpu')


def test_every_cell_of_the_papers_baselines_is_filled_and_maps_score_as_saved(
        small_world, tmp_path, capsys):
    scores = baselines.run(baselines.parse_args([
        '--limit', '2', '--data-root', str(small_world), '--device', 'cpu',
        '--json', str(tmp_path / 'scores.json'), '--save-heatmaps', str(tmp_path / 'maps')]))
    assert json.loads((tmp_path / 'scores.json').read_text()).keys() == set(baselines.METHODS)
    printed = {key: names for key, names in paper_scores().items() if key[2] in baselines.METHODS}
    assert len(printed) == 87
    for (task, benchmark, method), names in printed.items():
        found = scores[method][task][benchmark]
        assert found.keys() >= names.keys() and found['n'] >= 2
        if method in baselines.REGIONS:
            assert not [name for name in found if name.endswith('_adap')]
    found = {(task, benchmark, method) for method, tasks in scores.items()
             for task, sets in tasks.items() for benchmark in sets}
    assert found == printed.keys()                          # and there are no other rows
    assert 'Class names retrieved (%)' in capsys.readouterr().out
    args = evaluate_args(['--heatmaps', str(tmp_path / 'maps/imagebind'), '--limit', '2',
                          '--benchmarks', 'ext_vggss', 'robust_s4', '--task', 'robustness',
                          '--data-root', str(small_world)])
    assert evaluate(args)['robustness'] == {
        name: scores['imagebind']['robustness'][name] for name in ('ext_vggss', 'robust_s4')}
    assert Path(tmp_path, 'maps/imagebind/ext_vggss/confidence.csv').is_file()
    args = evaluate_args(['--heatmaps', str(tmp_path / 'maps/imagebind'), '--limit', '2',
                          '--benchmarks', 'vggss', '--task', 'single',
                          '--data-root', str(small_world)])
    assert evaluate(args)['single'] == {'vggss': scores['imagebind']['single']['vggss']}


def test_boxes_of_a_file_replace_the_detector(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, 'Detector', None)        # not even loaded
    truth = json.loads((small_world / 'vggss/vggss.json').read_text(encoding='utf-8'))
    lines = [entry(one['file'], one['bbox'][:1], [1]) for one in truth]
    args = baselines.parse_args([
        '--method', 'wav2clip', '--task', 'single', '--benchmarks', 'vggss', '--limit', '4',
        '--data-root', str(small_world), '--boxes', str(boxes_file(tmp_path, *lines))])
    assert baselines.run(args)['wav2clip']['single']['vggss']['cIoU'] == 100


def test_an_interrupted_run_leaves_the_benchmarks_that_were_finished(small_world, tmp_path,
                                                                     monkeypatch):
    score_benchmark = baselines.score_benchmark

    def stopped_at(last):
        def scored(dataset, *given, **more):
            if dataset.name == last:
                raise KeyboardInterrupt
            return score_benchmark(dataset, *given, **more)
        return scored

    line = (f'--method wav2clip --benchmarks vggss is4 ext_vggss --data-root {small_world} '
            f'--json {tmp_path / "b.json"}').split()
    found = {}
    for last in ('is4', 'ext_vggss', None):
        monkeypatch.setattr(baselines, 'score_benchmark', stopped_at(last))
        with contextlib.suppress(KeyboardInterrupt):
            baselines.run(baselines.parse_args(line))
        found[last] = json.loads((tmp_path / 'b.json').read_text(encoding='utf-8'))['wav2clip']
    assert list(found['is4']['single']) == ['vggss'] and 'robustness' not in found['is4']
    assert {name for sets in found['ext_vggss'].values() for name in sets} == {'vggss', 'is4'}
    assert found[None] == found['ext_vggss'] | {'robustness': found[None]['robustness']}
