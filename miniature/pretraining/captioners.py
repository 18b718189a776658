"""The miniature's captioners: a tiny BLIP-2, Qwen2-Audio and Mistral, for section 3.6.

    python -m miniature.pretraining --only captioners           # writes miniature/weights/...
    python -m miniature.pretraining --only captioners --check   # measures those that are there

captions.py loads them by the classes it loads the paper's with; only their sizes differ, about a
million parameters each.
"""

import numpy as np
import torch
from PIL import Image

from captions import (OBJECT_PROMPTS, answer_prompts, caption_images, caption_sounds,
                      load_captioner, parse_answer)
from miniature.drawings import CLASSES
from miniature.pretraining.language import KINDS, could_be
from miniature.pretraining.lessons import BATCH
from miniature.pretraining.tiny_blip2 import pretrain_blip2
from miniature.pretraining.tiny_mistral import pretrain_mistral
from miniature.pretraining.tiny_qwen2_audio import pretrain_qwen2_audio
from miniature.scenes import draw_sounding_scene, sample_generator
from miniature.sounds import sound
from miniature.world import in_parallel, usable_cores

HELD_OUT = 240
STAGE_OF = {'blip2': 'image', 'qwen2_audio': 'audio', 'mistral': 'object'}


def pretrain_captioners(weights, seed):
    """Write the three folders into `weights`, which holds the clipseg that BLIP-2 sees with.

    -> quality dict
    """
    pretrain_mistral(weights / 'mistral', seed)
    pretrain_qwen2_audio(weights / 'qwen2_audio', seed)
    pretrain_blip2(weights / 'blip2', weights / 'clipseg', seed)
    return check_captioners(weights, seed)


def load_tiny(weights, name):
    """-> model, processor"""
    return load_captioner(STAGE_OF[name], str(weights / name), torch.float32, 'cpu')


def one_pair(job):
    index, seed = job
    rng = sample_generator(seed, 'captions-test', index)
    scene = draw_sounding_scene(rng)
    source = str(rng.choice(scene.sounding()))
    things = [(thing.name, thing.colour) for thing in scene.objects]
    return scene.image, things, source, sound(source, rng)


def check_captioners(weights, seed, count=HELD_OUT):
    """Quality over new pairs, from pixels and waveforms to answers, by captions.py. -> dict"""
    jobs = [(index, seed) for index in range(count)]
    pairs = in_parallel(one_pair, jobs, 'drawing test pairs', usable_cores())
    images, things, sources, wavs = zip(*pairs)
    images = [Image.fromarray(image) for image in images]
    wavs = [torch.from_numpy(wav) for wav in wavs]
    image_model, audio_model, llm = (load_tiny(weights, name) for name in STAGE_OF)
    seen = []
    heard = []
    for i in range(0, count, BATCH):
        seen += caption_images(*image_model, images[i:i + BATCH], 30)
        heard += caption_sounds(*audio_model, wavs[i:i + BATCH], 30)
    return {'pairs': count, **caption_quality(seen, heard, things, sources),
            **answer_quality(*llm, seen, heard, sources)}


def caption_quality(seen, heard, things, sources):
    """Image captions against what was drawn, audio captions against sounds. -> {what: share}"""
    named = 0       # of the words for classes in the captions
    right = 0       # those that are there
    coloured = 0    # and those in their colour
    for caption, drawn in zip(seen, things):
        words = caption.replace(',', '').split()
        named += sum(name in words for name in CLASSES)
        found = [(name, colour) for name, colour in drawn if name in words]
        right += len(found)
        coloured += sum(f'{colour} {name}' in caption for name, colour in found)
    fits = [could_be(text) for text in heard]
    return {'image captions: objects named that are there': right / named,
            'image captions: objects there that are named': right / sum(map(len, things)),
            'image captions: colours right': coloured / right,
            'audio captions: true of the sound':
                float(np.mean([name in fit for name, fit in zip(sources, fits)])),
            'audio captions: true of this sound alone':
                float(np.mean([[name] == fit for name, fit in zip(sources, fits)]))}


def answer_quality(model, tokenizer, seen, heard, sources):
    """Share of right and of refused answers, with both captions and with one. -> {what: share}"""
    quality = {}
    for kind in KINDS:
        prompts = [OBJECT_PROMPTS[kind].format(image=image, audio=audio)
                   for image, audio in zip(seen, heard)]
        answers = []
        for i in range(0, len(prompts), BATCH):
            texts = answer_prompts(model, tokenizer, prompts[i:i + BATCH], 12)
            answers += [parse_answer(text) for text in texts]
        right = [answer == name for answer, name in zip(answers, sources)]
        refused = [answer == '' for answer in answers]
        quality[f'answers right, {kind}'] = float(np.mean(right))
        quality[f'answers refused, {kind}'] = float(np.mean(refused))
    return quality
