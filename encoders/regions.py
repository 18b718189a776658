"""Region proposals (section 4.1, Baselines): the boxes of a frame that are compared with its sound.

    detector = Detector('google/owlv2-base-patch16-ensemble', 'cuda')
    boxes = detector.propose([frame])[0]            # (n, 4), most object-like first
    boxes = read_boxes('glip.jsonl')['<id>']        # those of another detector

A line of such a file: {"id": "...", "boxes": [[x0, y0, x1, y1], ...], "scores": [0.9, ...]}, with
empty lists where nothing was found. A box is (x0, y0, x1, y1), as fractions of its frame's sides.

Paper [71]: "a pre-trained CLIP-like object detector (Li et al., 2022)" is GLIP; its size, text
prompt and threshold are not given. GLIP needs compiled operators that no package provides, so the
default is OWLv2 (Minderer et al., 2023), whose objectness head ranks boxes without a text prompt.
GLIP's own boxes can be read from a file.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Owlv2ForObjectDetection

from benchmarks.lists import json_lines, unique
from media import normalise
from model import load_pretrained

PROPOSALS = 10          # Paper [72]: silent on how many regions of an image are compared
NMS_IOU = 0.5           # of two boxes that overlap more, the less object-like is dropped
WHOLE = (0.0, 0.0, 1.0, 1.0)        # the one region of a frame in which nothing was found
GREY = (128, 128, 128)              # what OWLv2 pads a frame with


class Detector:
    """OWLv2 (transformers), of which only boxes and objectness are used."""

    def __init__(self, name, device):
        self.model = load_pretrained(Owlv2ForObjectDetection, name, '--detector').to(device)
        self.size = self.model.config.vision_config.image_size

    @torch.no_grad()
    def propose(self, frames, count=PROPOSALS):
        """PIL frames -> for each its boxes (n, 4), at most `count`, the most object-like first"""
        found = []
        for frame in frames:            # one at a time: a frame has 3,600 cells in the real OWLv2
            x = padded_square(frame, self.size)[None].to(self.model.device)     # (1, 3, S, S)
            grid = self.model.image_embedder(pixel_values=x)[0]                 # (1, h, w, D)
            cells = grid.flatten(1, 2)                                          # (1, hw, D)
            scores = self.model.objectness_predictor(cells)[0].cpu()            # (hw,)
            boxes = corners(self.model.box_predictor(cells, grid)[0].cpu())     # (hw, 4)
            side = max(frame.size)
            boxes = (boxes * side / torch.tensor(frame.size * 2)).clamp(0, 1)   # of the frame
            found.append(boxes[suppress(boxes, scores, count)])                 # (n, 4)
        return found


def padded_square(frame, size):
    """Padded with grey below or on the right, then resized (OWLv2). PIL -> (3, size, size)"""
    square = Image.new('RGB', (max(frame.size), max(frame.size)), GREY)
    square.paste(frame)
    return normalise(square.resize((size, size), Image.Resampling.BILINEAR))


def corners(boxes):
    """Boxes (..., 4) as centre, width, height -> (..., 4) as x0, y0, x1, y1"""
    centre = boxes[..., :2]
    half = boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def suppress(boxes, scores, count):
    """Non-maximum suppression. (n, 4), (n,) -> the indices of at most `count` boxes, best first"""
    kept = []
    for k in scores.argsort(descending=True).tolist():
        if len(kept) == count:
            break
        if not kept or box_iou(boxes[k], boxes[kept]).max() < NMS_IOU:
            kept.append(k)
    return kept


def box_iou(box, others):
    """The IoU of one box (4,) with each of others (n, 4) -> (n,)"""
    sides = torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])
    shared = sides.clamp(min=0).prod(1)                                         # (n,)
    area = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return shared / (area - shared).clamp(min=1e-9)


def crop(frame, box):
    """The part of a PIL frame inside a box, at least one pixel. -> PIL"""
    x0, y0, x1, y1 = (round(share * side) for share, side in zip(box, frame.size * 2))
    left = min(x0, frame.width - 1)
    top = min(y0, frame.height - 1)
    return frame.crop((left, top, max(x1, left + 1), max(y1, top + 1)))


# ---- Boxes made elsewhere ------------------------------------------------------------------------
def read_boxes(path, count=PROPOSALS):
    """A file of boxes -> {id: (n, 4), at most `count`, best first}. ValueError names the line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file of boxes at {path}: correct --boxes')
    lines = json_lines(path, 'write it again')
    if not lines:
        raise ValueError(f'{path} holds no boxes: write a line {{"id", "boxes", "scores"}} per '
                         'sample')
    found = []
    for line in lines:
        try:
            boxes = np.array(line['boxes'] or np.empty((0, 4)), np.float64)     # (n, 4)
            scores = np.array(line['scores'], np.float64)                       # (n,)
            valid = isinstance(line['id'], str) and boxes.shape == (len(scores), 4)
            valid = valid and np.isfinite(boxes).all() and np.isfinite(scores).all()
        except (KeyError, TypeError, ValueError, OverflowError):
            valid = False
        problem = None
        if not valid:
            problem = ('expected {"id": a text, "boxes": [[x0, y0, x1, y1]], "scores": a number '
                       'for each box}')
        elif (boxes < 0).any() or (boxes > 1).any():
            problem = 'corners are shares of the frame, 0..1, not pixels'
        elif (boxes[:, 2:] <= boxes[:, :2]).any():
            problem = 'a box has an area, x0 < x1 and y0 < y1'
        if problem:
            raise ValueError(f'{path}: {str(line)[:80]} is no line of boxes: {problem}')
        order = np.argsort(-scores, kind='stable')[:count]
        kept = boxes[order] if len(boxes) else [WHOLE]
        # float64, as in media.box_map 9 / 224 * 224 of float32 would be below 9: a pixel off
        found.append((line['id'], torch.tensor(kept, dtype=torch.float64)))     # (n, 4)
    return unique(found, path)
