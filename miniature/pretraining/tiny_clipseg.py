"""The tiny CLIP and its CLIPSeg decoder: trained together, then the decoder alone.

Half of the images are under a hard, ragged mask: L_ACL_I (Eq. 1) asks CLIP about such images, and
a CLIP that has never met one answers nonsense.
"""

import shutil

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from media import normalise
from miniature.drawings import CLASSES, COLOURS
from miniature.pretraining.language import (NAMELESS, build_tokenizer, in_template, phrase,
                                            with_article)
from miniature.pretraining.tiny_beats import cosine_schedule
from miniature.scenes import draw_scene, sample_generator
from miniature.world import in_parallel, usable_cores
from model import (PROMPT, decode, embed_image, embed_prompt, encode_image, load_clipseg,
                   prompt_ids)

BOUNDARY = -14 / 10     # MaskGen_I's w = 10 and b = 14 put the edge of a mask at M_G = -b / w
# M_G = BOUNDARY + (log-odds of the object) / LOGIT_SCALE: logits then span about -5 .. 0, as the
# real decoder's do. If they span more, the straight-through gradient under w = 10 vanishes.
LOGIT_SCALE = 2.5
# Sizes with which a training step of the method takes a fraction of a second on a laptop
VISION = dict(hidden_size=96, intermediate_size=288, num_hidden_layers=4, num_attention_heads=4,
              image_size=96, patch_size=8, hidden_act='gelu')
TEXT = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=24, hidden_act='gelu')
SCENES = 14_000
HELD_OUT_SCENES = 1_200
BATCH = 48
STEPS = 4_600
LEARNING_RATE = 1.2e-3
DECODER_STEPS = 400
DECODER_LEARNING_RATE = 5e-4


# ------------------------------------------------------------------------------------------------
# Scenes as arrays
# ------------------------------------------------------------------------------------------------

def one_scene(job):
    split, index, seed = job
    scene = draw_scene(sample_generator(seed, f'clip-{split}', index))
    owner = np.zeros(scene.image.shape[:2], np.uint8)
    for i, thing in enumerate(scene.objects):
        owner[thing.mask] = i + 1
    things = [(CLASSES.index(thing.name), thing.colour) for thing in scene.objects]
    return scene.image, owner, things, scene.place


def scene_set(split, count, seed):
    """-> images (n, H, W, 3) uint8, owners (n, H, W) uint8 (0, or 1 + the object seen there),
    things [[(class, colour)]], places [str]"""
    jobs = [(split, index, seed) for index in range(count)]
    scenes = in_parallel(one_scene, jobs, f'drawing {split} scenes', usable_cores())
    images, owners, things, places = zip(*scenes)
    return np.stack(images), np.stack(owners), things, places


def augment(images, owners):
    """Zoom, shift, flip, contrast and brightness of uint8 arrays.

    -> x (B, 3, H, W) normalised, owner (B, H, W) long
    """
    B, H, W = owners.shape
    flow = torch.zeros(B, 2, 3)
    zoom = torch.empty(B).uniform_(0.85, 1.15)
    flow[:, 0, 0] = zoom * (torch.rand(B) < 0.5).float().mul(2).sub(1)
    flow[:, 1, 1] = zoom
    flow[:, :, 2] = torch.empty(B, 2).uniform_(-0.12, 0.12)
    grid = F.affine_grid(flow, (B, 3, H, W), align_corners=False)
    x = torch.stack([normalise(image) for image in images])
    x = F.grid_sample(x, grid, padding_mode='reflection', align_corners=False)
    owner = torch.from_numpy(owners).float()[:, None]                           # (B, 1, H, W)
    owner = F.grid_sample(owner, grid, mode='nearest', align_corners=False)[:, 0]
    contrast = torch.empty(B, 1, 1, 1).uniform_(0.85, 1.15)
    return x * contrast + torch.randn(B, 1, 1, 1) * 0.1, owner.long()


def ragged(mask, rng):
    """A mask as MaskGen_I makes them: too wide or too narrow, speckled, with holes.

    (H, W) float of 0 and 1 -> the same
    """
    H, W = mask.shape
    width = int(rng.choice([1, 3, 5, 9, 13]))
    mask = F.max_pool2d(mask[None], width, 1, width // 2)[0]
    speckle = torch.from_numpy(rng.random((H, W)) < rng.choice([0, 0, 0.02, 0.1, 0.2])).float()
    mask = (mask - speckle).abs()
    if rng.random() < 0.4:
        holes = torch.from_numpy(rng.random((1, 1, 12, 12)) < rng.choice([0.1, 0.3])).float()
        mask = mask * (1 - F.interpolate(holes, (H, W))[0, 0])
    return mask


def hide_parts(x, owner, things, rng):
    """Lay a hard mask on half of the images; x and owner change in place.

    Most of these keep one object, some lose every object. CLIP's mean colour, 0 after
    normalisation, stands for what is hidden. -> what is left of each image: indices into its things
    """
    visible = []
    for b, present in enumerate(things):
        chance = rng.random()
        seen = seen_objects(owner[b], present)
        if chance < 0.45 and seen:
            keep = int(rng.choice(seen))
            x[b] *= ragged((owner[b] == keep + 1).float(), rng)
            owner[b] *= (owner[b] == keep + 1)
            seen = [keep]
        elif chance < 0.52:
            x[b] *= 1 - ragged((owner[b] > 0).float(), rng)
            owner[b] = 0
            seen = []
        visible.append(seen)
    return visible


def seen_objects(owner, present, least=40):
    """The indices of the objects of which more than `least` pixels are seen. owner: (H, W)"""
    return [i for i in range(len(present)) if (owner == i + 1).sum() > least]


# ------------------------------------------------------------------------------------------------
# CLIP and decoder together
# ------------------------------------------------------------------------------------------------

def build_clipseg(tokenizer):
    text = dict(TEXT, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    clipseg = CLIPSegForImageSegmentation(CLIPSegConfig(
        text_config=text, vision_config=VISION, projection_dim=128, reduce_dim=32,
        extract_layers=[0, 1, 2], conditional_layer=0, decoder_num_attention_heads=4,
        decoder_intermediate_size=96, use_complex_transposed_convolution=True))
    # transformers gives a new decoder weights of standard deviation 1, and so logits of +-1000
    for part in clipseg.decoder.modules():
        if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            part.reset_parameters()
    last = clipseg.decoder.transposed_convolution[-1]
    torch.nn.init.constant_(last.bias, BOUNDARY - 2 / LOGIT_SCALE)
    return clipseg


def contrast(x, y, scale, captions):
    """Symmetric InfoNCE in which equal captions count as equally right. x, y: (n, D) -> scalar"""
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).t()
    return -(target * (logits.log_softmax(1) + logits.t().log_softmax(1))).sum(1).mean() / 2


def describe(present, place, visible, owner, rng):
    """Texts for one image. -> its caption, [(object, words)] of its regions, (object, words) of
    one target or None, and words for a class that is absent. owner: (H, W)"""
    words = [phrase(present[i], rng) for i in rng.permutation(visible)]
    if not words or (len(words) == len(present) and rng.random() < 0.3):
        behind = with_article(place)
        words = [' and '.join(words) + f' in front of {behind}' if words else behind]
    caption = in_template(' and '.join(words), rng)
    regions = []
    for i in visible:
        if (owner == i + 1).sum() > 60:
            regions.append((i, in_template(phrase(present[i], rng), rng)))
    target = None
    if visible:
        i = int(rng.choice(visible))
        target = i, in_template(phrase(present[i], rng, 0.3), rng)
    shown = [present[i][0] for i in visible]
    absent = rng.choice([c for c in range(len(CLASSES)) if c not in shown])
    thing = (absent, str(rng.choice(list(COLOURS))))
    return caption, regions, target, in_template(phrase(thing, rng, 0.2), rng)


def pretraining_loss(clipseg, tokenizer, batch, rng):
    """CLIP's loss on images and on regions, and the decoder's on masks. -> terms

    batch: a slice of scene_set
    """
    images, owners, things, places = batch
    x, owner = augment(images, owners)
    visible = hide_parts(x, owner, things, rng)
    texts = [describe(things[b], places[b], visible[b], owner[b], rng) for b in range(len(x))]
    captions = [caption for caption, _, _, _ in texts]
    regions = []
    targets = []
    for b, (_, found, target, _) in enumerate(texts):
        regions += [(b, i, words) for i, words in found]
        if target:
            targets.append((b, *target))
    region_words = [words for _, _, words in regions]
    words = captions + region_words + [words for _, _, words in targets]
    words += [absent for _, _, _, absent in texts]

    ids = tokenizer(words, padding=True, return_tensors='pt')
    text = clipseg.clip.get_text_features(**ids).pooler_output
    text, region_text, target_text, absent_text = text.split(
        [len(captions), len(regions), len(targets), len(x)])
    vision = encode_image(clipseg, x)
    scale = clipseg.clip.logit_scale.exp().clamp(max=50)

    inside = torch.stack([(owner[b] == i + 1).float() for b, i, _ in regions])
    inside = F.adaptive_avg_pool2d(inside[:, None], vision.v_D.shape[-2:])      # (regions, 1, h, w)
    region_features = (vision.v_D[[b for b, _, _ in regions]] * inside).sum((2, 3))

    # The decoder: the object of a phrase, and nothing for a phrase of what is not there
    truth = torch.stack([(owner[b] == i + 1).float() for b, i, _ in targets])
    truth = torch.cat([truth, torch.zeros(len(x), *owner.shape[1:])])
    rows = [b for b, _, _ in targets] + list(range(len(x)))
    conditions = noisy(torch.cat([target_text, absent_text]).detach(), 0.6)
    return {'image': contrast(embed_image(clipseg, x), text, scale, captions),
            'region': 0.5 * contrast(region_features, region_text, scale, region_words),
            **mask_loss(clipseg, [a[rows] for a in vision.activations], conditions, truth)}


def noisy(conditions, most):
    """Move half of the conditions (n, D) by up to `most` of their length: the method gives the
    decoder an audio token, which lies beside the words."""
    n = len(conditions)
    noise = F.normalize(torch.randn_like(conditions), dim=1) * conditions.norm(dim=1, keepdim=True)
    return conditions + noise * torch.rand(n, 1) * most * (torch.rand(n, 1) < 0.5)


def mask_loss(clipseg, activations, conditions, truth):
    """The decoder's loss: activations of n images, conditions (n, D), truth (n, H, W) -> terms

    Cross-entropy on every pixel, and the Dice loss on the masks that are not empty, which helps
    early.
    """
    M_G = decode(clipseg, activations, conditions[:, None])[:, 0]               # (n, h, w)
    truth = F.adaptive_avg_pool2d(truth, M_G.shape[-2:])
    log_odds = (M_G - BOUNDARY) * LOGIT_SCALE
    filled = truth.amax((1, 2)) > 0
    found = log_odds.sigmoid()[filled]
    wanted = truth[filled]
    shared = (found * wanted).sum((1, 2))
    dice = 1 - (2 * shared + 1) / (found.sum((1, 2)) + wanted.sum((1, 2)) + 1)
    pixels = F.binary_cross_entropy_with_logits(log_odds, truth)
    return {'pixels': 4 * pixels, 'dice': 0.5 * dice.mean()}


def step_on(terms, parameters, optimiser):
    """One step of the optimiser on the sum of the terms."""
    optimiser.zero_grad()
    sum(terms.values()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


def pretrain_clipseg(folder, seed, steps=STEPS):
    """-> quality dict. The weights are written at the end: an interrupted run keeps the old."""
    images, owners, things, places = scene_set('train', SCENES, seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = build_tokenizer(TEXT['max_position_embeddings'])
    clipseg = build_clipseg(tokenizer).train()
    optimiser = torch.optim.AdamW(clipseg.parameters(), LEARNING_RATE, weight_decay=0.05,
                                  betas=(0.9, 0.98))
    running = {}
    bar = trange(steps, desc='CLIPSeg')
    for step in bar:
        optimiser.param_groups[0]['lr'] = cosine_schedule(step, steps, LEARNING_RATE)
        picked = rng.integers(len(images), size=BATCH)
        batch = (images[picked], owners[picked], [things[i] for i in picked],
                 [places[i] for i in picked])
        terms = pretraining_loss(clipseg, tokenizer, batch, rng)
        step_on(terms, clipseg.parameters(), optimiser)
        for name, value in terms.items():
            running[name] = 0.98 * running.get(name, value.item()) + 0.02 * value.item()
        bar.set_postfix({name: f'{value:.3f}' for name, value in running.items()})
    save_clipseg(clipseg, tokenizer, folder)
    return check_clipseg(folder, seed)


# ------------------------------------------------------------------------------------------------
# The decoder alone
# ------------------------------------------------------------------------------------------------

def tune_decoder(folder, seed, steps=DECODER_STEPS):
    """The decoder alone, CLIP frozen: words that name nothing light up every object. -> quality

    The real CLIPSeg answers "a thing", or a word it does not know, with whatever stands out. So
    does this one afterwards: with an untrained AudioTokenizer, whose tokens mean nothing, the
    method starts from a saliency map.
    """
    images, owners, things, _ = scene_set('train', SCENES, seed)
    torch.manual_seed(seed + 1)
    rng = np.random.default_rng(seed + 1)
    clipseg, tokenizer = load_clipseg(folder)
    clipseg.decoder.requires_grad_(True)
    optimiser = torch.optim.AdamW(clipseg.decoder.parameters(), DECODER_LEARNING_RATE,
                                  weight_decay=0.01)
    bar = trange(steps, desc='decoder')
    for step in bar:
        optimiser.param_groups[0]['lr'] = cosine_schedule(step, steps, DECODER_LEARNING_RATE)
        picked = rng.integers(len(images), size=BATCH)
        x, owner = augment(images[picked], owners[picked])
        terms = tuning_loss(clipseg, tokenizer, x, owner, [things[k] for k in picked], rng)
        step_on(terms, clipseg.decoder.parameters(), optimiser)
        bar.set_postfix({name: f'{value.item():.3f}' for name, value in terms.items()})
    save_clipseg(clipseg, tokenizer, folder)
    return check_clipseg(folder, seed)


def tuning_loss(clipseg, tokenizer, x, owner, things, rng):
    """mask_loss for one object by its name, for an absent class, and for words without meaning."""
    seen = [seen_objects(owner[b], present) for b, present in enumerate(things)]
    usable = [b for b in range(len(x)) if seen[b]]
    one = {b: int(rng.choice(seen[b])) for b in usable}
    absent = []
    for present in things:
        there = [c for c, _ in present]
        absent.append(rng.choice([c for c in range(len(CLASSES)) if c not in there]))
    words = [in_template(phrase(things[b][one[b]], rng, 0.3), rng) for b in usable]
    words += [in_template(with_article(CLASSES[absent[b]]), rng) for b in usable]
    words += [in_template(NAMELESS[rng.integers(len(NAMELESS))], rng) for _ in usable]
    with torch.no_grad():
        vision = encode_image(clipseg, x[usable])
        encoded = tokenizer(words, padding=True, return_tensors='pt')
        features = clipseg.clip.get_text_features(**encoded).pooler_output
        named, missing, nameless = features.chunk(3)
        unknown = unknown_words(clipseg, tokenizer, len(usable))
        nameless = torch.where(torch.rand(len(usable), 1) < 0.5, nameless, unknown)
    masks = torch.stack([(owner[b] == one[b] + 1).float() for b in usable])
    everything = (owner[usable] > 0).float()
    conditions = torch.cat([noisy(torch.cat([named, missing]), 0.6), noisy(nameless, 0.25)])
    return mask_loss(clipseg, [a.repeat(3, 1, 1) for a in vision.activations], conditions,
                     torch.cat([masks, torch.zeros_like(masks), everything]))


def unknown_words(clipseg, tokenizer, n):
    """The prompt with random tokens, up to some three times as long as a word's. -> (n, D)"""
    before, after = prompt_ids(tokenizer, PROMPT)
    tokens = torch.randn(n, 1, TEXT['hidden_size']) / TEXT['hidden_size'] ** 0.5
    tokens = tokens * 2.5 * torch.rand(n, 1, 1)
    return embed_prompt(clipseg, torch.tensor(before), tokens, torch.tensor(after))


def save_clipseg(clipseg, tokenizer, folder):
    """A transformers folder with 16-bit weights. It replaces the old one when it is complete."""
    partial = folder.with_name(f'{folder.name}.partial')
    half = {name: value.half() for name, value in clipseg.state_dict().items()}
    clipseg.save_pretrained(partial, state_dict=half)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


# ------------------------------------------------------------------------------------------------
# Quality
# ------------------------------------------------------------------------------------------------

@torch.no_grad()
def check_clipseg(folder, seed, count=HELD_OUT_SCENES):
    """Quality on held-out scenes: classes named, and masks found from the class name."""
    images, owners, things, _ = scene_set('test', count, seed)
    clipseg, tokenizer = load_clipseg(folder)
    rng = np.random.default_rng(seed)
    prompts = [f'a photo of {with_article(name)}' for name in CLASSES]
    ids = tokenizer(prompts, padding=True, return_tensors='pt')
    names = clipseg.clip.get_text_features(**ids).pooler_output
    measured = {'zero-shot class, single objects': [], 'class of a hard-masked object': [],
                "class of an object's cells in v_D": [], 'text-oracle mIoU': [],
                'text-oracle mIoU, multi-object': [], 'area under an absent class': []}
    for image, owner, present in zip(images, owners, things):
        owner = torch.from_numpy(owner)
        for name, value in check_scene(clipseg, names, image, owner, present, rng):
            measured[name].append(value)
    quality = {name: float(np.mean(values)) for name, values in measured.items()}
    return quality | {'scenes': count}


def check_scene(clipseg, names, image, owner, things, rng):
    """Yield (what was measured, value) for one scene. names: (classes, D) text features"""
    def name_of(features):
        return int(F.cosine_similarity(features, names).argmax())
    x = normalise(image)[None]
    vision = encode_image(clipseg, x)
    present = [c for c, _ in things]
    absent = int(rng.choice([c for c in range(len(CLASSES)) if c not in present]))
    M_G = decode(clipseg, vision.activations, names[present + [absent]][None])
    found = F.interpolate(M_G, x.shape[-2:], mode='bicubic')[0] > BOUNDARY    # (present + 1, H, W)
    yield 'area under an absent class', found[-1].float().mean().item()
    if len(present) == 1:
        yield 'zero-shot class, single objects', name_of(embed_image(clipseg, x)) == present[0]
    for i, c in enumerate(present):
        truth = owner == i + 1
        masked = embed_image(clipseg, x * ragged(truth.float(), rng))
        yield 'class of a hard-masked object', name_of(masked) == c
        inside = F.adaptive_avg_pool2d(truth.float()[None], vision.v_D.shape[-2:])
        in_cells = (vision.v_D * inside).sum((2, 3))
        yield "class of an object's cells in v_D", name_of(in_cells) == c
        iou = ((found[i] & truth).sum() / (found[i] | truth).sum()).item()
        yield 'text-oracle mIoU', iou
        if len(present) > 1:
            yield 'text-oracle mIoU, multi-object', iou
