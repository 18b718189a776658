"""The tiny OWLv2: the tiny CLIP's vision encoder, of which two heads learn boxes and objectness.

Its text half, which region proposals do not use, is as small as transformers lets it be.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import Owlv2Config, Owlv2ForObjectDetection

from media import normalise
from miniature.pretraining.lessons import save, train
from miniature.scenes import IMAGE_SIZE, draw_scene, sample_generator
from miniature.world import in_parallel, usable_cores
from model import load_clipseg
from encoders.regions import Detector, box_iou, corners

TEXT = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, max_position_embeddings=8)
SCENES = 2_400
HELD_OUT_SCENES = 300
BATCH = 64
STEPS = 300
LEARNING_RATE = 3e-3
INNER = 0.15            # cells this far from a box's edge, as a share of its side, learn the box
L1_WEIGHT = 5.0         # of the box's corners, beside 1 for objectness (DETR's weights)
GIOU_WEIGHT = 2.0


def build_owlv2(clip):
    """An untrained OWLv2 around the vision encoder of a CLIPSegModel, which is copied."""
    theirs = clip.config.vision_config
    vision = {name: getattr(theirs, name) for name in (
        'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
        'image_size', 'patch_size', 'hidden_act', 'layer_norm_eps')}
    model = Owlv2ForObjectDetection(Owlv2Config(
        vision_config=vision, text_config=TEXT, projection_dim=TEXT['hidden_size']))
    state = {name.replace('pre_layrnorm', 'pre_layernorm'): value
             for name, value in clip.vision_model.state_dict().items()}
    model.owlv2.vision_model.load_state_dict(state)
    for head in (model.box_head, model.objectness_head):
        for layer in head.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.reset_parameters()        # transformers begins with a deviation near 1
    model.requires_grad_(False)
    model.box_head.requires_grad_(True)
    model.objectness_head.requires_grad_(True)
    return model.eval()


def one_scene(job):
    split, index, seed = job
    scene = draw_scene(sample_generator(seed, f'owlv2-{split}', index))
    return scene.image, [thing.box for thing in scene.objects]


def scene_set(split, count, seed):
    """-> images (n, H, W, 3) uint8, [boxes (objects, 4) in shares of the frame]"""
    jobs = [(split, index, seed) for index in range(count)]
    scenes = in_parallel(one_scene, jobs, f'drawing {split} scenes', usable_cores())
    images, boxes = zip(*scenes)
    return np.stack(images), [torch.tensor(some) / IMAGE_SIZE for some in boxes]


def targets(boxes, side):
    """What the cells of a side x side grid are to learn. -> box (side^2, 4), object (side^2,)

    A cell learns the smallest box in whose inner part its centre lies.
    """
    middle = (torch.arange(side) + 0.5) / side
    centre = torch.stack(torch.meshgrid(middle, middle, indexing='xy'), -1).view(-1, 2)
    box = torch.zeros(side * side, 4)
    is_object = torch.zeros(side * side)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for one in boxes[area.argsort(descending=True)]:
        margin = INNER * (one[2:] - one[:2])
        inside = ((centre > one[:2] + margin) & (centre < one[2:] - margin)).all(1)
        box[inside] = one
        is_object[inside] = 1
    return box, is_object


def generalised_iou(a, b):
    """(n, 4), (n, 4) -> (n,) in -1..1"""
    size = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    shared = sides.clamp(min=0).prod(1)
    union = size - shared
    return shared / (union + 1e-9) - 1 + union / (around.prod(1) + 1e-9)


def pretrain_owlv2(weights, seed):
    """The two heads on frozen features. -> quality dict

    Writes the folder owlv2 into `weights`, which holds the clipseg that it sees with.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build_owlv2(load_clipseg(weights / 'clipseg')[0].clip)
    images, boxes = scene_set('train', SCENES, seed)
    grids = []
    with torch.no_grad():
        for part in np.array_split(images, len(images) // BATCH):
            x = torch.stack([normalise(image) for image in part])
            grids.append(model.image_embedder(pixel_values=x)[0])               # (B, h, w, D)
    grids = torch.cat(grids)
    wanted = [targets(some, grids.shape[1]) for some in boxes]
    right_box, is_object = map(torch.stack, zip(*wanted))       # (n, hw, 4), (n, hw)

    def loss():
        picked = rng.integers(len(grids), size=BATCH)
        grid = grids[picked]
        cells = grid.flatten(1, 2)                                              # (B, hw, D)
        inside = is_object[picked] > 0
        found = corners(model.box_predictor(cells, grid))[inside]               # (k, 4)
        true = right_box[picked][inside]
        objectness = F.binary_cross_entropy_with_logits(
            model.objectness_predictor(cells), is_object[picked])
        return (objectness + L1_WEIGHT * (found - true).abs().mean()
                + GIOU_WEIGHT * (1 - generalised_iou(found, true)).mean())
    train(model.parameters(), loss, STEPS, LEARNING_RATE, 'OWLv2')
    save(model, None, weights / 'owlv2')
    return check_owlv2(weights, seed)


def check_owlv2(weights, seed):
    """How many objects of new scenes a proposal covers with IoU >= 0.5. -> quality dict"""
    detector = Detector(str(weights / 'owlv2'), 'cpu')
    images, boxes = scene_set('test', HELD_OUT_SCENES, seed)
    best = []
    proposals = 0
    for image, true in zip(images, boxes):
        found = detector.propose([Image.fromarray(image)])[0]                   # (n, 4)
        proposals += len(found)
        best += [float(box_iou(one, found).max()) for one in true]
    return {'objects': len(best), 'proposals per scene': proposals / len(images),
            'objects found (IoU >= 0.5)': float(np.mean([iou >= 0.5 for iou in best])),
            'mean IoU of the best proposal': float(np.mean(best))}
