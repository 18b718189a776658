"""Regions of a frame in encoders/regions.py: found by OWLv2, or read from a file, and cut out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import regions
from encoders.regions import Detector, box_iou, crop, padded_square, read_boxes, suppress
from media import box_map, normalise

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}


def striped(width=96, height=96):
    """Three columns: red, green and blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for k, colour in enumerate(COLOURS.values()):
        pixels[:, k * width // 3:(k + 1) * width // 3] = colour
    return Image.fromarray(pixels)


def test_a_region_is_cut_out_with_at_least_one_pixel():
    picture = striped(9, 6)
    assert crop(picture, (1 / 3, 0, 2 / 3, 0.5)).size == (3, 3)
    assert np.asarray(crop(picture, (1 / 3, 0, 2 / 3, 0.5))).tolist() == [[[0, 255, 0]] * 3] * 3
    assert crop(picture, (0.3, 0, 0.7, 0.5)).size == (3, 3)         # from 2.7 to 6.3, rounded
    assert crop(picture, (0.999, 0.999, 1, 1)).size == (1, 1)
    assert crop(picture, (0, 0, 0.0001, 0.0001)).size == (1, 1)
    assert crop(picture, (1, 1, 1, 1)).size == (1, 1)


def test_of_overlapping_boxes_the_most_object_like_is_kept():
    boxes = torch.tensor([[0, 0, .5, .5], [0, 0, .5, .3], [.5, .5, 1, 1], [0, 0, 1, 1],
                          [0, 0, .5, .125]])
    scores = torch.tensor([-2., -1., -3., 0., -2.5])        # logits
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
    tall = padded_square(wide.rotate(90, expand=True), 8)
    assert torch.allclose(tall[..., 5:], grey.mT[..., 1:])          # on its right
    assert torch.equal(tall[..., :3], normalise(Image.new('RGB', (3, 8), (255, 0, 0))))
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
