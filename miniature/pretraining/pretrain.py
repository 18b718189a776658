"""Train the miniature's backbones: a tiny BEATs, a tiny CLIP and a tiny CLIPSeg decoder, all from nothing.

Also the captioners of section 3.6 (miniature/pretraining/captioners.py), the last stage: the image captioner sees with the tiny CLIP.

    python -m miniature.pretraining                  # about an hour on two cores, writes miniature/weights
    python -m miniature.pretraining --only beats     # three minutes of it
    python -m miniature.pretraining --check          # measures the weights that are there, on held-out scenes and sounds

The paper takes its backbones as they come (section 4.1: CLIP ViT-B/16, CLIPSeg, BEATs). This script plays the part of
the people who made them: it sees scenes with their descriptions and sounds with their labels. train.py never does.

What is written has the formats of the real ones: miniature/weights/clipseg is a transformers folder with a CLIP
tokenizer, miniature/weights/beats.pt a BEATs checkpoint {'cfg', 'model'} that keeps its predictor; 16-bit floats.
"""

import argparse
import math
import multiprocessing
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm, trange
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from beats import BEATs, BEATsConfig, fbank, load_beats, save_beats
from data import normalise
from miniature.pretraining.captioners import check_captioners, pretrain_captioners
from miniature.drawings import CLASSES, COLOURS, SOUNDING
from miniature.pretraining.language import NAMELESS, build_tokenizer, in_template, phrase, with_article
from miniature.sounds import AMBIENT, mixture, sound
from miniature.scenes import draw_scene, sample_generator
from miniature.world import usable_cores
from model import PROMPT, decode, embed_image, embed_prompt, encode_image, load_clipseg, prompt_ids
from resumable import some_path

WEIGHTS = Path(__file__).resolve().parent.parent / 'weights'
BOUNDARY = -14 / 10      # where MaskGen_I's w = 10 and b = 14 put the edge of a mask: M_G = -b / w
LOGIT_SCALE = 2.5        # M_G = BOUNDARY + (log-odds of the object) / LOGIT_SCALE, so that logits span about -5 .. 0,
#                          as the real decoder's do; wider, and the straight-through gradient under w = 10 is dead
HEARD = SOUNDING + AMBIENT                              # what the tiny BEATs learns to name
# The recipe. Sizes first: chosen so that a training step of the method takes a fraction of a second on a laptop.
VISION = dict(hidden_size=96, intermediate_size=288, num_hidden_layers=4, num_attention_heads=4, image_size=96,
              patch_size=8, hidden_act='gelu')
TEXT = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=24, hidden_act='gelu')
BEATS = BEATsConfig(encoder_layers=4, encoder_embed_dim=128, encoder_ffn_embed_dim=384, encoder_attention_heads=4,
                    embed_dim=64, finetuned_model=True, predictor_class=len(HEARD))
SCENES, HELD_OUT_SCENES = 14_000, 1_200
CLIPS_PER_SOUND, HELD_OUT_CLIPS_PER_SOUND = 260, 40
BATCH, STEPS, LEARNING_RATE = 48, 4_600, 1.2e-3
DECODER_STEPS, DECODER_LEARNING_RATE = 400, 5e-4
BEATS_BATCH, BEATS_STEPS, BEATS_LEARNING_RATE = 48, 900, 1e-3


def cosine_schedule(step, steps, peak, warmup=80):
    """Learning rate at a step: linear warm-up, then half a cosine down to zero."""
    return peak * min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _parallel(function, jobs, label):
    with multiprocessing.get_context('spawn').Pool(usable_cores()) as pool:
        return list(tqdm(pool.imap(function, jobs, chunksize=32), label, len(jobs)))


# ------------------------------------------------------------------------------------------------
# The tiny BEATs: names what it hears, several things at once
# ------------------------------------------------------------------------------------------------

def _clip(job):
    name, split, index, seed = job
    return (sound(name, sample_generator(seed, f'beats-{split}-{name}', index)) * 32767).astype(np.int16)


def sound_set(split, per_sound, seed):
    """-> clips (n, samples) int16 and labels (n,), indices into HEARD."""
    jobs = [(name, split, index, seed) for name in HEARD for index in range(per_sound)]
    labels = np.repeat(np.arange(len(HEARD)), per_sound)
    return np.stack(_parallel(_clip, jobs, f'{split} sounds')), labels


def beats_batch(clips, labels, rng):
    """Clips shifted in time and scaled, a third of them mixed with a second one, a few silent.

    -> wav (B, samples) in -1..1, targets (B, len(HEARD)) of zeros and ones.
    """
    wavs, targets = [], np.zeros((BEATS_BATCH, len(HEARD)), np.float32)
    for b in range(BEATS_BATCH):
        picked = rng.integers(len(clips), size=2 if rng.random() < 0.33 else 1)
        parts = [np.roll(clips[i] / np.float32(32768), rng.integers(clips.shape[1])) for i in picked]
        wav = (mixture(*parts) if len(parts) > 1 else parts[0]) * rng.uniform(0.3, 1.1)
        if rng.random() < 0.04:
            wav = sound('silence', rng)                 # nothing to name
        else:
            targets[b, labels[picked]] = 1
        wavs.append(np.clip(wav, -1, 1))
    return torch.tensor(np.stack(wavs), dtype=torch.float32), torch.from_numpy(targets)


def sound_accuracy(beats, clips, labels):
    """Share of clips whose own sound has the predictor's highest score."""
    right = 0
    with torch.no_grad():
        for i in range(0, len(clips), 64):
            features = beats(torch.from_numpy(clips[i:i + 64].astype(np.float32) / 32768))
            guess = beats.predictor(beats.last_layer(features).mean(1)).argmax(1)
            right += (guess.numpy() == labels[i:i + 64]).sum()
    return float(right / len(clips))


def pretrain_beats(path, seed, steps=BEATS_STEPS):
    """Multi-label classification on mean-pooled features, as the real one was tuned on AudioSet. -> quality dict"""
    clips, labels = sound_set('train', CLIPS_PER_SOUND, seed)
    torch.manual_seed(seed)
    rng, beats = np.random.default_rng(seed), BEATs(BEATS)
    optimiser = torch.optim.AdamW(beats.parameters(), BEATS_LEARNING_RATE, weight_decay=0.02)
    for step in (bar := trange(steps, desc='BEATs')):
        optimiser.param_groups[0]['lr'] = cosine_schedule(step, steps, BEATS_LEARNING_RATE)
        wav, targets = beats_batch(clips, labels, rng)
        x = fbank(wav)
        x[:, :, rng.integers(0, 128):][:, :, :rng.integers(1, 24)] = 0          # a band of frequencies hidden
        logits = beats.predictor(beats.last_layer(beats.features(x)).mean(1))
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bar.set_postfix(loss=f'{loss.item():.3f}')
    save_beats(path, beats)
    return check_beats(path, seed)


def check_beats(path, seed):
    clips, labels = sound_set('test', HELD_OUT_CLIPS_PER_SOUND, seed)
    return {'sounds right': sound_accuracy(load_beats(path, keep_predictor=True), clips, labels), 'clips': len(clips)}


# ------------------------------------------------------------------------------------------------
# Scenes as arrays
# ------------------------------------------------------------------------------------------------

def _scene(job):
    split, index, seed = job
    scene = draw_scene(sample_generator(seed, f'clip-{split}', index))
    owner = np.zeros(scene.image.shape[:2], np.uint8)
    for i, thing in enumerate(scene.objects):
        owner[thing.mask] = i + 1
    things = [(CLASSES.index(thing.name), thing.colour) for thing in scene.objects]
    return scene.image, owner, things, scene.place


def scene_set(split, count, seed):
    """-> images (n, H, W, 3) uint8, owners (n, H, W) uint8 (1 + object), things [[(class, colour)]], places [str]."""
    jobs = [(split, index, seed) for index in range(count)]
    images, owners, things, places = zip(*_parallel(_scene, jobs, f'{split} scenes'))
    return np.stack(images), np.stack(owners), things, places


# ------------------------------------------------------------------------------------------------
# The tiny CLIP and its CLIPSeg decoder, together
# ------------------------------------------------------------------------------------------------

def build_clipseg(tokenizer):
    text = dict(TEXT, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    clipseg = CLIPSegForImageSegmentation(CLIPSegConfig(
        text_config=text, vision_config=VISION, projection_dim=128, reduce_dim=32, extract_layers=[0, 1, 2],
        conditional_layer=0, decoder_num_attention_heads=4, decoder_intermediate_size=96,
        use_complex_transposed_convolution=True))
    # transformers starts a fresh decoder with weights of standard deviation 1, which gives logits of +-1000
    for part in clipseg.decoder.modules():
        if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            part.reset_parameters()
    torch.nn.init.constant_(clipseg.decoder.transposed_convolution[-1].bias, BOUNDARY - 2 / LOGIT_SCALE)
    return clipseg


def augment(images, owners):
    """Zoom, shift, flip, contrast and brightness. uint8 arrays -> x (B, 3, H, W) normalised, owner (B, H, W) long."""
    B, H, W = owners.shape
    flow = torch.zeros(B, 2, 3)
    zoom = torch.empty(B).uniform_(0.85, 1.15)
    flow[:, 0, 0], flow[:, 1, 1] = zoom * (torch.rand(B) < 0.5).float().mul(2).sub(1), zoom
    flow[:, :, 2] = torch.empty(B, 2).uniform_(-0.12, 0.12)
    grid = F.affine_grid(flow, (B, 3, H, W), align_corners=False)
    x = torch.stack([normalise(image) for image in images])
    x = F.grid_sample(x, grid, padding_mode='reflection', align_corners=False)
    owner = F.grid_sample(torch.from_numpy(owners).float()[:, None], grid, mode='nearest', align_corners=False)[:, 0]
    return x * torch.empty(B, 1, 1, 1).uniform_(0.85, 1.15) + torch.randn(B, 1, 1, 1) * 0.1, owner.long()


def ragged(mask, rng):
    """A mask as MaskGen_I makes them: too wide or too narrow, speckled, with holes. (H, W) float of 0/1 -> the same."""
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
    """Lay a hard mask on half of the images: the method shows CLIP such images (Eq. 1), so this CLIP must know them.

    A third keep one object, some lose every object. x and owner change in place. -> what is left to see of each
    image, as indices into its things. CLIP's mean colour, 0 after normalisation, stands for what is hidden.
    """
    visible = []
    for b, present in enumerate(things):
        chance, alive = rng.random(), [i for i in range(len(present)) if (owner[b] == i + 1).sum() > 40]
        if chance < 0.45 and alive:
            keep = int(rng.choice(alive))
            x[b] *= ragged((owner[b] == keep + 1).float(), rng)
            owner[b] *= (owner[b] == keep + 1)
            alive = [keep]
        elif chance < 0.52:
            x[b] *= 1 - ragged((owner[b] > 0).float(), rng)
            owner[b], alive = 0, []
        visible.append(alive)
    return visible


def contrast(x, y, scale, captions):
    """Symmetric InfoNCE in which equal captions count as equally right. x, y: (n, D) -> scalar."""
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * F.normalize(x, dim=1) @ F.normalize(y, dim=1).t()
    return -(target * (logits.log_softmax(1) + logits.t().log_softmax(1))).sum(1).mean() / 2


def pretraining_loss(clipseg, tokenizer, batch, rng):
    """CLIP's loss on images and on regions, and the decoder's on masks. batch: a slice of scene_set. -> terms"""
    images, owners, things, places = batch
    x, owner = augment(images, owners)
    visible = hide_parts(x, owner, things, rng)
    captions, regions, region_words, targets, target_words, absent_words = [], [], [], [], [], []
    for b, present in enumerate(things):
        words = [phrase(present[i], rng) for i in rng.permutation(visible[b])]
        whole = len(words) == len(present)
        if not words or (whole and rng.random() < 0.3):
            place = with_article(places[b])
            words = [' and '.join(words) + f' in front of {place}' if words else place]
        captions.append(in_template(' and '.join(words), rng))
        for i in visible[b]:
            if (owner[b] == i + 1).sum() > 60:
                regions.append((b, i + 1))
                region_words.append(in_template(phrase(present[i], rng), rng))
        if visible[b]:
            i = int(rng.choice(visible[b]))
            targets.append((b, i + 1))
            target_words.append(in_template(phrase(present[i], rng, 0.3), rng))
        absent = [c for c in range(len(CLASSES)) if c not in [present[i][0] for i in visible[b]]]
        absent_words.append(in_template(phrase((rng.choice(absent), str(rng.choice(list(COLOURS)))), rng, 0.2), rng))

    ids = tokenizer(captions + region_words + target_words + absent_words, padding=True, return_tensors='pt')
    text = clipseg.clip.get_text_features(**ids).pooler_output
    text, region_text, target_text, absent_text = text.split([len(captions), len(regions), len(targets), len(x)])
    vision, scale = encode_image(clipseg, x), clipseg.clip.logit_scale.exp().clamp(max=50)

    inside = torch.stack([(owner[b] == i).float() for b, i in regions])
    inside = F.adaptive_avg_pool2d(inside[:, None], vision.v_D.shape[-2:])          # (regions, 1, h, w)
    region_features = (vision.v_D[[b for b, _ in regions]] * inside).sum((2, 3))

    # The decoder: the object of a phrase, and nothing for a phrase of what is not there.
    present = torch.stack([(owner[b] == i).float() for b, i in targets])
    rows = [b for b, _ in targets] + list(range(len(x)))
    conditions = noisy(torch.cat([target_text, absent_text]).detach(), 0.6)
    return {'image': contrast(vision.pooled, text, scale, captions),
            'region': 0.5 * contrast(region_features, region_text, scale, region_words),
            **mask_loss(clipseg, [a[rows] for a in vision.activations], conditions,
                        torch.cat([present, torch.zeros(len(x), *owner.shape[1:])]))}


def noisy(conditions, most):
    """Half of the conditions (n, D) moved off the texts' place by up to `most` of their length: later an audio token,
    not a word, will be behind them."""
    noise = F.normalize(torch.randn_like(conditions), dim=1) * conditions.norm(dim=1, keepdim=True)
    return conditions + noise * torch.rand(len(conditions), 1) * most * (torch.rand(len(conditions), 1) < 0.5)


def mask_loss(clipseg, activations, conditions, truth):
    """The decoder's loss: activations of n images, conditions (n, D), truth (n, H, W) of 0 and 1 -> terms.

    Cross-entropy on every pixel, and the Dice loss on the masks that are not empty, which helps early.
    """
    M_G = decode(clipseg, activations, conditions[:, None])[:, 0]
    truth = F.adaptive_avg_pool2d(truth, M_G.shape[-2:])
    log_odds = (M_G - BOUNDARY) * LOGIT_SCALE
    found, wanted = (masks[truth.amax((1, 2)) > 0] for masks in (log_odds.sigmoid(), truth))
    dice = 1 - (2 * (found * wanted).sum((1, 2)) + 1) / (found.sum((1, 2)) + wanted.sum((1, 2)) + 1)
    return {'pixels': 4 * F.binary_cross_entropy_with_logits(log_odds, truth), 'dice': 0.5 * dice.mean()}


def pretrain_clipseg(folder, seed, steps=STEPS):
    """-> quality dict. The weights are written when all is done: an interrupted run leaves the old ones alone."""
    images, owners, things, places = scene_set('train', SCENES, seed)
    torch.manual_seed(seed)
    rng, tokenizer = np.random.default_rng(seed), build_tokenizer(TEXT['max_position_embeddings'])
    clipseg = build_clipseg(tokenizer).train()
    optimiser = torch.optim.AdamW(clipseg.parameters(), LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    running = {}
    for step in (bar := trange(steps, desc='CLIPSeg')):
        optimiser.param_groups[0]['lr'] = cosine_schedule(step, steps, LEARNING_RATE)
        picked = rng.integers(len(images), size=BATCH)
        batch = images[picked], owners[picked], [things[i] for i in picked], [places[i] for i in picked]
        terms = pretraining_loss(clipseg, tokenizer, batch, rng)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(clipseg.parameters(), 1.0)
        optimiser.step()
        running = {k: 0.98 * running.get(k, v.item()) + 0.02 * v.item() for k, v in terms.items()}
        bar.set_postfix({k: f'{v:.3f}' for k, v in running.items()})
    save_clipseg(clipseg, tokenizer, folder)
    return check_clipseg(folder, seed)


def tune_decoder(folder, seed, steps=DECODER_STEPS):
    """The decoder alone, CLIP frozen: words that name nothing now light up every object. -> quality dict

    The real CLIPSeg answers "a thing", or a word it does not know, with whatever stands out. So does this one after
    this: with an untrained AudioTokenizer, whose tokens mean nothing, the method starts from a saliency map.
    """
    images, owners, things, _ = scene_set('train', SCENES, seed)
    torch.manual_seed(seed + 1)
    rng, (clipseg, tokenizer) = np.random.default_rng(seed + 1), load_clipseg(folder)
    clipseg.decoder.requires_grad_(True)
    optimiser = torch.optim.AdamW(clipseg.decoder.parameters(), DECODER_LEARNING_RATE, weight_decay=0.01)
    ids = prompt_ids(tokenizer, PROMPT)
    for step in (bar := trange(steps, desc='decoder')):
        optimiser.param_groups[0]['lr'] = cosine_schedule(step, steps, DECODER_LEARNING_RATE)
        picked = rng.integers(len(images), size=BATCH)
        x, owner = augment(images[picked], owners[picked])
        seen = [[i for i in range(len(things[k])) if (owner[b] == i + 1).sum() > 40] for b, k in enumerate(picked)]
        usable = [b for b in range(BATCH) if seen[b]]
        one = {b: int(rng.choice(seen[b])) for b in usable}
        absent = [rng.choice([c for c in range(len(CLASSES)) if c not in [c for c, _ in things[k]]]) for k in picked]
        words = [in_template(phrase(things[picked[b]][one[b]], rng, 0.3), rng) for b in usable]
        words += [in_template(with_article(CLASSES[absent[b]]), rng) for b in usable]
        words += [in_template(NAMELESS[rng.integers(len(NAMELESS))], rng) for _ in usable]
        with torch.no_grad():
            vision = encode_image(clipseg, x[usable])
            encoded = tokenizer(words, padding=True, return_tensors='pt')
            named, missing, nameless = clipseg.clip.get_text_features(**encoded).pooler_output.chunk(3)
            # an unknown word: a random token, up to some three times as long as a word's
            unknown = torch.randn(len(usable), 1, TEXT['hidden_size']) / TEXT['hidden_size'] ** 0.5
            unknown = embed_prompt(clipseg, torch.tensor(ids[0]), unknown * 2.5 * torch.rand(len(usable), 1, 1),
                                   torch.tensor(ids[1]))
            nameless = torch.where(torch.rand(len(usable), 1) < 0.5, nameless, unknown)
        masks = torch.stack([(owner[b] == one[b] + 1).float() for b in usable])
        everything = (owner[usable] > 0).float()
        terms = mask_loss(clipseg, [a.repeat(3, 1, 1) for a in vision.activations],
                          torch.cat([noisy(torch.cat([named, missing]), 0.6), noisy(nameless, 0.25)]),
                          torch.cat([masks, torch.zeros_like(masks), everything]))
        optimiser.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(clipseg.decoder.parameters(), 1.0)
        optimiser.step()
        bar.set_postfix({k: f'{v.item():.3f}' for k, v in terms.items()})
    save_clipseg(clipseg, tokenizer, folder)
    return check_clipseg(folder, seed)


def save_clipseg(clipseg, tokenizer, folder):
    partial = folder.with_name(f'{folder.name}.partial')
    clipseg.save_pretrained(partial, state_dict={name: value.half() for name, value in clipseg.state_dict().items()})
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@torch.no_grad()
def check_clipseg(folder, seed, count=HELD_OUT_SCENES):
    """Quality on held-out scenes: classes named, and masks found from the class name at MaskGen_I's boundary."""
    images, owners, things, _ = scene_set('test', count, seed)
    clipseg, tokenizer = load_clipseg(folder)
    rng = np.random.default_rng(seed)
    ids = tokenizer([f'a photo of {with_article(name)}' for name in CLASSES], padding=True, return_tensors='pt')
    names = clipseg.clip.get_text_features(**ids).pooler_output
    zero_shot, masked, cells, iou, iou_multi, absent_area = [], [], [], [], [], []
    for b in range(count):
        x, owner = normalise(images[b])[None], torch.from_numpy(owners[b])
        vision, present = encode_image(clipseg, x), [c for c, _ in things[b]]
        name_of = lambda features: int(F.cosine_similarity(features, names).argmax())
        absent = int(rng.choice([c for c in range(len(CLASSES)) if c not in present]))
        M_G = decode(clipseg, vision.activations, names[present + [absent]][None])
        found = F.interpolate(M_G, x.shape[-2:], mode='bicubic')[0] > BOUNDARY          # (objects + 1, H, W)
        absent_area.append(found[-1].float().mean().item())
        if len(present) == 1:
            zero_shot.append(name_of(vision.pooled) == present[0])
        for i, c in enumerate(present):
            truth = owner == i + 1
            masked.append(name_of(embed_image(clipseg, x * ragged(truth.float(), rng))) == c)
            inside = F.adaptive_avg_pool2d(truth.float()[None], vision.v_D.shape[-2:])
            cells.append(name_of((vision.v_D * inside).sum((2, 3))) == c)
            iou.append(((found[i] & truth).sum() / (found[i] | truth).sum()).item())
            if len(present) > 1:
                iou_multi.append(iou[-1])
    measured = {'zero-shot class, single objects': zero_shot, 'class of a hard-masked object': masked,
                'class of an object\'s cells in v_D': cells, 'text-oracle mIoU': iou,
                'text-oracle mIoU, multi-object': iou_multi, 'area under an absent class': absent_area}
    return {name: float(np.mean(values)) for name, values in measured.items()} | {'scenes': count}


STAGES = ('beats', 'clipseg', 'decoder', 'captioners')


def main():
    parser = argparse.ArgumentParser('python -m miniature.pretraining', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=STAGES, help='one of the stages (default: all, in this order)')
    parser.add_argument('--check', action='store_true', help='measure, do not train')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=STEPS, help=f'of the CLIPSeg (default: {STEPS})')
    parser.add_argument('--out', type=some_path, default=WEIGHTS,
                        help='folder to write (default: miniature/weights)')
    args = parser.parse_args()
    args.out = Path(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    beats_file, clipseg_folder = args.out / 'beats.pt', args.out / 'clipseg'
    stages = (args.only,) if args.only else STAGES
    if args.check:
        stages = [stage for stage in stages if stage != 'decoder'] or ['clipseg']       # one check for both
    try:
        for name in stages:
            began = time.time()
            if name == 'beats':
                quality = (check_beats if args.check else pretrain_beats)(beats_file, args.seed)
            elif name == 'captioners':
                quality = (check_captioners if args.check else pretrain_captioners)(args.out, args.seed)
            elif args.check:
                quality = check_clipseg(clipseg_folder, args.seed)
            elif name == 'decoder':
                quality = tune_decoder(clipseg_folder, args.seed)
            else:
                quality = pretrain_clipseg(clipseg_folder, args.seed, args.steps)
            minutes = (time.time() - began) / 60
            print(f'\n{name} (seed {args.seed}, {minutes:.1f} minutes)', flush=True)
            for what, value in quality.items():
                print(f'  {what}: {value:.3f}' if isinstance(value, float) else f'  {what}: {value}', flush=True)
    except (OSError, ValueError) as error:
        sys.exit(f'miniature.pretraining: {error}')


if __name__ == '__main__':
    main()
