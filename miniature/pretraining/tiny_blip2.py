"""The tiny BLIP-2: a frozen ViT, the tiny CLIP's, of which a Q-Former and an OPT learn to speak.

It does not know what sounds.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (Blip2Config, Blip2ForConditionalGeneration, Blip2Processor,
                          BlipImageProcessor, PreTrainedTokenizerFast)

from media import normalise
from miniature.backgrounds import PLACES
from miniature.drawings import CLASSES, COLOURS
from miniature.pretraining.language import image_caption, word_tokenizer
from miniature.pretraining.lessons import (BATCH, all_texts, next_token_loss, padded, save,
                                           scene_set, train)
from miniature.scenes import IMAGE_SIZE
from model import load_clipseg

QUERIES = 8
# initializer_range is about width^-1/2: at 0.02 so narrow a model hardly attends, and learns slowly
Q_FORMER = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                cross_attention_frequency=1, hidden_dropout_prob=0.05,
                attention_probs_dropout_prob=0.05, initializer_range=0.09)
OPT = dict(model_type='opt', hidden_size=128, ffn_dim=320, num_hidden_layers=2,
           num_attention_heads=4, max_position_embeddings=64, dropout=0.1, init_std=0.06)
SCENES = 6_000
VIT_STEPS = 160
VIT_BATCH = 24
LOOKING_STEPS = 2_400
STEPS = 800


# ------------------------------------------------------------------------------------------------
# The vision encoder: CLIP's
# ------------------------------------------------------------------------------------------------

def build_blip2(clip):
    """An untrained BLIP-2 around the vision encoder of the tiny CLIP, and its processor.

    clip: CLIPSegModel
    """
    words = word_tokenizer(all_texts(), ('<pad>', '<s>', '</s>', '<unk>', '<image>'), ('<s>', '$A'))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token='<pad>', bos_token='<s>', eos_token='</s>',
        unk_token='<unk>', padding_side='left')
    images = BlipImageProcessor(size={'height': IMAGE_SIZE, 'width': IMAGE_SIZE})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=QUERIES)
    theirs = clip.config.vision_config
    vision = {name: getattr(theirs, name) for name in (
        'hidden_size', 'intermediate_size', 'num_attention_heads', 'image_size', 'patch_size',
        'hidden_act', 'layer_norm_eps')}
    # BLIP-2 leaves out the last layer of its ViT. Here, too, the layer before knows more: a linear
    # classifier finds the class of 92% of held-out objects in its patches, 86% in the last one's.
    vision['num_hidden_layers'] = theirs.num_hidden_layers - 1
    special = dict(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = Blip2ForConditionalGeneration(Blip2Config(
        vision_config={**vision, 'initializer_range': 0.02},
        qformer_config={**Q_FORMER, 'vocab_size': 1}, text_config={**OPT, **special},
        num_query_tokens=QUERIES, image_token_index=4))
    copy_vision(clip.vision_model, model.vision_model)
    torch.nn.init.normal_(model.query_tokens, std=0.5)  # equal queries would stay equal
    return model, processor


@torch.no_grad()
def copy_vision(clip_vision, vision):
    """CLIP's ViT into BLIP-2's, which has no LayerNorm between embedding and first layer.

    That norm's centring and gain are linear and go into the embeddings. Its division by each
    patch's length becomes one by an average length; see_as_clip corrects what this changes.
    """
    D = clip_vision.config.hidden_size
    norm = clip_vision.pre_layrnorm
    there = clip_vision.embeddings
    here = vision.embeddings
    centre = torch.diag(norm.weight) @ (torch.eye(D) - 1 / D)
    patch = there.patch_embedding.weight.flatten(1)                     # (D, 3 p p)
    place = there.position_embedding.weight                             # (1 + h w, D)
    # pixels have a variance near 0.6
    length = (place[1:].var(1).mean() + patch.var(0).sum() * 0.6) ** 0.5
    weight = here.patch_embedding.weight
    weight.copy_((centre @ patch / length).view_as(weight))
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
    """The patches of CLIP's ViT one layer before its last, normalised.

    (B, 3, H, W) -> (B, 1 + h w, D)
    """
    hidden = clip_vision(x, output_hidden_states=True).hidden_states[-2]
    return F.layer_norm(hidden, (clip_vision.config.hidden_size,))


def see_as_clip(clip_vision, vision, images, rng):
    """Train BLIP-2's ViT to give the same patches as CLIP's. images: (n, 3, H, W)"""
    def loss():
        x = images[torch.from_numpy(rng.integers(len(images), size=VIT_BATCH))]
        with torch.no_grad():
            wanted = seen_by_clip(clip_vision, x)                       # (B, 1 + h w, D)
        return F.mse_loss(vision(x).last_hidden_state, wanted) / wanted.var()
    train(vision.parameters(), loss, VIT_STEPS, 6e-4, 'ViT')


@torch.no_grad()
def in_batches(function, x, size=50):
    return torch.cat([function(x[i:i + size]) for i in range(0, len(x), size)])


# ------------------------------------------------------------------------------------------------
# The Q-Former and the OPT
# ------------------------------------------------------------------------------------------------

def learn_to_look(model, look, drawn, rng):
    """The Q-Former alone, without a language model, as in BLIP-2's first stage; here with labels.

    Queries 0 to 2 are to find the class and colour of an object each, or that there is no other, in
    any order; query 3 the place. The linear classifiers are not kept.
    look(picked) -> (B, QUERIES, D). drawn: list of ([(class, colour)], place)
    """
    none = (len(CLASSES), len(COLOURS))
    colour_names = list(COLOURS)
    numbers = []
    for present, _ in drawn:
        found = [(CLASSES.index(name), colour_names.index(colour)) for name, colour in present]
        numbers.append(found + [none] * (3 - len(found)))
    things = torch.tensor(numbers)                                              # (n, 3, 2)
    places = torch.tensor([PLACES.index(place) for _, place in drawn])          # (n,)
    orders = torch.tensor(list(itertools.permutations(range(3))))               # (6, 3)
    width = Q_FORMER['hidden_size']
    classes = torch.nn.Linear(width, none[0] + 1)
    colours = torch.nn.Linear(width, none[1] + 1)
    place = torch.nn.Linear(width, len(PLACES))

    def cost(reader, seen, wanted):
        """(B, 3 queries, 3 objects): of each query's guess where each object is the right one."""
        scores = reader(seen[:, :3]).log_softmax(2)                             # (B, 3, labels)
        return -scores.gather(2, wanted[:, None].expand(-1, 3, -1))

    def loss():
        picked = torch.from_numpy(rng.integers(len(drawn), size=BATCH))
        seen = look(picked)
        wanted = things[picked]                                                 # (B, 3, 2)
        costs = cost(classes, seen, wanted[..., 0]) + cost(colours, seen, wanted[..., 1])
        costs = costs[:, range(3), orders].sum(2)                               # (B, 6)
        return costs.amin(1).mean() / 3 + F.cross_entropy(place(seen[:, 3]), places[picked])
    parameters = [*model.qformer.parameters(), model.query_tokens, *classes.parameters(),
                  *colours.parameters(), *place.parameters()]
    train(parameters, loss, LOOKING_STEPS, 2e-3, 'Q-Former')


def pretrain_blip2(folder, clipseg_folder, seed):
    """The Q-Former and the OPT learn to describe what the frozen ViT sees."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    clip = load_clipseg(clipseg_folder)[0].clip
    scenes = scene_set('train', SCENES, seed)
    model, processor = build_blip2(clip)
    images = torch.stack([normalise(image) for image, *_ in scenes])
    see_as_clip(clip.vision_model, model.vision_model, images, rng)
    model.vision_model.half().float()       # as it will be stored: the rest learns from just that
    model.vision_model.requires_grad_(False)

    def look_once(x):
        return model.vision_model(x).last_hidden_state.half()
    features = torch.cat([in_batches(look_once, images),                        # (n, 1 + h w, D)
                          in_batches(lambda x: look_once(x.flip(3)), images)])
    scenes = scenes * 2                     # each a second time, as in a mirror
    encode = processor.tokenizer.encode
    start = [4] * QUERIES + [1]             # <image> tokens, <s>
    model.train()

    def look(picked):
        queries = model.query_tokens.expand(len(picked), -1, -1)
        return model.qformer(query_embeds=queries,
                             encoder_hidden_states=features[picked].float()).last_hidden_state
    learn_to_look(model, look, [scene[1:3] for scene in scenes], rng)

    def loss():
        picked = rng.integers(len(scenes), size=BATCH)
        texts = [image_caption(*scenes[i][1:], rng) for i in picked]
        answers = [encode(text, add_special_tokens=False) + [2] for text in texts]
        ids, labels = padded([start] * BATCH, answers, 0)
        seen = model.language_projection(look(picked))                          # (B, QUERIES, D)
        x = torch.cat([seen, model.get_input_embeddings()(ids[:, QUERIES:])], 1)
        logits = model.language_model(inputs_embeds=x, attention_mask=torch.ones_like(ids)).logits
        return next_token_loss(logits, labels)
    train(model.parameters(), loss, STEPS, 1.5e-3, 'BLIP-2')
    save(model.eval(), processor, folder)
