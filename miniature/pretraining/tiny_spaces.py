"""The tiny WAV2CLIP, AudioCLIP and ImageBind: a sound beside the image of what makes it.

All three learn by InfoNCE from pairs, without labels. WAV2CLIP learns to hear what the tiny CLIP
sees in the frame. AudioCLIP and ImageBind learn to see as well, in minutes and from nothing, so
they are shown the sounding object itself, and other objects as further negatives. Few steps: they
are there to run every line, and say nothing about the real ones.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from encoders import audioclip, imagebind, prepare_images, wav2clip
from encoders.spaces import Clip, SoundsAndImages, Wav2clip
from launch import write_file
from miniature.pretraining.lessons import sound_set, train
from miniature.pretraining.tiny_clap import HELD_OUT_CLIPS, retrieved
from miniature.scenes import draw_sounding_scene, sample_generator
from miniature.sounds import sound
from miniature.world import in_parallel, usable_cores

PAIRS = 2_400
AUDIOCLIP_PAIRS = 480   # its spectrograms take 0.8 MB each
HELD_OUT = 300
TEMPERATURE = 0.07
JITTER = 0.1            # of a box's corners, as a share of its sides: proposals are not exact
# No checkpoint tells the number of heads, so that widths are multiples of the released numbers
WAV2CLIP = dict(widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1), hidden=128)
AUDIOCLIP = dict(dim=64, stem=8, inner=16, groups=4, blocks=(1, 1, 1, 1), image_stem=8,
                 image_blocks=(1, 1, 1, 1), image_size=64)
IMAGEBIND = dict(dim=64, audio_width=96, audio_layers=2, vision_width=96, vision_layers=2,
                 image_size=64, patch=8)
BATCH = {'wav2clip': 48, 'audioclip': 16, 'imagebind': 32}      # and half as many other objects
STEPS = {'wav2clip': 32, 'audioclip': 80, 'imagebind': 160}
LEARNING_RATE = 2e-3


# ---- Pairs ---------------------------------------------------------------------------------------
def one_pair(job):
    """-> frame, crop of what sounds, crop of another object or None (PIL); waveform; its name"""
    split, index, seed = job
    rng = sample_generator(seed, f'spaces-{split}', index)
    scene = draw_sounding_scene(rng)
    source = str(rng.choice(scene.sounding()))
    frame = Image.fromarray(scene.image)
    crops = {thing.name: loose_crop(frame, thing.box, rng) for thing in scene.objects}
    others = [name for name in crops if name != source]
    other = crops[str(rng.choice(others))] if others else None
    return frame, crops[source], other, sound(source, rng), source


def loose_crop(frame, box, rng):
    """A PIL frame inside a box in pixels, moved a little at each corner. -> PIL"""
    x0, y0, x1, y1 = box
    dx, dy = JITTER * (x1 - x0), JITTER * (y1 - y0)
    moved = np.array(box) + rng.uniform(-1, 1, 4) * (dx, dy, dx, dy)
    return frame.crop(tuple(moved.clip(0, frame.width).round().astype(int).tolist()))


def pair_set(split, count, seed):
    """-> frames, sounding crops, other crops (some None), waveforms, names: lists of `count`"""
    jobs = [(split, index, seed) for index in range(count)]
    pairs = in_parallel(one_pair, jobs, f'drawing {split} pairs', usable_cores())
    return [list(column) for column in zip(*pairs)]


# ---- Training ------------------------------------------------------------------------------------
def info_nce(audio, image):
    """(B, D); (B or more, D), of which the first B are the sounds' own -> scalar"""
    logits = F.normalize(audio) @ F.normalize(image).T / TEMPERATURE            # (B, B + others)
    right = torch.arange(len(audio))
    back = logits[:, :len(audio)].T                                             # (B, B)
    return (F.cross_entropy(logits, right) + F.cross_entropy(back, right)) / 2


def align(model, hear, see, count, others, name, seed):
    """Train a model on pairs. hear, see: functions of indices -> embeddings. others: how many"""
    rng = np.random.default_rng(seed)
    model.train()

    def loss():
        picked = rng.choice(count, BATCH[name], replace=False)
        images = [see(picked)]
        if others:
            images.append(see(count + rng.choice(others, BATCH[name] // 2, replace=False)))
        return info_nce(hear(picked), torch.cat(images))
    train(model.parameters(), loss, STEPS[name], LEARNING_RATE, name)
    return model.eval()


def pretrain_spaces(folder, seed):
    """Write wav2clip.pt, audioclip.pt and imagebind.pth. -> quality dict"""
    frames, crops, others, wavs, _ = pair_set('train', PAIRS, seed)
    others = [image for image in others if image]
    wavs = torch.from_numpy(np.stack(wavs).astype(np.float32))                  # (n, samples)
    model = train_wav2clip(folder / 'clipseg', frames, wavs, seed)
    save_flat(model, folder / 'wav2clip.pt')
    part = AUDIOCLIP_PAIRS
    model = train_audioclip(crops[:part] + others[:part], wavs[:part], seed)
    save_flat(model, folder / 'audioclip.pt')
    save_flat(train_imagebind(crops + others, wavs, seed), folder / 'imagebind.pth')
    return check_spaces(folder, seed)


def train_wav2clip(clip_folder, frames, wavs, seed):
    clip = Clip(str(clip_folder), 'cpu')
    images = torch.cat([clip.embed_image(frames[i:i + 64]) for i in range(0, len(frames), 64)])
    torch.manual_seed(seed)
    model = wav2clip.WAV2CLIP(**WAV2CLIP, dim=images.shape[1])
    heard = torch.stack([wav2clip.standardise(x)                                # (n, 257, T)
                         for part in wavs.split(64)
                         for x in model.audio_encoder.spectrogram(part)])
    return align(model, lambda i: model.embed_spectrogram(heard[i]), lambda i: images[i],
                 len(wavs), 0, 'wav2clip', seed)


def train_audioclip(images, wavs, seed):
    """images: one of each sound, then those of other objects (PIL)."""
    torch.manual_seed(seed)
    model = audioclip.AudioCLIP(**AUDIOCLIP)
    model.audio.fbsp.requires_grad_(False)
    with torch.no_grad():
        sounds = torch.cat([audioclip.prepare_audio(wav)[0] for wav in wavs])
        heard = torch.cat([model.audio.spectrogram(part).half()                 # (n, 3, 341, T)
                           for part in sounds.split(8)])
    seen = prepare_images(images, model.image_size)                             # (m, 3, S, S)

    def hear(picked):
        return model.audio.fc(model.audio.pooled(heard[picked].float()))
    return align(model, hear, lambda i: model.embed_image(seen[i]), len(wavs),
                 len(images) - len(wavs), 'audioclip', seed)


def train_imagebind(images, wavs, seed):
    """images: one of each sound, then those of other objects (PIL)."""
    torch.manual_seed(seed)
    model = imagebind.ImageBind(**IMAGEBIND)
    # in 2 s the three clips are one and the same
    heard = torch.cat([imagebind.prepare_audio(wav)[:, :1] for wav in wavs])    # (n, 1, 1, 128, T)
    seen = prepare_images(images, model.image_size)                             # (m, 3, S, S)
    return align(model, lambda i: model.embed_audio(heard[i]),
                 lambda i: model.embed_image(seen[i]), len(wavs), len(images) - len(wavs),
                 'imagebind', seed)


def save_flat(model, path):
    """A flat dict, as the released files are. Matrices and filters in 16 bits."""
    state = {name: value.half() if value.dim() > 1 else value
             for name, value in model.state_dict().items()}
    memory = io.BytesIO()
    torch.save(state, memory)
    write_file(path, memory.getvalue())


# ---- Quality -------------------------------------------------------------------------------------
def check_spaces(folder, seed):
    """Over new pairs. -> quality dict

    Labels retrieved: WAV2CLIP's alone, the one whose texts a baseline uses. The right object: how
    often the crop of what sounds is nearer to the sound than that of another object of the frame.
    """
    clip = Clip(str(folder / 'clipseg'), 'cpu')
    spaces = {
        'WAV2CLIP': Wav2clip(str(folder / 'wav2clip.pt'), clip, 'cpu'),
        'AudioCLIP': SoundsAndImages(
            audioclip, audioclip.AudioCLIP.from_checkpoint(folder / 'audioclip.pt')),
        'ImageBind': SoundsAndImages(
            imagebind, imagebind.ImageBind.from_checkpoint(folder / 'imagebind.pth'))}
    clips = sound_set('spaces-test', HELD_OUT_CLIPS, seed)
    found = retrieved(spaces['WAV2CLIP'], clips)
    quality = {f'WAV2CLIP, {what}': value for what, value in found.items()}
    _, crops, others, wavs, _ = pair_set('test', HELD_OUT, seed)
    pairs = [three for three in zip(crops, others, wavs) if three[1]]
    crops, others, wavs = zip(*pairs)
    wavs = torch.from_numpy(np.stack(wavs).astype(np.float32))
    quality['frames with another object'] = len(pairs)
    for name, space in spaces.items():
        sounds = space.embed_audio(wavs)                                        # (n, D)
        own = (sounds * space.embed_image(crops)).sum(1)                        # (n,)
        other = (sounds * space.embed_image(others)).sum(1)
        quality[f'{name}, the right object of two'] = float((own > other).float().mean())
    return quality
