"""What the tiny captioners learn from: scenes and sounds drawn for them; the training loop."""

import shutil

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from captions import AUDIO_PROMPT, OBJECT_PROMPTS
from miniature.backgrounds import PLACES
from miniature.drawings import CLASSES, COLOURS
from miniature.pretraining.language import HEARD, UNKNOWN, VAGUE, image_caption, with_article
from miniature.scenes import IMAGE_SIZE, draw_scene, sample_generator
from miniature.sounds import DESCRIPTIONS, sound
from miniature.world import in_parallel, usable_cores

BATCH = 48


def one_scene(job):
    """-> image (H, W, 3) uint8, [(class, colour)] largest first, place, share of the largest box"""
    split, index, seed = job
    scene = draw_scene(sample_generator(seed, f'captions-{split}', index))
    boxes = [thing.box for thing in scene.objects]
    areas = [(x1 - x0) * (y1 - y0) / IMAGE_SIZE ** 2 for x0, y0, x1, y1 in boxes]
    things = [scene.objects[i] for i in np.argsort(areas)[::-1]]
    return (scene.image, [(thing.name, thing.colour) for thing in things], scene.place,
            max(areas))


def scene_set(split, count, seed):
    """-> list of what one_scene gives"""
    jobs = [(split, index, seed) for index in range(count)]
    return in_parallel(one_scene, jobs, f'drawing {split} scenes', usable_cores())


def one_clip(job):
    name, split, index, seed = job
    return name, sound(name, sample_generator(seed, f'captions-{split}-{name}', index))


def sound_set(split, per_sound, seed):
    """-> list of (name of the sound, waveform (samples,) float32)"""
    jobs = [(name, split, i, seed) for name in HEARD for i in range(per_sound)]
    return in_parallel(one_clip, jobs, f'drawing {split} sounds', usable_cores())


def all_texts():
    """Every word that a caption, a prompt or an answer of the miniature may hold."""
    rng = np.random.default_rng(0)
    texts = list(CLASSES) + [UNKNOWN, AUDIO_PROMPT, *OBJECT_PROMPTS.values()]
    texts += [with_article(f'{colour} {name}') for colour in COLOURS for name in CLASSES]
    for place in PLACES:
        for largest in (0.0, 1.0):
            texts += [image_caption([('dog', 'red')] * n, place, largest, rng)
                      for n in (1, 2, 3) for _ in range(40)]
    for several in (*DESCRIPTIONS.values(), *VAGUE.values()):
        texts += several
    return texts + ['system user assistant You are a helpful assistant.', 'Audio 1: \n']


def padded(prompts, answers, pad):
    """Token numbers of prompts and answers, one row each, padded at the right.

    -> ids (B, L); labels (B, L): the answers' numbers in their places, -100 elsewhere, so that the
    loss is theirs alone
    """
    length = max(len(p) + len(a) for p, a in zip(prompts, answers))
    ids = torch.full((len(prompts), length), pad)
    labels = torch.full((len(prompts), length), -100)
    for b, (prompt, answer) in enumerate(zip(prompts, answers)):
        ids[b, :len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[b, len(prompt):len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def next_token_loss(logits, labels):
    """Cross-entropy of each label under the logits before it. (B, L, words), (B, L) -> scalar"""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train(parameters, loss_of_step, steps, rate, label):
    """AdamW on a one-cycle schedule. loss_of_step() -> scalar, a fresh batch's."""
    parameters = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    smooth = None
    bar = trange(steps, desc=label)
    for _ in bar:
        loss = loss_of_step()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        smooth = loss.item() if smooth is None else 0.97 * smooth + 0.03 * loss.item()
        bar.set_postfix(loss=f'{smooth:.3f}')


def save(model, processor, folder):
    """A transformers folder with 16-bit weights. It replaces the old one when it is complete."""
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    state = model.state_dict()
    output = model.get_output_embeddings()              # None: the model does not write
    if output is not None and output.weight is model.get_input_embeddings().weight:
        state = {name: value for name, value in state.items()       # a tied matrix is stored once
                 if not name.endswith('lm_head.weight')}
    half = {name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in state.items()}
    model.save_pretrained(partial, state_dict=half)
    if processor:
        processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
