"""The tiny Mistral: reads the paper's prompt and answers which thing seen makes the sound heard."""

import inspect

import numpy as np
import torch
from transformers import (DynamicCache, MistralConfig, MistralForCausalLM,
                          PreTrainedTokenizerFast)

from captions import OBJECT_PROMPTS
from miniature.pretraining.language import KINDS, captions_and_answer, word_tokenizer
from miniature.pretraining.lessons import all_texts, next_token_loss, padded, save, train

MISTRAL = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=512, sliding_window=None)
KIND_SHARE = (0.7, 0.15, 0.15)          # of KINDS, as in Table 10
STEPS = 800
BATCH = 48
# forward's argument for a cache, whose name changed within transformers 5
ARGUMENTS = inspect.signature(MistralForCausalLM.forward).parameters
MEMORY = 'cache' if 'cache' in ARGUMENTS else 'past_key_values'
# Of the real one's form
CHAT = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
        "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}")


def build_mistral():
    """An untrained Mistral and its tokenizer."""
    specials = ('<unk>', '<s>', '</s>', '[INST]', '[/INST]')
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(all_texts(), specials, ('<s>', '$A')), unk_token='<unk>',
        bos_token='<s>', eos_token='</s>', padding_side='left', chat_template=CHAT)
    return MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **MISTRAL)), tokenizer


def question(kind, rng):
    """A prompt of a kind (KINDS) and the right answer."""
    image, audio, answer = captions_and_answer(kind, rng)
    return OBJECT_PROMPTS[kind].format(image=image, audio=audio), answer


def encoded_prompt(tokenizer, text):
    chat = tokenizer.apply_chat_template([{'role': 'user', 'content': text}], tokenize=False)
    return tokenizer.encode(chat, add_special_tokens=False)


def pretrain_mistral(folder, seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, tokenizer = build_mistral()
    model.train()

    def loss():
        kind = str(rng.choice(KINDS, p=KIND_SHARE))
        asked = [question(kind, rng) for _ in range(BATCH)]
        prompts = [encoded_prompt(tokenizer, text) for text, _ in asked]
        answers = [tokenizer.encode(answer, add_special_tokens=False) + [2] for _, answer in asked]
        shared = next(i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1)
        ids, labels = padded([prompt[shared:] for prompt in prompts], answers, 0)
        memory = DynamicCache(config=model.config)      # reads once what all prompts begin with
        cached = {MEMORY: memory, 'use_cache': True}
        model(torch.tensor(prompts[0][:shared])[None], **cached)
        memory.batch_repeat_interleave(BATCH)
        return next_token_loss(model(ids, **cached).logits, labels)
    train(model.parameters(), loss, STEPS, 2e-3, 'Mistral')
    save(model.eval(), tokenizer, folder)
