"""Which embedding grounds which map, and from which file each sample's map is read.

The model is replaced by one whose maps show the embedding that they were asked for.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import benchmarks.maps as maps_file
import localise as localise_file
from benchmarks.maps import (maps_below, read_confidences, read_heatmap, read_maps,
                             save_heatmaps, with_others)
from data import SampleError
from evaluate import feed
from localise import localise, localise_sources
from metrics import Extended, Segmentation, SingleSource
from model import Vision


class Echo:
    """A sound's embedding is its first two samples; a map is filled with the first of them."""

    clipseg = 'the vision encoder'

    def __init__(self):
        self.sizes = []
        self.seen = []
        self.heard = []

    def parameters(self):
        return iter([torch.zeros(1)])

    def embed_audio(self, wav):
        self.heard += wav[:, 0].tolist()
        return wav[:, :2]

    def heatmaps(self, vision, A, size):
        self.sizes.append(size)
        self.seen.append(vision)
        return A[..., 0, None, None].expand(*A.shape[:2], *size)


@pytest.fixture
def echo(monkeypatch):
    model = Echo()
    model.encoded = []

    def encode(clipseg, image):
        assert clipseg == model.clipseg
        level = image[:, 0, 0, 0]
        model.encoded += level.tolist()
        return Vision([level, level], level)       # every part says which image it is of
    monkeypatch.setattr(localise_file, 'encode_image', encode)
    return model


def samples_of(*labels):
    """Sample i has the image i and the sound .1 + .1 * i."""
    return [{'id': f's{i}', 'image': torch.full((3, 8, 8), float(i)), 'label': label,
             'wav': torch.tensor([.1 + .1 * i, 1.]), 'condition': 'positive'}
            for i, label in enumerate(labels)]


def levels(maps):
    assert all((one == one[:1, :1]).all() for one in maps)
    return [round(float(one[0, 0]), 4) for one in maps]


WORDS = {'cat': torch.tensor([.7, 0]), 'dog': torch.tensor([.8, 0]), 'hen': torch.tensor([.9, 0])}


def test_ours_is_the_sound_s_map_and_the_oracle_the_own_name_s(echo):
    found = localise(echo, samples_of('dog', 'cat', 'dog'), WORDS)
    assert set(found) == {'ours', 'oracle'} and echo.sizes == [(224, 224)]
    assert levels(found['ours']) == [.1, .2, .3] and levels(found['oracle']) == [.8, .7, .8]
    [vision] = echo.seen                                    # one of each pair
    for part in (vision.v_D, *vision.activations):
        assert part.tolist() == [0, 1, 2, 0, 1, 2]
    assert localise(echo, samples_of('dog', 'cat', 'dog'))['oracle'] == [None] * 3


def test_equal_frames_and_equal_sounds_are_encoded_once_and_every_pair_keeps_its_own(echo):
    samples = samples_of('dog', 'cat', 'hen', 'dog')
    samples[2]['image'] = samples[0]['image'].clone()       # another file, the same pixels
    samples[3]['wav'] = samples[1]['wav'].clone()
    known = {}
    found = localise(echo, samples, WORDS, known)
    assert echo.encoded == [0, 1, 3] and echo.heard == pytest.approx([.1, .2, .3])
    assert levels(found['ours']) == [.1, .2, .3, .2] and levels(found['oracle']) == [.8, .7, .9, .8]
    assert echo.seen[0].v_D.tolist() == 2 * [0, 1, 0, 3]
    again = samples_of('dog', 'cat', 'hen', 'dog')          # three sounds of it are known
    assert levels(localise(echo, again, None, known)['ours']) == [.1, .2, .3, .4]
    assert echo.heard == pytest.approx([.1, .2, .3, .4])


def test_negatives_and_the_nameless_have_no_oracle(echo):
    samples = samples_of('dog', None, 'cat', 'hen')
    samples[2]['condition'] = 'silence'
    found = localise(echo, samples, WORDS)
    assert [one is None for one in found['oracle']] == [False, True, True, False]
    assert levels(found['oracle'][::3]) == [.8, .9] and levels(found['ours']) == [.1, .2, .3, .4]
    assert localise(echo, samples_of(None, None), WORDS)['oracle'] == [None, None]


def test_the_confidence_is_of_the_sound_and_the_masked_features_of_its_image(echo, monkeypatch):
    """v_D is (1, 0) in the upper cells and (0, 1) in the lower: cos(v_F, A) says where M_F lay."""
    cells = torch.tensor([[[1., 0], [1, 0]], [[0, 1], [0, 1]]])                     # (h, w, D)
    v_D = torch.stack([cells, cells]).permute(0, 3, 1, 2)                # (B, D, h, w)
    asked = []
    monkeypatch.setattr(localise_file, 'encode_image', lambda clipseg, image: Vision([v_D], v_D))
    upper = torch.tensor([[[9., 9], [-9, -9]]])                                     # (1, h, w)

    def ground(vision, A, size):
        asked.append((torch.equal(vision.v_D, v_D), A.squeeze(1).tolist(), tuple(size)))
        return torch.stack([upper, -upper])

    echo.ground = ground
    monkeypatch.setattr(localise_file, 'mask_gen_f', lambda M_G, grid: (M_G > 0).float())
    samples = samples_of('dog', 'cat')
    samples[0]['wav'] = torch.tensor([3., 4])
    samples[1]['wav'] = torch.tensor([5., 12])
    localise(echo, samples, WORDS, with_confidence=True)
    confidences = [sample['confidence']['ours'] for sample in samples]
    assert confidences == pytest.approx([3 / 5, 12 / 13], abs=1e-4)
    assert asked == [(True, [[3, 4], [5, 12]], (8, 8))]


@pytest.mark.parametrize('k', [2, 3])
def test_the_sources_of_a_mixture_are_the_classes_most_like_its_sound(echo, monkeypatch, k):
    """Of 40 classes, more than go at once, class n has maps of n / 100, which turn v_I."""
    count = torch.arange(40) / 100
    classes = torch.stack([count, torch.ones(40)], 1)
    images = []

    def embed(clipseg, masked):
        images.append(masked)
        level = masked[:, 0, 0, 0]                          # of an image of 1s the map is left
        length = 1 + 9 * level                              # which a cosine does not see
        return torch.stack([(3 * level).cos(), (3 * level).sin()], 1) * length[:, None]
    monkeypatch.setattr(localise_file, 'embed_image', embed)
    samples = samples_of('dog', 'cat')
    for sample, nearest in zip(samples, torch.tensor([.171, .339])):    # the sounds' directions
        sample['image'] = torch.ones(3, 8, 8)
        sample['wav'] = torch.stack([(3 * nearest).cos(), (3 * nearest).sin()])
    found = localise_sources(echo, samples, classes, k=k)
    assert found['ours'][0].shape == (k, 224, 448) and echo.sizes[-1] == (224, 448)
    wanted = [[.17, .18, .16], [.34, .33, .35]]
    for one, values in zip(found['ours'], wanted):
        assert levels(one) == pytest.approx(values[:k])
    assert {tuple(size) for size in echo.sizes[:-1]} == {(8, 8)}
    assert max(map(len, images)) <= 2 * localise_file.CLASSES_AT_ONCE


def test_more_rows_of_a_mixture_show_where_its_loss_is(echo, monkeypatch):
    """Maps of .3, .44, .6 and .9; cut at 0.5 they are 0, 0, 1 and 1."""
    shown = []

    def embed(clipseg, masked):
        level = masked[:, 0, 0, 0]
        shown.extend(level.tolist())
        return torch.stack([(3 * level).cos(), (3 * level).sin()], 1)
    monkeypatch.setattr(localise_file, 'embed_image', embed)
    classes = torch.tensor([[.3, 1], [.44, 1], [.6, 1], [.9, 1.5]])     # the last is the longest
    [sample, _] = samples_of('dog', 'cat')
    sample |= {'label': ['frog', 'dog'], 'image': torch.ones(3, 8, 8),
               'wav': torch.tensor([3 * .53, 3 * .53])}
    sample['wav'] = torch.stack([sample['wav'][0].cos(), sample['wav'][1].sin()])   # near 0.53
    found = localise_sources(echo, [sample], classes, names=['dog', 'cat', 'bird', 'frog'])
    text = torch.cosine_similarity(classes, sample['wav'][None]).topk(2).indices
    assert set(found) == {'ours', *localise_file.MIXTURE_ROWS}
    assert shown == pytest.approx([.3, .44, .6, .9, 0, 0, 1, 1])
    assert levels(found['ours'][0]) == pytest.approx([.6, .44])
    assert sorted(levels(found['hard_mask'][0])) == pytest.approx([.6, .9])
    assert levels(found['nearest_text'][0]) == pytest.approx(classes[text, 0].tolist())
    assert sorted(levels(found['true_classes'][0])) == pytest.approx([.3, .9])
    sample['label'] = ['cat', 'cat']
    found = localise_sources(echo, [sample], classes, names=['dog', 'cat', 'bird', 'frog'])
    assert levels(found['true_classes'][0]) == pytest.approx([.44, .44])


# ------------------------------------------------------------------------------------------------
# What a meter is fed
# ------------------------------------------------------------------------------------------------

class Spy:
    def __init__(self, *needs):
        self.needs = needs
        self.given = []
        self.ids = []

    def update(self, heatmaps, *truth):
        self.given.append((heatmaps[:, 0, 0].tolist(), *truth))


def scored_samples():
    return [{'id': name, 'condition': condition, 'boxes': torch.full((2, 2), k + .5),
             'mask': None if name == 'c' else torch.full((2, 2), k + .25)}
            for k, (name, condition) in enumerate(
                [('a', 'positive'), ('b', 'noise'), ('c', 'positive'), ('d', 'positive')])]


def test_a_meter_takes_the_samples_that_have_what_it_needs():
    maps = [torch.full((2, 2), float(k)) for k in range(4)]
    for needs, maps, taken in (
            (('boxes',), maps, [0, 2, 3]), (('mask',), maps, [0, 3]),           # c has no mask
            (('boxes', 'condition'), maps, [0, 1, 2, 3]),                       # b is a negative
            (('mask', 'condition'), maps, [0, 1, 3]),
            (('boxes',), [*maps[:3], None], [0, 2]), (('boxes',), [None] * 4, [])):
        spy, samples = Spy(*needs), scored_samples()
        feed(spy, samples, maps, 'ours')
        assert spy.ids == [samples[i]['id'] for i in taken]
        if not taken:
            assert spy.given == []
            continue
        [(heat, *truth)] = spy.given
        assert heat == taken
        assert truth[0][:, 0, 0].tolist() == [float(samples[i][needs[0]][0, 0]) for i in taken]
        if len(needs) > 1:
            assert truth[1] == [samples[i]['condition'] for i in taken]


def test_every_metric_says_its_ground_truth():
    assert SingleSource.needs == ('boxes',) and Segmentation.needs == ('mask',)
    assert Extended.needs == ('boxes', 'confidence', 'condition')


# ------------------------------------------------------------------------------------------------
# On disk
# ------------------------------------------------------------------------------------------------

def ramp(value, size=(224, 224)):
    """Its left column is 1, its top row `value`: turned or mirrored it is another map."""
    one = torch.zeros(size)
    one[:, 0] = 1
    one[0, 1:] = value
    return one


def test_maps_are_read_by_id_with_their_own_confidence_and_the_rest_of_their_sample(tmp_path):
    save_heatmaps(tmp_path, ['c', 'a', 'd'], torch.stack([ramp(.75), ramp(.25), ramp(.5)]))
    samples = [{'id': name} for name in 'abcd']
    (tmp_path / 'confidence.csv').write_text('d,0.3\nc,0.2\na,0.1\nz,0.9\n')
    found = read_maps(maps_below(tmp_path, {'boxes', 'confidence'}), samples)
    for one, value in zip(found['heatmaps'], (.25, None, .75, .5)):
        assert one is None if value is None else torch.equal(one, ramp(value))
    assert [s.get('confidence') for s in samples] == [{'heatmaps': .1}, None, {'heatmaps': .2},
                                                      {'heatmaps': .3}]
    [error] = [s['error'] for s in samples if 'error' in s]
    assert isinstance(error, SampleError) and f'no heatmap {tmp_path / "b"}.npy' in str(error)


def test_another_method_s_maps_stand_beside_ours_and_not_of_a_sample_that_has_none():
    samples = [{'id': 'a', 'error': SampleError('a has no map')},
               {'id': 'b', 'confidence': {'ours': .5}}]
    ours = {'ours': [None, ramp(.25)]}
    others = {'by FNAC': lambda name: (ramp(.75), .125)}
    maps = with_others(lambda samples: ours, others, {'a', 'b'}, Counter(), samples)
    assert maps['ours'] == ours['ours'] and maps['by FNAC'][0] is None
    assert torch.equal(maps['by FNAC'][1], ramp(.75))
    assert samples[1]['confidence'] == {'ours': .5, 'by FNAC': .125}


def test_two_maps_of_a_mixture_keep_their_order_and_orientation(tmp_path):
    wide = torch.stack([ramp(.25, (224, 448)), ramp(.75, (224, 448))])
    save_heatmaps(tmp_path, ['m'], wide[None])
    assert sorted(file.name for file in tmp_path.iterdir()) == ['m_0.npy', 'm_1.npy']
    sample = {'id': 'm'}
    found = read_maps(maps_below(tmp_path, {'sources'}), [sample])
    assert torch.equal(found['heatmaps'][0], wide) and 'error' not in sample
    np.save(tmp_path / 'm_1.npy', np.zeros((448, 224), np.float16))
    found = read_maps(maps_below(tmp_path, {'sources'}), [sample])
    assert found['heatmaps'] == [None] and '(448, 224)' in str(sample['error'])


def test_maps_of_whole_numbers_and_pictures_reach_from_0_to_1(tmp_path):
    hard = (ramp(0) > 0.5).numpy()
    for kind in (np.uint8, np.int64, bool, np.float64):
        np.save(tmp_path / 'a.npy', hard.astype(kind))
        assert torch.equal(read_heatmap(tmp_path, 'a', (224, 224)), ramp(0)), kind
    Image.fromarray((ramp(0.2).numpy() * 255).astype(np.uint8)).save(tmp_path / 'b.png')
    assert torch.equal(read_heatmap(tmp_path, 'b', (224, 224)), ramp(51 / 255))


@pytest.mark.parametrize('text, words', [
    ('id,confidence\n', 'holds no confidence'), ('a,inf\n', "of a is 'inf'"),
    ('a,0.5\nb,nan\n', "of b is 'nan'"), ('a,1\na,2\n', 'names a twice'),
    ('id,confidence\na,1,2\n', 'line 2'), ('a,high\n', "of a is 'high'")])
def test_confidences_are_finite_numbers_one_for_each_id(tmp_path, text, words):
    (tmp_path / 'confidence.csv').write_text(text)
    with pytest.raises(ValueError, match=f'confidence.csv.* {words}'):
        read_confidences(tmp_path)


def test_of_several_processes_the_first_says_that_there_are_no_confidences(tmp_path, monkeypatch,
                                                                           capsys):
    for rank in (0, 1):
        monkeypatch.setattr(maps_file, 'rank_and_processes', lambda rank=rank: (rank, 2))
        maps_below(tmp_path, {'confidence'})
    assert capsys.readouterr().out.count('as SLAVC does') == 1
