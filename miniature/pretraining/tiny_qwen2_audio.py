"""The tiny Qwen2-Audio: hears two seconds. The fainter they are, the less its captions tell."""

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import (PreTrainedTokenizerFast, Qwen2AudioConfig,
                          Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor,
                          WhisperFeatureExtractor)

from captions import AUDIO_PROMPT
from miniature.pretraining.language import (HALF_HEARD, HEARD, NAMED, TOLD_APART, audio_caption,
                                            word_tokenizer)
from miniature.pretraining.lessons import (BATCH, all_texts, next_token_loss, padded, save,
                                           sound_set, train)
from miniature.sounds import SAMPLE_RATE

# 2 s are 100 mel frames, convolved to 50
EARS = dict(model_type='qwen2_audio_encoder', num_mel_bins=64, d_model=128, encoder_ffn_dim=320,
            encoder_layers=2, encoder_attention_heads=4, max_source_positions=50)
QWEN = dict(model_type='qwen2', hidden_size=128, intermediate_size=320, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256)
SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<unk>', '<|audio_bos|>', '<|AUDIO|>',
            '<|audio_eos|>')
CLIPS_PER_SOUND = 220
HEARING_STEPS = 500
STEPS = 300


def build_qwen2_audio():
    """An untrained Qwen2-Audio and its processor."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(all_texts(), SPECIALS), unk_token='<unk>',
        pad_token='<|endoftext|>', eos_token='<|im_end|>', padding_side='left')
    extractor = WhisperFeatureExtractor(
        feature_size=EARS['num_mel_bins'], chunk_length=2, hop_length=320,
        sampling_rate=SAMPLE_RATE, return_attention_mask=True)
    special = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=2)
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(
        audio_config=EARS, text_config={**QWEN, **special}, audio_token_index=5))
    place = torch.arange(EARS['max_source_positions'])[:, None]
    pace = torch.arange(EARS['d_model'] // 2)
    angle = place * 10_000.0 ** (-2 * pace / EARS['d_model'])
    positions = torch.cat([angle.sin(), angle.cos()], 1)                    # as in Whisper
    model.model.audio_tower.embed_positions.weight.data = positions
    return model, Qwen2AudioProcessor(extractor, tokenizer)


def conversation():
    """What captions.py asks of an audio clip."""
    return [{'role': 'user', 'content': [{'type': 'audio', 'audio_url': 'clip'},
                                         {'type': 'text', 'text': AUDIO_PROMPT}]}]


def learn_to_hear(model, listen, clips, peaks, rng):
    """The audio encoder alone: which sound, how loud. The real one starts from Whisper's weights.

    listen(picked) -> (B, mels, frames). The linear classifier is not kept.
    """
    sounds = torch.tensor([HEARD.index(name) for name, _ in clips])
    borders = torch.tensor([1e-3, HALF_HEARD, TOLD_APART, NAMED])
    levels = torch.bucketize(torch.tensor(peaks), borders)
    reader = torch.nn.Linear(QWEN['hidden_size'], len(HEARD) + 5)

    def loss():
        picked = torch.from_numpy(rng.integers(len(clips), size=BATCH))
        heard = model.audio_tower(listen(picked)).last_hidden_state
        heard = model.multi_modal_projector(heard)                          # (B, frames / 4, D)
        sound, level = reader(heard.mean(1)).split([len(HEARD), 5], 1)
        return F.cross_entropy(sound, sounds[picked]) + 0.5 * F.cross_entropy(level, levels[picked])
    parameters = [*model.audio_tower.parameters(), *model.multi_modal_projector.parameters(),
                  *reader.parameters()]
    train(parameters, loss, HEARING_STEPS, 1.5e-3, 'audio encoder')


def pretrain_qwen2_audio(folder, seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clips = sound_set('train', CLIPS_PER_SOUND, seed)
    model, processor = build_qwen2_audio()
    extract = processor.feature_extractor
    heard = [extract(wav, sampling_rate=SAMPLE_RATE, return_tensors='pt').input_features.half()
             for _, wav in tqdm(clips, 'mel')]
    heard = torch.cat(heard)                                                # (n, mels, 100)
    peaks = [float(np.abs(wav).max()) for _, wav in clips]
    text = processor.apply_chat_template(conversation(), add_generation_prompt=True, tokenize=False)
    prompt = processor(text=text, audio=clips[0][1], sampling_rate=SAMPLE_RATE).input_ids[0]
    frames = heard.shape[2]
    encode = processor.tokenizer.encode
    model.train()

    def listen(picked):
        x = heard[picked].float().roll(int(rng.integers(frames)), 2)
        low = rng.integers(EARS['num_mel_bins'])
        x[:, low:low + rng.integers(0, 8)] = x.amin()                       # hide some frequencies
        return x                                                            # (B, mels, frames)
    learn_to_hear(model.model, listen, clips, peaks, rng)

    def loss():
        picked = rng.integers(len(clips), size=BATCH)
        texts = [audio_caption(clips[i][0], peaks[i], rng) for i in picked]
        answers = [encode(text) + [2] for text in texts]
        ids, labels = padded([list(prompt)] * BATCH, answers, 0)
        x = listen(picked)
        logits = model(input_ids=ids, input_features=x, attention_mask=torch.ones_like(ids),
                       feature_attention_mask=torch.ones(BATCH, frames, dtype=torch.long)).logits
        return next_token_loss(logits, labels)
    train(model.parameters(), loss, STEPS, 1.5e-3, 'Qwen2-Audio')
    save(model.eval(), processor, folder)
