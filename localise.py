"""What evaluate.py scores: sections 3.7, 4.1 (the oracle) and 4.2.5 (the sources of a mixture).

    heatmaps = localise(model, samples)['ours']                     # a map of each sample
    sources = localise_sources(model, mixtures, classes)['ours']    # two maps of each mixture

A sample is that of data.Benchmark. Each distinct frame and sound of a batch is encoded once.
Shapes: B samples, F frames, P pairs of a frame and the embedding of a sound or a name, H W pixels,
h w feature cells, D embedding.
"""

import hashlib
from dataclasses import replace

import torch
import torch.nn.functional as F

import losses
from benchmarks.maps import PAIR_SIZE, SIZE
from masks import mask_gen_f
from model import embed_image, encode_image

MIXTURE_ROWS = ('hard_mask', 'nearest_text', 'true_classes')    # see localise_sources
CLASSES_AT_ONCE = 16        # of a mixture: masked images per pass of the vision encoder


@torch.no_grad()
def localise(model, samples, words=None, cache=None, with_confidence=False):
    """Section 3.7 for a batch. -> {'ours': B maps (224, 224), 'oracle': B maps or None}

    words: {class name: its text embedding (D,)}. The oracle has no map of a sample without a name
    or with a negative condition. cache: see encode. with_confidence: adds 'confidence' to samples.
    """
    words = words or {}
    B = len(samples)
    A, vision = encode(model, samples, cache)                                   # A: (B, D)
    named = [i for i, s in enumerate(samples)
             if s['label'] in words and s['condition'] == 'positive']
    texts = [words[samples[i]['label']] for i in named]
    embeddings = torch.stack([*A, *texts])                                      # (P, D)
    frames = frames_at(vision, [*range(B), *named])                             # P frames
    maps = model.heatmaps(frames, embeddings.unsqueeze(1), SIZE)[:, 0].cpu()    # (P, 224, 224)
    oracle = dict(zip(named, maps[B:]))
    if with_confidence:
        size = samples[0]['image'].shape[-2:]
        values = confidence(model, vision, A, size)                             # (B,)
        for sample, value in zip(samples, values.tolist()):
            sample['confidence'] = {'ours': value}
    return {'ours': list(maps[:B]), 'oracle': [oracle.get(i) for i in range(B)]}


def encode(model, samples, cache=None):
    """Encode each distinct sound and frame of a batch once. -> A (B, D); see encode_frames

    cache: {key: A of a sound (D,)} of earlier batches; those of new sounds are added to it.
    """
    cache = {} if cache is None else cache
    device = next(model.parameters()).device
    keys, sounds = distinct([s['wav'] for s in samples])
    new = [key for key in sounds if key not in cache]
    if new:
        wav = torch.stack([sounds[key] for key in new])
        cache.update(zip(new, model.embed_audio(wav.to(device))))
    A = torch.stack([cache[key] for key in keys])                               # (B, D)
    return A, encode_frames(model.clipseg, samples, device)


def encode_frames(clipseg, samples, device):
    """Encode each distinct frame of a batch once. -> the Vision (model.py) of all B frames"""
    # compared by their pixels: IS4 and VPO hold a copy of a frame for each of its sounds
    keys, frames = distinct([s['image'] for s in samples])
    image = torch.stack(list(frames.values()))                                  # (F, 3, H, W)
    places = [list(frames).index(key) for key in keys]                          # B of 0 .. F - 1
    return frames_at(encode_image(clipseg, image.to(device)), places)


def distinct(tensors):
    """-> a key for each tensor, the same for equal tensors, and {key: tensor}"""
    keys = [hashlib.sha256(one.numpy().tobytes()).digest() for one in tensors]
    return keys, dict(zip(keys, tensors))


def frames_at(vision, places):
    """The frames of a Vision at these indices, which may repeat. -> Vision"""
    return replace(vision, v_D=vision.v_D[places],
                   activations=[layer[places] for layer in vision.activations])


def confidence(model, vision, A, size):
    """How well an image and its sound agree: cos(v_F[i, i], A_i). A (B, D) -> (B,)

    Paper [44]: "derived from a global audio-visual similarity score" (4.1, AP); this is the
    released code's. v_F is that of Eq. 2, of the positive pair. size: (H, W) of the images, the
    size of M_G in training.
    """
    M_G = model.ground(vision, A.unsqueeze(1), size)                        # (B, 1, H, W)
    M_F = mask_gen_f(M_G, vision.v_D.shape[-2:])                            # (B, 1, h, w)
    v_F = losses.masked_features(M_F, vision.v_D)[:, 0]                     # (B, D)
    return F.cosine_similarity(v_F, A)


@torch.no_grad()
def localise_sources(model, samples, classes, cache=None, k=2, names=None):
    """The k sources of a mixture (4.2.5). classes (N, D) text. -> {'ours': B maps (k, 224, 448)}

    Each class name n grounds a mask M_n; v_n^I is the embedding of the image under it. The sources
    are the k classes whose v_n^I is most similar to the embedding A of the mixture; both benchmarks
    mix two. names: of the classes; adds MIXTURE_ROWS, which show what costs accuracy: M_n cut at
    0.5; the classes whose text is most similar to A, without masks; the true ones.
    """
    A, vision = encode(model, samples, cache)                               # A: (B, D)
    image = torch.stack([s['image'] for s in samples]).to(A.device)         # (B, 3, H, W)
    scores = {'ours': similarity_of_classes(model, A, vision, image, classes)}      # (B, N) each
    if names:
        scores['hard_mask'] = similarity_of_classes(model, A, vision, image, classes, hard=True)
        scores['nearest_text'] = F.cosine_similarity(classes, A.unsqueeze(1), dim=-1)
    chosen = {row: of_classes.topk(k, dim=1).indices for row, of_classes in scores.items()}
    if names:       # in 22 mixtures of VGGSound-Duet one class twice, so one map twice
        true = [[names.index(label) for label in s['label']] for s in samples]
        chosen['true_classes'] = torch.tensor(true, device=A.device)        # (B, k)
    maps = {}
    for row, top in chosen.items():                                         # (B, k)
        maps[row] = list(model.heatmaps(vision, classes[top], PAIR_SIZE).cpu())     # (k, 224, 448)
    return maps


def similarity_of_classes(model, A, vision, image, classes, hard=False):
    """cos(v_n^I, A) of B mixtures and N classes. A (B, D), image (B, 3, H, W) -> (B, N)

    Paper [45]: "Following the inference procedure described in Section 3.7, these masks are
    subsequently passed to MaskGen_I": so sigmoid(M_G + b/w) weighs the image. hard: a binary mask.
    """
    similarity = []
    for part in classes.split(CLASSES_AT_ONCE):             # n of the N classes
        M = model.heatmaps(vision, part.expand(len(A), -1, -1), image.shape[-2:])   # (B, n, H, W)
        if hard:
            M = (M > 0.5).float()
        masked = image.unsqueeze(1) * M.unsqueeze(2)                            # (B, n, 3, H, W)
        v_I = embed_image(model.clipseg, masked.flatten(0, 1)).view(*M.shape[:2], -1)   # (B, n, D)
        similarity.append(F.cosine_similarity(v_I, A.unsqueeze(1), dim=-1))         # (B, n)
    return torch.cat(similarity, 1)


def embed_names(model, tokenizer, dataset):
    """What the oracle has in place of A: {class name: text embedding (D,)}, all of a benchmark.

    Paper [38]: "CLIPSeg (w/ GT Text)" (4.1) is given neither a template nor a threshold.
    Here the name stands in "A photo of a {name}", whatever the audio's --prompt, and its heatmap is
    sigmoid(M_G + b/w) with the b/w of the trained model (1.4 before training). So our row and the
    oracle's differ in the embedding only.
    """
    names = sorted({sample.label for sample in dataset.samples if sample.label})
    return {name: model.embed_text(tokenizer, [name])[0] for name in names}
