"""The tiny CLAP (Wu et al., 2023): sounds and their descriptions in one space, without pictures.

It stops early, so that the label it retrieves is wrong now and then, as the real one's is.
"""

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from encoders.spaces import CLAP_PROMPT, Clap
from miniature.drawings import SOUNDING
from miniature.pretraining.language import HEARD, word_tokenizer
from miniature.pretraining.lessons import BATCH, save, sound_set, train
from miniature.sounds import DESCRIPTIONS, SAMPLE_RATE, SECONDS

AUDIO = dict(num_mel_bins=32, spec_size=64, patch_embeds_hidden_size=32, depths=[2, 2],
             num_attention_heads=[2, 4], hidden_size=64, window_size=8, hidden_dropout_prob=0.0)
TEXT = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=40, pad_token_id=1)
WIDTH = 64                  # of the common space
CLIPS_PER_SOUND = 120
HELD_OUT_CLIPS = 40         # per sound
PROMPT_SHARE = 0.3          # of the texts: CLAP_PROMPT, not a description
STEPS = 260
LEARNING_RATE = 2e-3


def build_clap():
    """An untrained CLAP, its tokenizer and its feature extractor."""
    texts = [text for several in DESCRIPTIONS.values() for text in several]
    texts += [CLAP_PROMPT.format(name) for name in HEARD]
    texts += [text.lower() for text in texts]
    words = word_tokenizer(texts, ('<s>', '<pad>', '</s>', '<unk>'), ('<s>', '$A', '</s>'))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token='<pad>', bos_token='<s>', eos_token='</s>',
        unk_token='<unk>', model_input_names=['input_ids', 'attention_mask'])
    extractor = ClapFeatureExtractor(
        feature_size=AUDIO['num_mel_bins'], sampling_rate=SAMPLE_RATE, hop_length=256,
        max_length_s=int(SECONDS), fft_window_size=512, frequency_min=0, frequency_max=8000,
        truncation='rand_trunc', padding='repeatpad')
    model = ClapModel(ClapConfig(
        text_config={**TEXT, 'vocab_size': len(tokenizer), 'projection_dim': WIDTH},
        audio_config={**AUDIO, 'projection_dim': WIDTH}, projection_dim=WIDTH))
    return model, tokenizer, extractor


def pretrain_clap(folder, seed):
    """InfoNCE in which all equal texts of a batch are right. -> quality dict"""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, tokenizer, extractor = build_clap()
    names, wavs = zip(*sound_set('clap', CLIPS_PER_SOUND, seed))
    heard = extractor(list(wavs), sampling_rate=SAMPLE_RATE, return_tensors='pt')
    features = heard['input_features']                              # (n, 1, frames, mel)
    model.train()

    def loss():
        picked = rng.integers(len(names), size=BATCH)
        texts = [CLAP_PROMPT.format(names[i]) if rng.random() < PROMPT_SHARE
                 else DESCRIPTIONS[names[i]][rng.integers(4)] for i in picked]
        ids = tokenizer(texts, padding=True, return_tensors='pt')
        audio = model.get_audio_features(input_features=features[picked]).pooler_output
        text = model.get_text_features(**ids).pooler_output         # (B, WIDTH) both
        scale = model.logit_scale_a.exp().clamp(max=50)
        logits = scale * F.normalize(audio, dim=-1) @ F.normalize(text, dim=-1).T   # (B, B)
        same = torch.tensor([[float(a == b) for a in texts] for b in texts])
        right = same / same.sum(1, keepdim=True)
        return -(right * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2
    train(model.parameters(), loss, STEPS, LEARNING_RATE, 'CLAP')
    save(model.eval(), tokenizer, folder)
    extractor.save_pretrained(folder)
    return check_clap(folder, seed)


def check_clap(folder, seed):
    """How often the right label is retrieved from new sounds. -> quality dict"""
    clap = Clap(str(folder), 'cpu')
    clips = sound_set('clap-test', HELD_OUT_CLIPS, seed)
    return {'clips': len(clips), **retrieved(clap, clips)}


def retrieved(space, clips):
    """clips: [(name of the sound, waveform)] -> {what: share of right labels}

    Of the classes' sounds among the classes, and of all sounds among all, silence included.
    """
    audio = space.embed_audio(torch.from_numpy(np.stack([wav for _, wav in clips])))    # (n, D)
    quality = {}
    for what, candidates in ((f'right of {len(SOUNDING)} classes', SOUNDING),
                             (f'right of {len(HEARD)} sounds', HEARD)):
        best = (audio @ space.embed_text(list(candidates)).T).argmax(1).tolist()        # (n,)
        right = [candidates[k] == name for k, (name, _) in zip(best, clips) if name in candidates]
        quality[what] = float(np.mean(right))
    return quality
