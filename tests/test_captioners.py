"""The miniature's captioners: of the paper's classes, small, and right often enough."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import Qwen2AudioProcessor

from captions import OBJECT_PROMPTS, answer_prompts, caption_images, caption_sounds, load_captioner
from media import normalise, read_audio
from miniature.drawings import SOUNDING
from miniature.pretraining import captioners, lessons, tiny_blip2, tiny_mistral
from miniature.pretraining.__main__ import WEIGHTS
from miniature.pretraining.captioners import STAGE_OF
from miniature.pretraining.language import UNKNOWN, could_be, enumerated, word_tokenizer
from model import load_clipseg

MEGABYTE = 2 ** 20


@pytest.fixture(scope='module')
def models():
    return {name: captioners.load_tiny(WEIGHTS, name) for name in STAGE_OF}


@pytest.fixture(scope='module')
def pairs(small_world):
    """40 pairs of a world that no captioner was taught on."""
    scenes = [json.loads(line) for line in (small_world / 'scenes.jsonl').read_text().splitlines()]
    return [scene for scene in scenes if scene['split'] == 'train'][:40]


@pytest.fixture(scope='module')
def captions(small_world, models, pairs):
    folder = small_world / 'vggsound'
    images = [Image.open(folder / 'frames' / f'{scene["id"]}.jpg').convert('RGB')
              for scene in pairs]
    wavs = [read_audio(folder / 'audio' / f'{scene["id"]}.wav', 2.0) for scene in pairs]
    return (caption_images(*models['blip2'], images, 30),
            caption_sounds(*models['qwen2_audio'], wavs, 30))


def test_the_three_are_small_and_in_16_bits(models):
    files = [file for name in STAGE_OF for file in (WEIGHTS / name).rglob('*') if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8 * MEGABYTE
    for name in STAGE_OF:
        with safe_open(WEIGHTS / name / 'model.safetensors', 'pt') as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {'F16'}
    assert isinstance(models['qwen2_audio'][1], Qwen2AudioProcessor)


def test_image_captions_name_what_is_in_sight(captions, pairs):
    things = [[(thing['name'], thing['colour']) for thing in scene['objects']] for scene in pairs]
    quality = captioners.caption_quality(*captions, things, [scene['sounding'] for scene in pairs])
    assert quality['image captions: objects named that are there'] > 0.75, quality
    assert quality['image captions: objects there that are named'] > 0.7, quality
    assert quality['audio captions: true of the sound'] > 0.8, quality
    words = [caption.replace(',', '').split() for caption in captions[0]]
    named = [[name for name, _ in drawn if name in said] for said, drawn in zip(words, things)]
    assert sum(map(bool, named)) >= 0.8 * len(words)
    assert any(name not in SOUNDING for names in named for name in names)   # silent ones, too


def test_two_captions_answer_better_than_one(captions, models, pairs):
    quality = captioners.answer_quality(*models['mistral'], *captions,
                                        [scene['sounding'] for scene in pairs])
    assert quality['answers right, both'] > 0.7, quality
    assert quality['answers right, both'] > quality['answers right, image'], quality
    assert quality['answers right, both'] > quality['answers right, audio'], quality


def test_answers_have_at_most_three_words_and_follow_the_captions(models):
    asked = [('a red drum and a green dog in an open field', 'a drum is played'),
             ('a red drum and a green dog in an open field', 'an animal makes short calls'),
             ('a green dog and a red drum in an open field', 'a drum is played'),
             ('a photo of a blue cup on a checkered floor', 'a siren wails')]
    prompts = [OBJECT_PROMPTS['both'].format(image=image, audio=audio) for image, audio in asked]
    answers = answer_prompts(*models['mistral'], prompts, 12)
    assert [answer.strip() for answer in answers] == ['drum', 'dog', 'drum', UNKNOWN]


def test_the_image_captioner_sees_as_the_clip_it_was_copied_from(models):
    clip = load_clipseg(WEIGHTS / 'clipseg')[0].clip.vision_model
    scenes = [lessons.one_scene(('look', index, 3)) for index in range(8)]
    x = torch.stack([normalise(image) for image, *_ in scenes])
    with torch.no_grad():
        wanted = tiny_blip2.seen_by_clip(clip, x)
        seen = models['blip2'][0].vision_model(x).last_hidden_state
    assert ((seen - wanted) ** 2).mean() < 0.1 * wanted.var()


def test_the_right_answer_is_in_sight_and_can_be_heard_or_is_unknown():
    rng = np.random.default_rng(0)
    for _ in range(300):
        prompt, answer = tiny_mistral.question('both', rng)
        image, audio = prompt.rsplit('Image caption: ', 1)[1].split(', Audio caption: ')
        fitting = [name for name in could_be(audio) if name in image.replace(',', '').split()]
        assert answer in fitting if fitting else answer == UNKNOWN
    assert tiny_mistral.question('image', rng)[1] in (*SOUNDING, UNKNOWN)


def test_words_come_back_as_they_went_in():
    texts = ['a red drum, a green dog and a cup', 'Limit it: no more than 3 words.\nNow']
    tokenizer = word_tokenizer(texts, ('<unk>', '<s>'), ('<s>', '$A'))
    assert tokenizer.decode(tokenizer.encode(texts[0]).ids) == texts[0]
    assert tokenizer.encode('a red drum').tokens == ['<s>', '▁a', '▁red', '▁drum']
    assert tokenizer.encode('a blue drum').tokens[2] == '<unk>'
    assert enumerated(['a cup']) == 'a cup'
    assert enumerated(['a cup', 'a dog', 'a bird']) == 'a cup, a dog and a bird'


def test_only_answers_are_learned():
    ids, labels = lessons.padded([[5, 6, 7], [8]], [[1, 2], [3, 2]], 0)
    assert ids.tolist() == [[5, 6, 7, 1, 2], [8, 3, 2, 0, 0]]
    assert labels.tolist() == [[-100, -100, -100, 1, 2], [-100, 3, 2, -100, -100]]
    logits = torch.full((2, 5, 9), -50.0)
    for place, word in (((0, 2), 1), ((0, 3), 2), ((1, 0), 3), ((1, 1), 2)):
        logits[place][word] = 50
    assert lessons.next_token_loss(logits, labels) < 1e-6


def test_training_writes_a_complete_folder_and_the_same_for_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_mistral, 'STEPS', 2)
    monkeypatch.setattr(tiny_mistral, 'BATCH', 4)
    for name in ('first', 'again'):
        tiny_mistral.pretrain_mistral(tmp_path / name, seed=4)
    first, again = ((tmp_path / name / 'model.safetensors').read_bytes()
                    for name in ('first', 'again'))
    assert first == again
    model, tokenizer = load_captioner('object', str(tmp_path / 'first'), torch.float32, 'cpu')
    assert model.config.vocab_size == len(tokenizer)
    assert not list(tmp_path.glob('*.partial'))
