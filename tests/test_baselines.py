"""Which label and which region a sound gets in baselines.py, and what is refused."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ImageOps

import baselines
from benchmarks.lists import read_labels
from conftest import ROOT
from encoders import spaces
from evaluate import evaluate, feed
from evaluate import parse_args as evaluate_args
from figures.tables import paper_scores
from localise import embed_names, localise
from media import box_map, normalise
from metrics import Extended
from model import load_model
from test_regions import COLOURS, boxes_file, entry, striped


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


def sample(name, colour, picture, label=None):
    image = normalise(picture.resize((96, 96)))
    wav = torch.full((32_000,), float(list(COLOURS).index(colour)))
    return {'id': name, 'wav': wav, 'image': image, 'label': label, 'condition': 'positive'}


# ---- A region for a sound ------------------------------------------------------------------------

THIRDS = torch.tensor([[0, 0, 1 / 3, 1], [1 / 3, 0, 2 / 3, 1], [2 / 3, 0, 1, 1]])


def test_a_sound_gets_the_region_that_is_most_similar_to_it(tmp_path):
    picture = striped()
    picture.save(tmp_path / 'frame.png')
    mirrored = ImageOps.mirror(picture)
    mirrored.save(tmp_path / 'mirrored.png')
    samples = [sample(name, name, picture) for name in ('blue', 'red', 'blue')]
    samples.append(sample('mirrored', 'blue', mirrored))
    asked = []

    def propose(ids, pictures):
        asked.append((ids, [p.size for p in pictures]))
        return [THIRDS, THIRDS]
    files = dict.fromkeys(COLOURS, tmp_path / 'frame.png') | {
        'mirrored': tmp_path / 'mirrored.png'}
    space = Colours()
    maps = baselines.localise_by_region({'wav2clip': space}, propose, files, {}, samples)
    assert asked == [(['blue', 'mirrored'], [(96, 96)] * 2)]        # a frame is looked at once
    assert space.heard == 2                                         # and a sound is heard once
    for k, place in enumerate((2, 0, 2, 0)):
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


def test_a_sample_without_a_line_of_boxes_is_named():
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
        padded = found[method].embed_text(['dog', 'a red bell and a drum'])[:1]
        assert torch.allclose(padded, plain, atol=1e-5), method


def test_sounds_are_embedded_eight_at_a_time_and_none_is_lost():
    passes = []
    model = torch.nn.Linear(1, 1)
    model.embed_audio = lambda sounds: passes.append(len(sounds)) or sounds
    wav = torch.randn(19, 3)
    found = spaces.embed_each(model, lambda one: one[None], wav)
    assert passes == [8, 8, 3] and torch.equal(found, F.normalize(wav))


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


def test_the_encoders_of_the_paper_s_baselines_and_the_number_of_regions():
    paper = spaces.WEIGHTS['paper']
    assert (paper.clip, paper.clap, paper.detector) == (
        'openai/clip-vit-base-patch32', 'laion/clap-htsat-unfused',
        'google/owlv2-base-patch16-ensemble')
    files = [Path(name).name for name in (paper.wav2clip, paper.audioclip, paper.imagebind)]
    assert files == ['Wav2CLIP.pt', 'AudioCLIP-Full-Training.pt', 'imagebind_huge.pth']
    assert baselines.parse_args([]).proposals == 10


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
    lines = [entry(one['file'], [[0, 0, 1, 1], one['bbox'][0]], [.1, 1]) for one in truth]
    args = baselines.parse_args([
        '--method', 'wav2clip', '--task', 'single', '--benchmarks', 'vggss', '--limit', '4',
        '--data-root', str(small_world), '--boxes', str(boxes_file(tmp_path, *lines)),
        '--proposals', '1'])
    assert baselines.run(args)['wav2clip']['single']['vggss']['cIoU'] == 100


def test_options_reach_the_encoders_the_detector_and_the_scores(tmp_path, monkeypatch):
    told = {}

    class FakeDetector:
        def __init__(self, name, device):
            told['detector'] = name

        def propose(self, pictures, count):
            told['proposals'] = count
            return [THIRDS] * len(pictures)

    def note(name, result):
        def noted(*given, **more):
            told[name] = (*given, *more.values())
            return result
        monkeypatch.setattr(baselines, name, noted)

    def score_benchmark(dataset, tasks, localiser, rows, batch_size, folders, reading):
        told['scores'] = rows, batch_size, folders, reading
        told['maps'] = localiser([sample('a', 'red', striped())])
        return 'metrics', None

    striped().save(tmp_path / 'a.png')
    dataset = SimpleNamespace(name='flickr', classes=[], samples=[
        SimpleNamespace(id='a', images=[tmp_path / 'a.png'])])
    note('load', ('model', 'tokenizer', 'paper', None))
    note('open_benchmarks', {'flickr': dataset})
    note('load_spaces', dict.fromkeys(baselines.METHODS, Colours()))
    note('text_localiser', lambda samples: {})
    note('add_scores', None)
    monkeypatch.setattr(baselines, 'Detector', FakeDetector)
    monkeypatch.setattr(baselines, 'score_benchmark', score_benchmark)
    args = baselines.parse_args(
        '--task single --benchmarks flickr --checkpoint c.pt --variant av_llm --clipseg cs '
        '--imagebind i.pth --detector d --proposals 3 --limit 5 --batch-size 7 --reading paper '
        f'--data-root root --device cpu --save-heatmaps {tmp_path}'.split())
    baselines.run(args)
    assert told['load'][1:] == ('c.pt', 'av_llm', None, False, 'cs')
    paper = spaces.WEIGHTS['paper']
    assert told['load_spaces'][1] == replace(paper, imagebind='i.pth', detector='d')
    assert (told['detector'], told['proposals']) == ('d', 3)
    assert told['open_benchmarks'][1:] == ('paper', 'root', 5)
    assert told['text_localiser'][3] == read_labels(paper.labels, '--labels')
    folders = [(method, tmp_path / method / 'flickr') for method in baselines.METHODS]
    assert told['scores'] == (list(baselines.METHODS), 7, folders, 'paper')
    assert told['maps'].keys() == set(baselines.REGIONS)
    assert told['add_scores'][3:5] == ('metrics', 'av')


def test_the_share_of_names_retrieved_is_that_of_all_processes(monkeypatch, capsys):
    monkeypatch.setattr(baselines, 'gather_lists', lambda mine: mine + [True, False])
    baselines.print_retrieved({'vggss': {'clipseg_clap_text': [True, True]}})
    assert capsys.readouterr().out.splitlines()[-1].split() == ['VGG-SS', '75.0', '4']


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
