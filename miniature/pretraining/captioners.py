"""The miniature's captioners: a tiny BLIP-2, a tiny Qwen2-Audio and a tiny Mistral, for section 3.6.

    python -m miniature.pretraining --only captioners             # writes miniature/weights/{blip2,qwen2_audio,mistral}
    python -m miniature.pretraining --only captioners --check     # measures those that are there

captions.py loads them by the classes it loads the paper's with; only their sizes differ. They are taught on scenes and
sounds of the world drawn for them alone, and on what miniature/pretraining/language.py would say of each. Like the real ones:

    the BLIP-2 starts from a frozen ViT, the tiny CLIP's, of which it learns to speak; it does not know what sounds;
    the Qwen2-Audio hears two seconds, and the fainter they are, the less they tell it: three classes share a phrase;
    the Mistral reads the paper's prompt and must find out which of the things seen can make the sound described.
"""

import itertools
import multiprocessing
import shutil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm, trange
from transformers import (AutoProcessor, AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, Blip2Processor,
                          BlipImageProcessor, DynamicCache, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast,
                          Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor,
                          WhisperFeatureExtractor)

from captions import (AUDIO_PROMPT, OBJECT_PROMPTS, answer_prompts, caption_images, caption_sounds, load_model,
                      parse_answer)
from data import normalise
from miniature.drawings import CLASSES, COLOURS, PLACES, SOUNDING
from miniature.pretraining.language import (HALF_HEARD, HEARD, KINDS, NAMED, TOLD_APART, UNKNOWN, VAGUE, audio_caption,
                                captions_and_answer, could_be, image_caption, with_article, word_tokenizer)
from miniature.sounds import DESCRIPTIONS, SAMPLE_RATE, sound
from miniature.scenes import IMAGE_SIZE, draw_scene, sample_generator
from miniature.world import usable_cores
from model import load_clipseg

# The recipe. Each model has about a million parameters; the ViT's sizes are the tiny CLIP's.
QUERIES = 8
Q_FORMER = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                cross_attention_frequency=1, hidden_dropout_prob=0.05, attention_probs_dropout_prob=0.05,
                initializer_range=0.09)    # about width^-1/2: at 0.02 so narrow a model hardly attends, and learns slowly
OPT = dict(model_type='opt', hidden_size=128, ffn_dim=320, num_hidden_layers=2, num_attention_heads=4,
           max_position_embeddings=64, dropout=0.1, init_std=0.06)
EARS = dict(model_type='qwen2_audio_encoder', num_mel_bins=64, d_model=128, encoder_ffn_dim=320, encoder_layers=2,
            encoder_attention_heads=4, max_source_positions=50)         # 2 s are 100 mel frames, convolved to 50
QWEN = dict(model_type='qwen2', hidden_size=128, intermediate_size=320, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=256)
MISTRAL = dict(hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
               num_key_value_heads=2, max_position_embeddings=512, sliding_window=None)
SCENES, CLIPS_PER_SOUND, HELD_OUT = 6_000, 220, 240
VIT_STEPS, LOOKING_STEPS, BLIP2_STEPS = 160, 2_400, 800
HEARING_STEPS, AUDIO_STEPS, MISTRAL_STEPS = 500, 300, 800
BATCH, VIT_BATCH, MISTRAL_BATCH = 48, 24, 48
KIND_SHARE = (0.7, 0.15, 0.15)                          # of KINDS, as in Table 10


def _parallel(function, jobs, label):
    with multiprocessing.get_context('spawn').Pool(usable_cores()) as pool:
        return list(tqdm(pool.imap(function, jobs, chunksize=32), label, len(jobs)))


# ------------------------------------------------------------------------------------------------
# What they learn from
# ------------------------------------------------------------------------------------------------

def _scene(job):
    split, index, seed = job
    scene = draw_scene(sample_generator(seed, f'captions-{split}', index))
    areas = [(x1 - x0) * (y1 - y0) / IMAGE_SIZE ** 2 for x0, y0, x1, y1 in (thing.box for thing in scene.objects)]
    order = np.argsort(areas)[::-1]                     # the largest strikes the eye first
    return scene.image, [(scene.objects[i].name, scene.objects[i].colour) for i in order], scene.place, max(areas)


def scene_set(split, count, seed):
    """-> list of (image (H, W, 3) uint8, [(class, colour)] largest first, place, share of the largest box)"""
    return _parallel(_scene, [(split, index, seed) for index in range(count)], f'{split} scenes')


def _clip(job):
    name, split, index, seed = job
    return name, sound(name, sample_generator(seed, f'captions-{split}-{name}', index))


def sound_set(split, per_sound, seed):
    """-> list of (name of the sound, waveform (samples,) float32)"""
    return _parallel(_clip, [(name, split, i, seed) for name in HEARD for i in range(per_sound)], f'{split} sounds')


def all_texts():
    """Every word that a caption, a prompt or an answer of the miniature may hold."""
    rng, texts = np.random.default_rng(0), list(CLASSES) + [UNKNOWN, AUDIO_PROMPT, *OBJECT_PROMPTS.values()]
    texts += [with_article(f'{colour} {name}') for colour in COLOURS for name in CLASSES]
    for place in PLACES:
        for largest in (0.0, 1.0):
            texts += [image_caption([('dog', 'red')] * n, place, largest, rng) for n in (1, 2, 3) for _ in range(40)]
    texts += [text for several in (*DESCRIPTIONS.values(), *VAGUE.values()) for text in several]
    return texts + ['system user assistant You are a helpful assistant.', 'Audio 1: \n']


def padded(prompts, answers, pad):
    """Token numbers of prompts and answers, one row each, padded at the right.

    -> ids (B, L), labels (B, L): the answers' numbers in their places, -100 elsewhere, so that only they are learned
    """
    length = max(len(p) + len(a) for p, a in zip(prompts, answers))
    ids = torch.full((len(prompts), length), pad)
    labels = torch.full((len(prompts), length), -100)
    for b, (prompt, answer) in enumerate(zip(prompts, answers)):
        ids[b, :len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[b, len(prompt):len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def next_token_loss(logits, labels):
    """Cross-entropy of each label under the logits one place before it. (B, L, words), (B, L) -> scalar"""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train(parameters, loss_of_step, steps, rate, label):
    """AdamW on a one-cycle schedule. loss_of_step() -> scalar, a fresh batch's."""
    parameters = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    smooth = None
    for _ in (bar := trange(steps, desc=label)):
        loss = loss_of_step()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        smooth = loss.item() if smooth is None else 0.97 * smooth + 0.03 * loss.item()
        bar.set_postfix(loss=f'{smooth:.3f}')


def save(model, processor, folder):
    """16-bit weights, configuration and processor as a transformers folder, put in the old one's place when whole."""
    partial = folder.with_name(f'{folder.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    state = model.state_dict()
    again = {name for name in state if name.endswith('lm_head.weight') and model.get_output_embeddings().weight is
             model.get_input_embeddings().weight}       # a tied matrix is stored once
    model.save_pretrained(partial, state_dict={k: v.half().contiguous() for k, v in state.items() if k not in again})
    processor.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


# ------------------------------------------------------------------------------------------------
# The image captioner
# ------------------------------------------------------------------------------------------------

def build_blip2(clip):
    """An untrained BLIP-2 around the vision encoder of the tiny CLIP (CLIPSegModel), and its processor."""
    words = word_tokenizer(all_texts(), ('<pad>', '<s>', '</s>', '<unk>', '<image>'), ('<s>', '$A'))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token='<pad>', bos_token='<s>', eos_token='</s>',
                                        unk_token='<unk>', padding_side='left')
    processor = Blip2Processor(BlipImageProcessor(size={'height': IMAGE_SIZE, 'width': IMAGE_SIZE}), tokenizer,
                               num_query_tokens=QUERIES)
    theirs = clip.config.vision_config
    vision = {name: getattr(theirs, name) for name in ('hidden_size', 'intermediate_size', 'num_attention_heads',
              'image_size', 'patch_size', 'hidden_act', 'layer_norm_eps')}
    # BLIP-2 goes without the last layer of its ViT. Here, too, the layer before knows more: a linear reader finds the
    # class of 92% of held-out objects in its patches, of 86% in the last one's.
    vision['num_hidden_layers'] = theirs.num_hidden_layers - 1
    special = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = Blip2ForConditionalGeneration(Blip2Config(
        vision_config={**vision, 'initializer_range': 0.02}, qformer_config={**Q_FORMER, 'vocab_size': 1},
        text_config={**OPT, **special}, num_query_tokens=QUERIES, image_token_index=4))
    copy_vision(clip.vision_model, model.vision_model)
    torch.nn.init.normal_(model.query_tokens, std=0.5)  # equal queries would stay equal
    return model, processor


@torch.no_grad()
def copy_vision(clip_vision, vision):
    """CLIP's ViT into BLIP-2's, which differs in one thing: it has no LayerNorm between embedding and first layer.

    That norm's centring and gain are linear and go into the embeddings; so does its division, by an average length,
    which the norm took anew for each patch: a few steps of training (see_as_clip) make up for it.
    """
    D, norm = clip_vision.config.hidden_size, clip_vision.pre_layrnorm
    there, here = clip_vision.embeddings, vision.embeddings
    centre = torch.diag(norm.weight) @ (torch.eye(D) - 1 / D)
    patch = there.patch_embedding.weight.flatten(1)                                 # (D, 3 p p)
    place = there.position_embedding.weight                                         # (1 + h w, D)
    length = (place[1:].var(1).mean() + patch.var(0).sum() * 0.6) ** 0.5            # pixels have a variance near 0.6
    here.patch_embedding.weight.copy_((centre @ patch / length).view_as(here.patch_embedding.weight))
    here.patch_embedding.bias.zero_()
    here.position_embedding[0, 1:] = place[1:] @ centre.T / length + norm.bias
    here.position_embedding[0, 0] = norm(there.class_embedding + place[0])
    here.class_embedding.zero_()
    for theirs, ours in zip(clip_vision.encoder.layers, vision.encoder.layers):
        attention = theirs.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        ours.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        ours.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        ours.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
        for name in ('layer_norm1', 'layer_norm2', 'mlp'):
            getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())


def seen_by_clip(clip_vision, x):
    """What CLIP's ViT makes of every patch one layer before its last, normalised. (B, 3, H, W) -> (B, 1 + h w, D)"""
    return F.layer_norm(clip_vision(x, output_hidden_states=True).hidden_states[-2], (clip_vision.config.hidden_size,))


def see_as_clip(clip_vision, vision, images, rng):
    """Train BLIP-2's ViT to make of every patch what CLIP's makes. images: (n, 3, H, W)"""
    def loss():
        x = images[torch.from_numpy(rng.integers(len(images), size=VIT_BATCH))]
        with torch.no_grad():
            wanted = seen_by_clip(clip_vision, x)                                               # (B, 1 + h w, D)
        return F.mse_loss(vision(x).last_hidden_state, wanted) / wanted.var()
    train(vision.parameters(), loss, VIT_STEPS, 6e-4, 'ViT')


@torch.no_grad()
def in_batches(function, x, size=50):
    return torch.cat([function(x[i:i + size]) for i in range(0, len(x), size)])


def learn_to_look(model, look, drawn, rng):
    """The Q-Former alone, before it is given a language model, as in BLIP-2's first stage; here with labels.

    Queries 0 to 2 are to find the class and colour of an object each, or that there is no other, in whatever order they
    like; query 3 the place. The linear readers are thrown away.
    look(picked) -> (B, QUERIES, D). drawn: list of ([(class, colour)], place)
    """
    none = (len(CLASSES), len(COLOURS))
    things = torch.tensor([[(CLASSES.index(name), list(COLOURS).index(colour)) for name, colour in present]
                           + [none] * (3 - len(present)) for present, _ in drawn])              # (n, 3, 2)
    places = torch.tensor([PLACES.index(place) for _, place in drawn])                          # (n,)
    orders = torch.tensor(list(itertools.permutations(range(3))))                               # (6, 3)
    width = Q_FORMER['hidden_size']
    classes, colours, place = (torch.nn.Linear(width, n) for n in (none[0] + 1, none[1] + 1, len(PLACES)))

    def loss():
        picked = torch.from_numpy(rng.integers(len(drawn), size=BATCH))
        seen, wanted = look(picked), things[picked]
        costs = torch.stack([-reader(seen[:, :3]).log_softmax(2).gather(2, wanted[:, None, :, part].expand(-1, 3, -1))
                             for part, reader in enumerate((classes, colours))]).sum(0)         # (B, query, object)
        costs = costs[:, range(3), orders].sum(2)                                               # (B, 6)
        return costs.amin(1).mean() / 3 + F.cross_entropy(place(seen[:, 3]), places[picked])
    readers = [parameter for reader in (classes, colours, place) for parameter in reader.parameters()]
    train([*model.qformer.parameters(), model.query_tokens, *readers], loss, LOOKING_STEPS, 2e-3, 'Q-Former')


def pretrain_blip2(folder, clipseg_folder, seed):
    """The Q-Former and the OPT learn to speak of what the frozen ViT sees."""
    torch.manual_seed(seed)
    rng, clip = np.random.default_rng(seed), load_clipseg(clipseg_folder)[0].clip
    scenes = scene_set('train', SCENES, seed)
    model, processor = build_blip2(clip)
    images = torch.stack([normalise(image) for image, *_ in scenes])
    see_as_clip(clip.vision_model, model.vision_model, images, rng)
    model.vision_model.half().float()                   # as it will be stored: what comes next learns from just that
    look_once = lambda x: model.vision_model(x).last_hidden_state.half()
    features = torch.cat([in_batches(look_once, images), in_batches(lambda x: look_once(x.flip(3)), images)])
    scenes = scenes * 2                                 # each also as in a mirror; features (n, 1 + h w, D)
    model.vision_model.requires_grad_(False)
    encode, start = processor.tokenizer.encode, [4] * QUERIES + [1]
    model.train()
    look = lambda picked: model.qformer(query_embeds=model.query_tokens.expand(len(picked), -1, -1),
                                        encoder_hidden_states=features[picked].float()).last_hidden_state
    learn_to_look(model, look, [scene[1:3] for scene in scenes], rng)

    def loss():
        picked = rng.integers(len(scenes), size=BATCH)
        texts = [image_caption(*scenes[i][1:], rng) for i in picked]
        ids, labels = padded([start] * BATCH, [encode(text, add_special_tokens=False) + [2] for text in texts], 0)
        seen = model.language_projection(look(picked))                                          # (B, QUERIES, D)
        x = torch.cat([seen, model.get_input_embeddings()(ids[:, QUERIES:])], 1)
        return next_token_loss(model.language_model(inputs_embeds=x, attention_mask=torch.ones_like(ids)).logits,
                               labels)
    train(model.parameters(), loss, BLIP2_STEPS, 1.5e-3, 'BLIP-2')
    save(model.eval(), processor, folder)


# ------------------------------------------------------------------------------------------------
# The audio captioner
# ------------------------------------------------------------------------------------------------

def build_qwen2_audio():
    """An untrained Qwen2-Audio and its processor."""
    specials = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<unk>', '<|audio_bos|>', '<|AUDIO|>', '<|audio_eos|>')
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer(all_texts(), specials), unk_token='<unk>',
                                        pad_token='<|endoftext|>', eos_token='<|im_end|>', padding_side='left')
    extractor = WhisperFeatureExtractor(feature_size=EARS['num_mel_bins'], chunk_length=2, hop_length=320,
                                        sampling_rate=SAMPLE_RATE, return_attention_mask=True)
    special = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=2)
    model = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(
        audio_config=EARS, text_config={**QWEN, **special}, audio_token_index=5))
    place, pace = torch.arange(EARS['max_source_positions'])[:, None], torch.arange(EARS['d_model'] // 2)
    angle = place * 10_000.0 ** (-2 * pace / EARS['d_model'])
    model.model.audio_tower.embed_positions.weight.data = torch.cat([angle.sin(), angle.cos()], 1)     # as in Whisper
    return model, Qwen2AudioProcessor(extractor, tokenizer)


def conversation():
    """What captions.py asks of an audio clip."""
    return [{'role': 'user', 'content': [{'type': 'audio', 'audio_url': 'clip'}, {'type': 'text', 'text': AUDIO_PROMPT}]}]


def learn_to_hear(model, listen, clips, peaks, rng):
    """The audio encoder alone: which sound, how loud. The real one begins as Whisper's; this one has no such past.

    listen(picked) -> (B, mels, frames). The linear reader is thrown away.
    """
    sounds = torch.tensor([HEARD.index(name) for name, _ in clips])
    levels = torch.bucketize(torch.tensor(peaks), torch.tensor([1e-3, HALF_HEARD, TOLD_APART, NAMED]))
    reader = torch.nn.Linear(QWEN['hidden_size'], len(HEARD) + 5)

    def loss():
        picked = torch.from_numpy(rng.integers(len(clips), size=BATCH))
        heard = model.multi_modal_projector(model.audio_tower(listen(picked)).last_hidden_state)    # (B, frames/4, D)
        sound, level = reader(heard.mean(1)).split([len(HEARD), 5], 1)
        return F.cross_entropy(sound, sounds[picked]) + 0.5 * F.cross_entropy(level, levels[picked])
    train([*model.audio_tower.parameters(), *model.multi_modal_projector.parameters(), *reader.parameters()], loss,
          HEARING_STEPS, 1.5e-3, 'audio encoder')


def pretrain_qwen2_audio(folder, seed):
    torch.manual_seed(seed)
    rng, clips = np.random.default_rng(seed), sound_set('train', CLIPS_PER_SOUND, seed)
    model, processor = build_qwen2_audio()
    heard = [processor.feature_extractor(wav, sampling_rate=SAMPLE_RATE, return_tensors='pt').input_features.half()
             for _, wav in tqdm(clips, 'mel')]
    heard, peaks = torch.cat(heard), [float(np.abs(wav).max()) for _, wav in clips]             # (n, mels, 100)
    text = processor.apply_chat_template(conversation(), add_generation_prompt=True, tokenize=False)
    frames = heard.shape[2]
    prompt = processor(text=text, audio=clips[0][1], sampling_rate=SAMPLE_RATE).input_ids[0]
    encode = processor.tokenizer.encode
    model.train()

    def listen(picked):
        x = heard[picked].float().roll(int(rng.integers(frames)), 2)
        low, wide = rng.integers(EARS['num_mel_bins']), rng.integers(0, 8)
        x[:, low:low + wide] = x.amin()                                             # a band of frequencies hidden
        return x                                                                    # (B, mels, frames)
    learn_to_hear(model.model, listen, clips, peaks, rng)

    def loss():
        picked = rng.integers(len(clips), size=BATCH)
        texts = [audio_caption(clips[i][0], peaks[i], rng) for i in picked]
        ids, labels = padded([list(prompt)] * BATCH, [encode(text) + [2] for text in texts], 0)
        x = listen(picked)
        logits = model(input_ids=ids, input_features=x, attention_mask=torch.ones_like(ids),
                       feature_attention_mask=torch.ones(BATCH, frames, dtype=torch.long)).logits
        return next_token_loss(logits, labels)
    train(model.parameters(), loss, AUDIO_STEPS, 1.5e-3, 'Qwen2-Audio')
    save(model.eval(), processor, folder)


# ------------------------------------------------------------------------------------------------
# The language model
# ------------------------------------------------------------------------------------------------

CHAT = ("{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content']"
        " + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}")


def build_mistral():
    """An untrained Mistral and its tokenizer, whose chat template is of the real one's form."""
    words = word_tokenizer(all_texts(), ('<unk>', '<s>', '</s>', '[INST]', '[/INST]'), ('<s>', '$A'))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', bos_token='<s>', eos_token='</s>',
                                        padding_side='left', chat_template=CHAT)
    return MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **MISTRAL)), tokenizer


def question(kind, rng):
    """A prompt of a kind (KINDS) and the right answer."""
    image, audio, answer = captions_and_answer(kind, rng)
    return OBJECT_PROMPTS[kind].format(image=image, audio=audio), answer


def pretrain_mistral(folder, seed):
    torch.manual_seed(seed)
    rng, (model, tokenizer) = np.random.default_rng(seed), build_mistral()
    model.train()

    def loss():
        kind = str(rng.choice(KINDS, p=KIND_SHARE))
        asked = [question(kind, rng) for _ in range(MISTRAL_BATCH)]
        prompts = [tokenizer.encode(tokenizer.apply_chat_template([{'role': 'user', 'content': text}], tokenize=False),
                                    add_special_tokens=False) for text, _ in asked]
        shared = next(i for i, column in enumerate(zip(*prompts)) if len(set(column)) > 1)
        ids, labels = padded([prompt[shared:] for prompt in prompts],
                             [tokenizer.encode(answer, add_special_tokens=False) + [2] for _, answer in asked], 0)
        memory = DynamicCache(config=model.config)      # the words that all prompts begin with are read once
        model(torch.tensor(prompts[0][:shared])[None], past_key_values=memory, use_cache=True)
        memory.batch_repeat_interleave(MISTRAL_BATCH)
        return next_token_loss(model(ids, past_key_values=memory, use_cache=True).logits, labels)
    train(model.parameters(), loss, MISTRAL_STEPS, 2e-3, 'Mistral')
    save(model.eval(), tokenizer, folder)


# ------------------------------------------------------------------------------------------------
# All of it, and what it is worth
# ------------------------------------------------------------------------------------------------

FOLDERS = ('blip2', 'qwen2_audio', 'mistral')


def pretrain_captioners(weights, seed):
    """Write the three folders into `weights`, beside the clipseg that the BLIP-2 sees with. -> quality dict"""
    pretrain_mistral(weights / 'mistral', seed)
    pretrain_qwen2_audio(weights / 'qwen2_audio', seed)
    pretrain_blip2(weights / 'blip2', weights / 'clipseg', seed)
    return check_captioners(weights, seed)


def _pair(job):
    index, seed = job
    rng = sample_generator(seed, 'captions-test', index)
    names = []
    while not any(name in SOUNDING for name in names):
        scene = draw_scene(rng)
        names = [thing.name for thing in scene.objects]
    source = str(rng.choice([name for name in names if name in SOUNDING]))
    return scene.image, [(thing.name, thing.colour) for thing in scene.objects], source, sound(source, rng)


def check_captioners(weights, seed, count=HELD_OUT):
    """Quality over new pairs, from pixels and waveforms to answers, by captions.py's own functions. -> dict"""
    images, things, sources, wavs = zip(*_parallel(_pair, [(index, seed) for index in range(count)], 'test pairs'))
    image_model, audio_model, llm = (load_model(model, processor, str(weights / name), torch.float32, 'cpu')
                                     for name, model, processor in zip(
        FOLDERS, (Blip2ForConditionalGeneration, Qwen2AudioForConditionalGeneration, MistralForCausalLM),
        (Blip2Processor, AutoProcessor, AutoTokenizer)))
    seen, heard = [], []
    for i in range(0, count, BATCH):
        seen += caption_images(*image_model, [Image.fromarray(image) for image in images[i:i + BATCH]], 30)
        heard += caption_sounds(*audio_model, [torch.from_numpy(wav) for wav in wavs[i:i + BATCH]], 30)
    return {'pairs': count, **caption_quality(seen, heard, things, sources), **answer_quality(*llm, seen, heard, sources)}


def caption_quality(seen, heard, things, sources):
    """Image captions against what was drawn, audio captions against what was sounded. -> dict of shares"""
    said = [[name for name in CLASSES if name in caption.replace(',', '').split()] for caption in seen]
    right = [[(name, colour) for name, colour in drawn if name in words] for drawn, words in zip(things, said)]
    coloured = sum(f'{colour} {name}' in caption for caption, found in zip(seen, right) for name, colour in found)
    total = sum(map(len, right))
    fits = [could_be(text) for text in heard]
    return {'image captions: objects named that are there': total / sum(map(len, said)),
            'image captions: objects there that are named': total / sum(map(len, things)),
            'image captions: colours right': coloured / total,
            'audio captions: true of the sound': float(np.mean([name in fit for name, fit in zip(sources, fits)])),
            'audio captions: true of this sound alone': float(np.mean([[name] == fit for name, fit in zip(sources, fits)]))}


def answer_quality(model, tokenizer, seen, heard, sources):
    """Share of right and of refused answers, for prompts with both captions and with one. -> dict"""
    quality = {}
    for kind in KINDS:
        prompts = [OBJECT_PROMPTS[kind].format(image=image, audio=audio) for image, audio in zip(seen, heard)]
        answers = [parse_answer(text) for i in range(0, len(prompts), BATCH)
                   for text in answer_prompts(model, tokenizer, prompts[i:i + BATCH], 12)]
        quality[f'answers right, {kind}'] = float(np.mean([answer == name for (answer, _), name in zip(answers, sources)]))
        quality[f'answers refused, {kind}'] = float(np.mean([how == 'refused' for _, how in answers]))
    return quality
