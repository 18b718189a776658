"""heatmaps.py: which embedding grounds which map, and from which file each sample's map is read.

The model is replaced by one whose maps show the embedding that they were asked for.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import heatmaps
from data import SampleError
from heatmaps import (localise, localise_sources, oracle_of_named, read_confidences, read_heatmap,
                      read_localised, save_heatmaps)


class Echo:
    """A sound's embedding is its first two samples; a map is filled with the first of them."""

    clipseg = 'the vision encoder'

    def __init__(self):
        self.sizes = []
        self.seen = []

    def parameters(self):
        return iter([torch.zeros(1)])

    def embed_audio(self, wav):
        return wav[:, :2]

    def heatmaps(self, vision, A, size):
        self.sizes.append(size)
        self.seen.append(vision)
        return A[..., 0, None, None].expand(*A.shape[:2], *size)


@pytest.fixture
def echo(monkeypatch):
    model = Echo()
    monkeypatch.setattr(heatmaps, 'encode_image', lambda clipseg, image: (clipseg, image))
    return model


def batch_of(*labels):
    count = torch.arange(len(labels))
    wav = torch.stack([.1 + .1 * count, 1 + 0 * count], 1)
    image = count.view(-1, 1, 1, 1).expand(-1, 3, 8, 8).float()
    return {'image': image, 'wav': wav, 'label': list(labels), 'errors': []}


def levels(maps):
    assert (maps == maps[..., :1, :1]).all()
    return [round(float(value), 4) for value in maps[:, 0, 0]]


WORDS = {'cat': torch.tensor([.7, 0]), 'dog': torch.tensor([.8, 0]), 'hen': torch.tensor([.9, 0])}


def test_ours_is_the_sound_s_map_and_the_oracle_the_own_name_s(echo):
    found = localise(echo, batch_of('dog', 'cat', 'dog'), WORDS)
    assert set(found) == {'ours', 'oracle'} and echo.sizes == [(224, 224)]
    assert levels(found['ours']) == [.1, .2, .3] and levels(found['oracle']) == [.8, .7, .8]
    [(clipseg, images)] = echo.seen
    assert clipseg == 'the vision encoder' and images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert set(localise(echo, batch_of('dog', 'cat', 'dog'))) == {'ours'}


def test_other_sounds_are_maps_under_their_own_names(echo):
    other = torch.tensor([[.4, 0], [.5, 0], [.6, 0]])
    sounds = {'silence': torch.zeros(1, 2), 'other': other}
    found = localise(echo, batch_of('dog', 'cat', 'hen'), WORDS, sounds=sounds)
    assert {who: levels(maps) for who, maps in found.items()} == {
        'ours': [.1, .2, .3], 'oracle': [.8, .7, .9], 'silence': [0, 0, 0], 'other': [.4, .5, .6]}


def test_the_confidence_is_of_the_sound_and_the_masked_features_of_its_image(echo, monkeypatch):
    """v_D is (1, 0) in the upper cells and (0, 1) in the lower: cos(v_F, A) says where M_F lay."""
    cells = torch.tensor([[[1., 0], [1, 0]], [[0, 1], [0, 1]]])                     # (h, w, D)
    v_D = torch.stack([cells, cells]).permute(0, 3, 1, 2)                # (B, D, h, w)
    asked = []
    monkeypatch.setattr(heatmaps, 'encode_image', lambda clipseg, image: SimpleNamespace(v_D=v_D))
    upper = torch.tensor([[[9., 9], [-9, -9]]])                                     # (1, h, w)

    def ground(vision, A, size):
        asked.append((vision.v_D is v_D, A.squeeze(1).tolist(), tuple(size)))
        return torch.stack([upper, -upper])

    echo.ground = ground
    monkeypatch.setattr(heatmaps, 'mask_gen_f', lambda M_G, grid: (M_G > 0).float())
    batch = batch_of('dog', 'cat')
    batch['wav'] = torch.tensor([[3., 4], [5, 12]])
    found = localise(echo, batch, WORDS, with_confidence=True)
    assert found['confidence'].tolist() == pytest.approx([3 / 5, 12 / 13], abs=1e-4)
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
    monkeypatch.setattr(heatmaps, 'embed_image', embed)
    batch = batch_of('dog', 'cat')
    batch['image'] = torch.ones(2, 3, 8, 8)
    nearest = torch.tensor([.171, .339])                    # the sounds' directions
    batch['wav'] = torch.stack([(3 * nearest).cos(), (3 * nearest).sin()], 1)
    found = localise_sources(echo, batch, classes, k)
    assert found['ours'].shape == (2, k, 224, 448) and echo.sizes[-1] == (224, 448)
    wanted = [[.17, .18, .16], [.34, .33, .35]]
    for one, values in zip(found['ours'], wanted):
        assert levels(one) == pytest.approx(values[:k])
    assert {tuple(size) for size in echo.sizes[:-1]} == {(8, 8)}
    assert max(map(len, images)) <= 2 * heatmaps.CLASSES_AT_ONCE


def test_the_only_named_sample_of_a_batch_has_the_oracle_s_map_of_its_name(echo):
    batch = {**batch_of(None, 'cat', None), 'id': list('abc')}
    find = lambda part: localise(echo, part, WORDS)
    found = oracle_of_named(find(batch), batch, find)
    assert levels(found['oracle'][1:2]) == [.7] and found['oracle'][[0, 2]].isnan().all()
    assert levels(found['ours']) == [.1, .2, .3]


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
    batch = {'id': list('abcd'), 'label': list('ABCD'), 'boxes': torch.arange(4), 'errors': []}
    confidences = {'d': .3, 'c': .2, 'a': .1, 'z': .9}
    found = read_localised(tmp_path, batch, confidences, two_sources=False)
    assert torch.equal(found['ours'], torch.stack([ramp(.25), ramp(.75), ramp(.5)]))
    assert found['confidence'].tolist() == pytest.approx([.1, .2, .3])
    assert (batch['id'], batch['label']) == (['a', 'c', 'd'], ['A', 'C', 'D'])
    assert batch['boxes'].tolist() == [0, 2, 3]
    [error] = batch['errors']
    assert isinstance(error, SampleError) and f'no heatmap {tmp_path / "b"}.npy' in str(error)


def test_two_maps_of_a_mixture_keep_their_order_and_orientation(tmp_path):
    wide = torch.stack([ramp(.25, (224, 448)), ramp(.75, (224, 448))])
    save_heatmaps(tmp_path, ['m'], wide[None])
    assert sorted(file.name for file in tmp_path.iterdir()) == ['m_0.npy', 'm_1.npy']
    found = read_localised(tmp_path, {'id': ['m'], 'errors': []}, {}, two_sources=True)
    assert found['ours'].shape == (1, 2, 224, 448) and torch.equal(found['ours'][0], wide)
    np.save(tmp_path / 'm_1.npy', np.zeros((448, 224), np.float16))
    batch = {'id': ['m'], 'errors': []}
    assert read_localised(tmp_path, batch, {}, two_sources=True) == {}
    assert '(448, 224)' in str(batch['errors'][0])


def test_maps_of_whole_numbers_and_pictures_reach_from_0_to_1(tmp_path):
    hard = (ramp(0) > 0.5).numpy()
    for kind in (np.uint8, np.int64, bool, np.float64):
        np.save(tmp_path / 'a.npy', hard.astype(kind))
        assert torch.equal(read_heatmap(tmp_path, 'a', (224, 224)), ramp(0)), kind
    Image.fromarray((ramp(0.2).numpy() * 255).astype(np.uint8)).save(tmp_path / 'b.png')
    assert torch.equal(read_heatmap(tmp_path, 'b', (224, 224)), ramp(51 / 255))


@pytest.mark.parametrize('text, words', [
    ('id,confidence\n', 'holds no confidence'), ('a,inf\n', 'line 1'), ('a,0.5\nb,nan\n', 'line 2'),
    ('a,1\na,2\n', 'line 2'), ('id,confidence\na,1,2\n', 'line 2'), ('a,high\n', 'line 1')])
def test_confidences_are_finite_numbers_one_for_each_id(tmp_path, text, words):
    (tmp_path / 'confidence.csv').write_text(text)
    with pytest.raises(ValueError, match=f'confidence.csv.* {words}'):
        read_confidences(tmp_path)
