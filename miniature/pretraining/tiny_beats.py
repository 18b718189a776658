"""The tiny BEATs: names what it hears, several things at once, as the real one after AudioSet."""

import dataclasses
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import trange

from beats import FIXED, BEATs, BEATsConfig, fbank, load_beats
from launch import write_file
from miniature.drawings import SOUNDING
from miniature.scenes import sample_generator
from miniature.sounds import AMBIENT, mixture, sound
from miniature.world import in_parallel, usable_cores

HEARD = SOUNDING + AMBIENT                              # what it learns to name
BEATS = BEATsConfig(encoder_layers=4, encoder_embed_dim=128, encoder_ffn_embed_dim=384,
                    encoder_attention_heads=4, embed_dim=64, finetuned_model=True,
                    predictor_class=len(HEARD))
CLIPS_PER_SOUND = 260
HELD_OUT_CLIPS_PER_SOUND = 40
BATCH = 48
STEPS = 900
LEARNING_RATE = 1e-3


def cosine_schedule(step, steps, peak, warmup=80):
    """Learning rate at a step: linear warm-up, then half a cosine down to zero."""
    return peak * min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def one_clip(job):
    name, split, index, seed = job
    wav = sound(name, sample_generator(seed, f'beats-{split}-{name}', index))
    return (wav * 32767).astype(np.int16)


def sound_set(split, per_sound, seed):
    """-> clips (n, samples) int16 and labels (n,), indices into HEARD."""
    jobs = [(name, split, index, seed) for name in HEARD for index in range(per_sound)]
    labels = np.repeat(np.arange(len(HEARD)), per_sound)
    return np.stack(in_parallel(one_clip, jobs, f'drawing {split} sounds', usable_cores())), labels


def beats_batch(clips, labels, rng):
    """Clips shifted in time and scaled, a third of them mixed with a second one, a few silent.

    -> wav (B, samples) in -1..1, targets (B, len(HEARD)) of zeros and ones.
    """
    wavs = []
    targets = np.zeros((BATCH, len(HEARD)), np.float32)
    for b in range(BATCH):
        picked = rng.integers(len(clips), size=2 if rng.random() < 0.33 else 1)
        parts = [np.roll(clips[i] / np.float32(32768), rng.integers(clips.shape[1]))
                 for i in picked]
        wav = (mixture(*parts) if len(parts) > 1 else parts[0]) * rng.uniform(0.3, 1.1)
        if rng.random() < 0.04:
            wav = sound('silence', rng)                 # nothing to name
        else:
            targets[b, labels[picked]] = 1
        wavs.append(np.clip(wav, -1, 1))
    return torch.tensor(np.stack(wavs), dtype=torch.float32), torch.from_numpy(targets)


def pretrain_beats(path, seed, steps=STEPS):
    """Multi-label classification on mean-pooled features. -> quality dict"""
    clips, labels = sound_set('train', CLIPS_PER_SOUND, seed)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    beats = BEATs(BEATS)
    optimiser = torch.optim.AdamW(beats.parameters(), LEARNING_RATE, weight_decay=0.02)
    bar = trange(steps, desc='BEATs')
    for step in bar:
        optimiser.param_groups[0]['lr'] = cosine_schedule(step, steps, LEARNING_RATE)
        wav, targets = beats_batch(clips, labels, rng)
        x = fbank(wav)
        x[:, :, rng.integers(0, 128):][:, :, :rng.integers(1, 24)] = 0      # hide some frequencies
        logits = beats.predictor(beats.last_layer(beats.features(x)).mean(1))
        loss = F.binary_cross_entropy_with_logits(logits, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bar.set_postfix(loss=f'{loss.item():.3f}')
    save_beats(path, beats)
    return check_beats(path, seed)


def save_beats(path, model):
    """Write {'cfg', 'model'} as the official files do, in float16."""
    weights = {name: weight.detach().cpu().half() for name, weight in model.state_dict().items()}
    content = io.BytesIO()
    torch.save({'cfg': {**FIXED, **dataclasses.asdict(model.cfg)}, 'model': weights}, content)
    write_file(path, content.getvalue())


def check_beats(path, seed):
    """-> quality dict, over clips that no training has heard"""
    clips, labels = sound_set('test', HELD_OUT_CLIPS_PER_SOUND, seed)
    beats = load_beats(path, keep_predictor=True)
    return {'sounds right': sound_accuracy(beats, clips, labels), 'clips': len(clips)}


@torch.no_grad()
def sound_accuracy(beats, clips, labels):
    """Share of clips whose own sound has the predictor's highest score."""
    right = 0
    for i in range(0, len(clips), 64):
        features = beats(torch.from_numpy(clips[i:i + 64].astype(np.float32) / 32768))
        guess = beats.predictor(beats.last_layer(features).mean(1)).argmax(1)
        right += (guess.numpy() == labels[i:i + 64]).sum()
    return float(right / len(clips))
