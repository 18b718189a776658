"""The method: Sections 3.1 (embedder), 3.2 (grounder), 3.3 (v_I) and 3.7 (inference).

    wav -BEATs-> features -AudioTokenizer-> audio token -prompt, CLIP text encoder-> A       3.1
    image -CLIP vision encoder-> activations, v_D;  activations, A -CLIPSeg decoder-> M_G    3.2
    M_G -MaskGen_I, MaskGen_F (masks.py)-> M_I, M_F                                          3.2
    M_I * image -CLIP vision encoder-> v_I                                                   3.3
    sigmoid(M_G + b / w)                                                                     3.7

E_A (beats.py), CLIP and CLIPSeg (transformers) are frozen. Only the AudioTokenizer's projection and
pooling (`audio_proj`) and MaskGen_I's w and b (`masker_i`) train. Modules with weights have the
names of the released checkpoint.

    model, tokenizer = load_model('miniature')      # or 'paper', with the real weights in place
    heatmap = model.heatmap(image, wav, size=(224, 224))        # (B, 224, 224) in 0..1

Shapes: B images (the paper's X^I), N audios (X^A), H W pixels, h w feature cells, D embedding (the
paper's c), T patches of a spectrogram (E_A's tokens), k audio tokens in the prompt (1; Table 11: up
to 8), r width of CLIPSeg's decoder, H' W' size of its output.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, repeat
from torch.utils.checkpoint import checkpoint as activation_checkpoint
from transformers import AutoTokenizer, CLIPSegForImageSegmentation, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from beats import load_beats
from launch import read_weights
from losses import all_gather, first_own_row
from masks import B_INIT, W_INIT, MaskGenI, mask_gen_f, to_grid, to_image

PROMPT = 'A photo of a <*>'         # Section 3.1; the audio token takes the place of <*>
RELEASE_PROMPT = 'A photo of <*>'   # Paper [1]: "A photo of a"; the released weights need this
DROPOUT = 0.5                       # Paper [2]: names none; the release has it in UnaryPotential


# ---- Figure 2: the model ----------------------------------------------------------------------

@dataclass
class Alignment:
    """What SoundLocalizer.forward gives to the losses: B images, each grounded with N audios."""
    A: torch.Tensor             # (N, D) audio-driven embeddings
    M_G: torch.Tensor           # (B, N, H, W) logits, image i grounded with audio j
    areas: torch.Tensor         # (B, N) mean of each image mask, M-bar of Eq. 4
    M_I: torch.Tensor           # (B, 1, H, W) image mask of the positive pairs
    v_I: torch.Tensor           # (B, D) embedding of the masked images, for Eq. 1
    M_F: torch.Tensor           # (B, N, h, w) feature masks, for Eq. 2
    v_D: torch.Tensor           # (B, D, h, w) spatial features, for Eq. 2
    first: int = 0              # image i's own audio is A[first + i]


class SoundLocalizer(nn.Module):
    """Figure 2 up to the embeddings; the losses are in losses.py. Also inference (3.7).

    clipseg: transformers' CLIPSegForImageSegmentation; beats: beats.BEATs. prompt_ids: token ids
    before and after the sound's. audio_tokens: k of Table 11. w, b: MaskGen_I's initial ones.
    """
    def __init__(self, clipseg, beats, prompt_ids, audio_tokens=1, w=W_INIT, b=B_INIT):
        super().__init__()
        before, after = prompt_ids
        text = clipseg.config.text_config
        longest = text.max_position_embeddings
        length = len(before) + audio_tokens + len(after)
        if length > longest:
            raise ValueError(f'the prompt takes {length} tokens with its {audio_tokens} of audio, '
                             f'and the text encoder reads {longest}: shorten --prompt')
        self.clipseg = clipseg.requires_grad_(False)
        self.beats = beats.requires_grad_(False)
        self.audio_proj = AudioProjection(beats.feature_dim, text.hidden_size, audio_tokens)
        self.masker_i = MaskGenI(w, b)
        self.register_buffer('prompt_before', torch.as_tensor(before), persistent=False)
        self.register_buffer('prompt_after', torch.as_tensor(after), persistent=False)
        self.eval()

    def train(self, mode=True):
        """Paper [5]: E_A is frozen, hence in eval mode; in the release its dropout is active."""
        super().train(mode)
        self.clipseg.eval()
        self.beats.eval()
        return self

    def forward(self, image, wav, image_mask='hard', feature_mask='feature', noise=(None, None),
                features=None, pair_chunk=None, negatives='local'):
        """Training: ground every image (B, 3, H, W) with every audio (B, samples). -> Alignment

        The vision encoder runs twice whatever B is: on the images and on the masked images.
        image_mask 'hard', 'soft' or 'feature', feature_mask 'feature' or 'image': Table 13.
        noise: MaskGen_I's uniform numbers, (B, N, H, W) for the areas and (B, 1, H, W) for the
        masked images, or None. features: see embed_audio. pair_chunk: see ground.
        negatives='global': N audios, of all processes, else N = B.
        """
        B, _, H, W = image.shape
        A = self.embed_audio(wav, features)                         # (B, D)
        first = 0
        if negatives == 'global':
            A = all_gather(A)                                       # (N, D)
            first = first_own_row(B)
        vision = encode_image(self.clipseg, image)                  # v_D (B, D, h, w)
        M_G = self.ground(vision, A.expand(B, *A.shape), (H, W), pair_chunk)    # (B, N, H, W)
        M_G = M_G.to(torch.promote_types(M_G.dtype, torch.float32))     # masks: at least float32
        grid = vision.v_D.shape[-2:]                                # (h, w)

        # Paper [17]: Eq. 4 measures "the image masks", so the areas are those of the mask in use.
        every_M_I = self.image_masks(M_G, image_mask, grid, noise[0])   # (B, N, H, W)
        areas = every_M_I.mean((-2, -1))                                # (B, N)
        if feature_mask == 'image':     # Table 13's first row: M_I in the place of M_F
            M_F = to_grid(every_M_I, grid)                              # (B, N, h, w)
        else:
            M_F = mask_gen_f(M_G, grid)
        # Paper [7]: one M_I for areas and v_I; the release, followed here, draws new noise for v_I.
        own_M_G = rearrange(M_G.diagonal(first), 'h w b -> b 1 h w')    # (B, 1, H, W), own audios
        M_I = self.image_masks(own_M_G, image_mask, grid, noise[1])     # (B, 1, H, W)
        # Paper [8]: M_I * X. The release masks the normalised image: 0 is CLIP's mean colour.
        v_I = embed_image(self.clipseg, image * M_I)                    # (B, D)
        return Alignment(A, M_G, areas, M_I, v_I, M_F, vision.v_D, first)

    # --- 3.1

    def embed_audio(self, wav, features=None):
        """wav (N, samples), 16 kHz, -1..1 -> audio-driven embedding A (N, D).

        features: E_A's output for these sounds, where it is cached.
        """
        features = self.beats(wav) if features is None else features    # (N, T, 3 * width of E_A)
        tokens = self.audio_proj(features)                          # (N, k, width)
        return embed_prompt(self.clipseg, self.prompt_before, tokens, self.prompt_after)

    # --- 3.2

    def ground(self, vision, A, size, pair_chunk=None):
        """vision of B images, A (B, N, D) -> M_G (B, N, H, W), logits at size (H, W).

        pair_chunk: decode that many of the B * N pairs at a time, with activation checkpointing:
        keep the inputs, recompute in the backward pass. Saves 15 MB a pair at 352 x 352.
        """
        if pair_chunk and torch.is_grad_enabled():
            at_once = max(1, pair_chunk // len(A))      # audios, each under all B images
            parts = [activation_checkpoint(decode, self.clipseg, vision.activations, part,
                                           use_reentrant=False, preserve_rng_state=False)
                     for part in A.split(at_once, 1)]
            M_G = torch.cat(parts, 1)                                   # (B, N, H', W')
        else:
            M_G = decode(self.clipseg, vision.activations, A)           # (B, N, H', W')
        if M_G.shape[-2:] != tuple(size):       # bicubic, before the sigmoid (released code)
            M_G = F.interpolate(M_G, size=size, mode='bicubic', align_corners=False)
        return M_G

    def image_masks(self, M_G, kind, grid, uniform=None):
        """M_G (B, N, H, W) -> image masks of that shape. grid: (h, w); uniform: binary_gumbel."""
        if kind == 'soft':                      # Table 13: no w, no b, no noise
            return torch.sigmoid(M_G)
        if kind == 'feature':                   # Table 13: M_F in the place of M_I
            return to_image(mask_gen_f(M_G, grid), M_G.shape[-2:])
        return self.masker_i(M_G, uniform)

    # --- 3.7

    @torch.no_grad()
    def heatmap(self, image, wav, size):
        """B images, each under its own sound (B, samples) -> (B, *size) in 0..1."""
        A = self.embed_audio(wav).unsqueeze(1)                          # (B, 1, D)
        return self.heatmaps(encode_image(self.clipseg, image), A, size)[:, 0]

    @torch.no_grad()
    def heatmaps(self, vision, A, size):
        """Vision of B images, A (B, N, D) of audio or of text -> (B, N, *size) in 0..1."""
        return self.masker_i.inference(self.ground(vision, A, size))

    @torch.no_grad()
    def embed_text(self, tokenizer, words, template=PROMPT):
        """Class names in the prompt -> (len(words), D): the oracle of Table 1, CLIPSeg w/ GT text.

        template='<*>' takes the words as they are: the caption embeddings C of Section 3.6.
        """
        texts = [template.replace('<*>', word) for word in words]
        ids = tokenizer(texts, padding=True, truncation=True, return_tensors='pt')
        ids = ids.to(self.prompt_before.device)                         # (len(words), tokens)
        return self.clipseg.clip.get_text_features(**ids).pooler_output      # projected

    def cast_frozen(self, dtype):
        """Convert the frozen linear and convolution weights to dtype, for use under its autocast.

        Autocast would round them at every use, so the results are the same. Embeddings, layer
        norms and BEATs' PositionConv, which autocast computes in float32, stay in float32.
        """
        for module in (*self.clipseg.modules(), *self.beats.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.to(dtype)


# ---- 3.1 AudioTokenizer: projection and attentive pooling of E_A's features -------------------

class AudioProjection(nn.Module):
    """The trained half of the AudioTokenizer. (N, T, 3 * width of E_A) -> (N, k, text width)."""
    def __init__(self, in_dim, out_dim, tokens=1):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, in_dim)
        self.fc2 = nn.Linear(in_dim, out_dim)
        self.fga = AttentivePooling(out_dim, tokens)

    def forward(self, features):
        return self.fga(self.fc2(F.gelu(self.fc1(features))))


class AttentivePooling(nn.Module):
    """Factor graph attention (Yariv et al., 2023): a softmax over T of the mixed potentials.

    x: (N, T, dim) -> (N, k, dim). Paper [3]: does not say how Table 11's k tokens differ. Here each
    has its own row of the unary potential and its own mixture; k = 1 is the released module. Its
    weight names make un_models and pp_models lists of one.
    """
    def __init__(self, dim, tokens=1):
        super().__init__()
        self.un_models = nn.ModuleList([UnaryPotential(dim, tokens)])
        self.pp_models = nn.ModuleList([SelfPotential(dim)])
        self.reduce_potentials = nn.ModuleList(nn.Conv1d(2, 1, 1, bias=False)
                                               for _ in range(tokens))

    def forward(self, x):
        channels_first = rearrange(x, 'n t dim -> n dim t')
        unary = self.un_models[0](channels_first)                   # (N, k, T)
        agreement = self.pp_models[0](channels_first)               # (N, T)
        mixed = [mix(torch.stack([unary[:, i], agreement], 1))      # (N, 2, T) -> (N, 1, T)
                 for i, mix in enumerate(self.reduce_potentials)]
        attention = torch.cat(mixed, 1).softmax(-1)                 # (N, k, T)
        return attention @ x                                        # (N, k, dim)


class UnaryPotential(nn.Module):
    """How much each of T patches matters by itself. x: (N, dim, T) -> (N, k, T)."""
    def __init__(self, dim, tokens):
        super().__init__()
        self.embed = nn.Conv1d(dim, dim, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.feature_reduce = nn.Conv1d(dim, tokens, 1)

    def forward(self, x):
        return self.feature_reduce(self.dropout(F.relu(self.embed(x))))


class SelfPotential(nn.Module):
    """How much each patch agrees with the others. x: (N, dim, T) -> (N, T)."""
    def __init__(self, dim):
        super().__init__()
        self.embed_X = nn.Conv1d(dim, dim, 1)
        self.embed_Y = nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        X = F.normalize(self.embed_X(x), dim=1)         # (N, dim, T), unit length over dim
        Y = F.normalize(self.embed_Y(x), dim=1)
        # The mean of X . Y over Y's patches is X . mean(Y), which needs no (T, T) matrix.
        return torch.einsum('ndt,nd->nt', X, Y.mean(-1))


# ---- 3.1 E_CLIP_t: CLIP's text encoder on a prompt with audio tokens --------------------------

def prompt_ids(tokenizer, prompt):
    """Token ids before and after <*> in e.g. "A photo of a <*>" (Table 12)."""
    if prompt.count('<*>') != 1:
        raise ValueError(f'the prompt {prompt!r} must hold <*>, the audio token, exactly once')
    before, after = (tokenizer(part.strip()).input_ids for part in prompt.split('<*>'))
    return before[:-1], after[1:]       # each part has both: keep one start, one end-of-text token


def embed_prompt(clipseg, before, tokens, after):
    """before, after: prompt_ids as tensors (P,), (Q,); tokens: (N, k, width) -> A (N, D).

    A is read at the end-of-text token, which is the last: there is no padding.
    """
    text = clipseg.clip.text_model
    start, end = (text.embeddings.token_embedding(ids).expand(len(tokens), -1, -1)
                  for ids in (before, after))
    x = torch.cat([start, tokens, end], 1)                          # (N, P + k + Q, width)
    length = x.shape[1]
    x = x + text.embeddings.position_embedding.weight[:length]
    causal = torch.full((length, length), float('-inf'), dtype=x.dtype, device=x.device).triu(1)
    x = text.encoder(inputs_embeds=x, attention_mask=causal[None, None]).last_hidden_state
    return clipseg.clip.text_projection(text.final_layer_norm(x[:, -1]))        # (N, D)


# ---- 3.2 E_CLIP_v: CLIP's vision encoder ------------------------------------------------------

@dataclass
class Vision:
    """The vision encoder's output for B images, computed once whatever the number of audios."""
    activations: list           # three of (B, 1 + hw, width), shallow to deep, for the decoder
    v_D: torch.Tensor           # (B, D, h, w) spatial features


def encode_image(clipseg, image):
    """image: (B, 3, H, W), CLIP-normalised, H and W multiples of the patch size. -> Vision"""
    vision = clipseg.clip.vision_model
    hidden = hidden_states(vision, image)
    x = hidden[-1]                          # (B, 1 + hw, width), the last layer's input
    # Paper [4]: only says "spatial visual features". Released code: the last layer takes its values
    # without the attention over cells (MaskCLIP), so that each cell describes its own place.
    last = vision.encoder.layers[-1]
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
    x = x + last.mlp(last.layer_norm2(x))
    x = clipseg.clip.visual_projection(vision.post_layernorm(x))            # (B, 1 + hw, D)
    h = image.shape[-2] // clipseg.config.vision_config.patch_size
    v_D = rearrange(x[:, 1:], 'b (h w) d -> b d h w', h=h)          # without the class token
    return Vision([hidden[i + 1] for i in clipseg.extract_layers], v_D)


def embed_image(clipseg, image):
    """The image embedding alone, for v_I: (B, 3, H, W) -> (B, D)."""
    vision = clipseg.clip.vision_model
    return clipseg.clip.visual_projection(class_token(vision, hidden_states(vision, image)[-1]))


def hidden_states(vision, image):
    """The input and the outputs of all layers but the last: a list of (B, 1 + hw, width)."""
    hidden = [vision.pre_layrnorm(vision.embeddings(image))]
    for layer in vision.encoder.layers[:-1]:
        hidden.append(layer(hidden[-1], attention_mask=None))
    return hidden


def class_token(vision, x):
    """The last layer for the class token alone, since the image embedding reads no other token.

    x: (B, 1 + hw, width), that layer's input -> (B, width). Saves 7% of an encoder pass.
    """
    last = vision.encoder.layers[-1]
    attention = last.self_attn
    normed = last.layer_norm1(x)
    qkv = attention.q_proj(normed[:, :1]), attention.k_proj(normed), attention.v_proj(normed)
    q, k, v = (rearrange(y, 'b t (heads d) -> b heads t d', heads=attention.num_heads) for y in qkv)
    pooled = rearrange(F.scaled_dot_product_attention(q, k, v), 'b heads 1 d -> b (heads d)')
    token = x[:, 0] + attention.out_proj(pooled)
    return vision.post_layernorm(token + last.mlp(last.layer_norm2(token)))


# ---- 3.2 G: the grounder, CLIPSeg's decoder ---------------------------------------------------

def decode(clipseg, activations, A):
    """CLIPSeg's decoder with A in the place of a text embedding.

    activations: Vision's; A: (B, N, D), N audios for each image -> logits (B, N, H', W').
    What does not depend on A, `reduce` above all, runs once per image instead of once per pair.
    """
    decoder = clipseg.decoder
    B, N, _ = A.shape
    scale = decoder.film_mul(A).unsqueeze(2)                        # (B, N, 1, r)
    shift = decoder.film_add(A).unsqueeze(2)
    x = 0
    stages = zip(activations[::-1], decoder.reduces, decoder.layers)
    for i, (activation, reduce, layer) in enumerate(stages):
        reduced = reduce(activation)                                # (B, 1 + hw, r)
        if i > decoder.conditional_layer:
            reduced = repeat(reduced, 'b t r -> (b n) t r', n=N)
        x = x + reduced
        if i == decoder.conditional_layer:                          # FiLM: here the audio enters
            x = rearrange(scale * x.unsqueeze(1) + shift, 'b n t r -> (b n) t r')
        x = layer(x, attention_mask=None)                           # (BN, 1 + hw, r)
    side = int((x.shape[1] - 1) ** 0.5)
    x = rearrange(x[:, 1:], 'bn (h w) r -> bn r h w', h=side)
    return rearrange(decoder.transposed_convolution(x), '(b n) 1 h w -> b n h w', b=B)


# ---- Sizes and weights ------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Preset:
    """Sizes and paths of one scale. Everything else is shared."""
    clipseg: str        # hub name or folder of the CLIPSeg weights and tokenizer
    beats: str          # BEATs checkpoint file, {'cfg', 'model'}
    data_root: str      # folder of the datasets
    image_size: int     # pixels, square (Section 4.1: 352)
    seconds: float      # audio length, cut or zero-padded (Section 4.1: 10 s)
    w: float = W_INIT   # initial w and b of MaskGen_I
    b: float = B_INIT


PRESETS = {
    # Paper [10]: w = 10, b = 14 suit photographs. The miniature's decoder gives larger logits: at
    # slope 10 a wrong mask passes no gradient and stays wrong. The same b / w gives the same mask.
    'miniature': Preset(str(ROOT / 'miniature/weights/clipseg'),
                        str(ROOT / 'miniature/weights/beats.pt'),
                        str(ROOT / 'data/miniature'), image_size=96, seconds=2.0, w=1.0, b=1.4),
    'paper': Preset('CIDAS/clipseg-rd64-refined',
                    str(ROOT / 'weights/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt'),
                    str(ROOT / 'data'), image_size=352, seconds=10.0),
}


def load_model(preset='miniature', checkpoint=None, prompt=None, audio_tokens=None, clipseg=None,
               beats=None):
    """A preset's model. -> SoundLocalizer in eval mode, its tokenizer

    checkpoint: train.py's or the authors'; None: random projection. prompt, audio_tokens: by
    default the checkpoint's (the authors' names no prompt: RELEASE_PROMPT), else PROMPT and 1.
    clipseg, beats: in place of the preset's.
    """
    config = PRESETS[preset]
    saved = read_checkpoint(checkpoint) if checkpoint else {'prompt': PROMPT}
    if prompt is None:
        prompt = saved.get('prompt', RELEASE_PROMPT)
        if 'prompt' not in saved:
            print(f'{checkpoint} does not name its prompt: using the release\'s, "{prompt}"')
    clip_model, tokenizer = load_clipseg(clipseg or config.clipseg)
    E_A = load_beats(beats or config.beats)
    tokens = audio_tokens or saved.get('audio_tokens', 1)
    ids = prompt_ids(tokenizer, prompt)
    model = SoundLocalizer(clip_model, E_A, ids, tokens, config.w, config.b)
    if checkpoint:
        load_trained(model, saved, checkpoint)
    return model, tokenizer


def load_clipseg(name):
    """CLIPSeg (frozen, eval, float32) and its tokenizer, from a folder or from the hub."""
    clipseg = load_pretrained(CLIPSegForImageSegmentation, name, '--clipseg')
    return clipseg, from_pretrained(AutoTokenizer, name, '--clipseg')


def load_pretrained(model_class, name, option, dtype=torch.float32):
    """A model of transformers from a folder or the hub, frozen, in eval mode.

    option: the command line's, for the sentence of an error. ValueError: another kind of model.
    """
    model, report = from_pretrained(model_class, name, option, dtype=dtype,
                                    output_loading_info=True)
    weights = dict(model.named_parameters())        # without buffers, which older files lack
    lost = sorted(weights.keys() & report['missing_keys'])
    lost += [key for key, value in weights.items() if not value.isfinite().all()]
    if lost:
        raise ValueError(f'the model at {name!r} is no usable {model_class.__name__}: {len(lost)} '
                         f'weights are missing or not numbers, e.g. {lost[0]}; fetch it again, or '
                         f'name another by {option}')
    return model.requires_grad_(False).eval()


def from_pretrained(part, name, option, **settings):
    """A model, tokenizer, processor or config of transformers, by its class (part).

    name: a folder, or a name on the hub. OSError: absent or damaged, with option in the remedy.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()      # load_pretrained reports missing weights
    try:
        loaded = part.from_pretrained(name, trust_remote_code=False, **settings)
        tokenizer = getattr(loaded, 'tokenizer', loaded)        # a processor has one
        # Without its files transformers makes one that reads every text as the same
        if isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.vocab_size < 10:
            raise ValueError('a tokenizer without a vocabulary: tokenizer.json is missing')
        return loaded
    except Exception as error:          # transformers, its hub client, json, safetensors: any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise OSError(f'no usable {part.__name__} at {name!r} ({reason}): put its folder there, go '
                      f'online to fetch it from the hub, or name another by {option}') from None


def read_checkpoint(path):
    """-> {'audio_proj', 'masker_i', ...}. ValueError: damaged; OSError: absent or unreadable"""
    remedy = 'train one with train.py or correct --checkpoint (of a run: its last.pt)'
    saved = read_weights(path, remedy)
    try:
        weights = [*dict(saved['audio_proj']).values(), *dict(saved['masker_i']).values()]
        finite = all(torch.as_tensor(weight).isfinite().all() for weight in weights)
    except Exception:           # another program's file
        raise ValueError(f"{path} is not a checkpoint of this method: it must hold 'audio_proj' "
                         "and 'masker_i', as train.py and the authors write them") from None
    if not finite:
        raise ValueError(f'{path} holds weights that are not finite: take an earlier checkpoint')
    named = {'prompt': PROMPT, 'audio_tokens': 1, 'preset': 'paper', 'variant': 'av', **saved}
    tokens = named['audio_tokens']
    usable = {'prompt': isinstance(named['prompt'], str) and named['prompt'].count('<*>') == 1,
              'audio_tokens': type(tokens) is int and tokens > 0,
              'preset': named['preset'] in list(PRESETS),
              'variant': named['variant'] in ['av', 'av_llm']}
    for name in usable:
        if not usable[name]:
            raise ValueError(f'{path}: its {name!r} is none that train.py writes: {remedy}')
    return saved


def load_trained(model, saved, path):
    """Copy a checkpoint's audio_proj and masker_i into the model. ValueError if they do not fit."""
    # squeezed, as w and b have the shape (1,) in the released file
    scalars = {key: torch.as_tensor(value).squeeze() for key, value in saved['masker_i'].items()}
    try:
        model.audio_proj.load_state_dict(saved['audio_proj'])
        model.masker_i.load_state_dict(scalars)
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).splitlines()[:2][-1].strip('\t .')
        raise ValueError(f'{path} does not fit this model: {reason}; give the --preset, --clipseg '
                         'and --beats it was trained with') from None


def trained_state(model):
    """What a checkpoint holds of the model, under the released names."""
    return {'audio_proj': model.audio_proj.state_dict(), 'masker_i': model.masker_i.state_dict()}
