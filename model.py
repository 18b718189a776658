"""The method: sections 3.1 (audio-driven embedder), 3.2 (audio-visual grounder) and 3.7 (inference).

    wav --BEATs--> features --AudioTokenizer--> audio token --prompt, CLIP text encoder--> A          3.1
    image --CLIP vision encoder--> activations, v_D;  (activations, A) --CLIPSeg decoder--> M_G       3.2
    M_G --MaskGen_I, MaskGen_F (masks.py)--> M_I, M_F;  M_I * image --CLIP vision--> v_I              3.2, 3.3
    sigmoid(M_G + b / w)                                                                              3.7

E_A (beats.py), CLIP and CLIPSeg (transformers) are frozen. What trains: the projection and pooling of the
AudioTokenizer (`audio_proj`) and the two scalars of MaskGen_I (`masker_i`), under the names of the released checkpoint.

    model, tokenizer = load_model('miniature')            # or 'paper', with the real weights in place
    heatmap = model.heatmap(image, wav, size=(224, 224))  # (B, 224, 224) in 0..1

Shapes: B images, N audios, H W pixels, h w feature cells, D embedding, T audio tokens of BEATs, k audio tokens in
the prompt.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange, repeat
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, CLIPSegForImageSegmentation
from transformers.utils import logging as transformers_logging

from beats import load_beats
from masks import B_INIT, W_INIT, MaskGenI, mask_gen_f, soft_image_mask, to_grid, to_image
from negatives import everyone, first_of_mine

ROOT = Path(__file__).resolve().parent
PROMPT = 'A photo of a <*>'          # section 3.1; <*> is where the audio token goes
RELEASE_PROMPT = 'A photo of <*>'    # Paper: what the released checkpoint was trained with; another is silently wrong
DROPOUT = 0.5                        # Paper: names none; in the unary potential, while training (released code)


@dataclass(frozen=True)
class Preset:
    """Sizes and paths of one scale. Everything else is shared."""
    clipseg: str        # hub name or folder of the CLIPSeg weights and tokenizer
    beats: str          # BEATs checkpoint file, {'cfg', 'model'}
    data_root: str      # folder of the datasets (README: where each goes)
    image_size: int     # pixels, square (section 4.1: 352)
    seconds: float      # audio length, cut or zero-padded (section 4.1: 10 s)
    w: float = W_INIT   # initial w and b of MaskGen_I
    b: float = B_INIT


PRESETS = {
    # Paper: w = 10, b = 14 suit logits learned from photographs. The miniature's drawings have crisp borders and its
    # decoder is sure of itself: at slope 10 no gradient comes through a mask that is wrong, and a class that starts on
    # the wrong object stays there (seed 0: every telephone heard as a bell). The same b / w at slope 1 is the same mask, and it learns.
    'miniature': Preset(str(ROOT / 'miniature/weights/clipseg'), str(ROOT / 'miniature/weights/beats.pt'),
                        str(ROOT / 'data/miniature'), image_size=96, seconds=2.0, w=1.0, b=1.4),
    'paper': Preset('CIDAS/clipseg-rd64-refined',
                    str(ROOT / 'weights/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt'),
                    str(ROOT / 'data'), image_size=352, seconds=10.0),
}


# ------------------------------------------------------------------------------------------------
# 3.1 AudioTokenizer: projection and attentive pooling
# ------------------------------------------------------------------------------------------------

class UnaryPotential(nn.Module):
    """How much each time step matters by itself. x: (B, D, T) -> (B, k, T), one row per audio token."""

    def __init__(self, dim, tokens):
        super().__init__()
        self.embed = nn.Conv1d(dim, dim, 1)
        self.dropout = nn.Dropout(DROPOUT)
        self.feature_reduce = nn.Conv1d(dim, tokens, 1)

    def forward(self, x):
        return self.feature_reduce(self.dropout(F.relu(self.embed(x))))


class SelfPotential(nn.Module):
    """How much each time step agrees with the others. x: (B, D, T) -> (B, T)."""

    def __init__(self, dim):
        super().__init__()
        self.embed_X = nn.Conv1d(dim, dim, 1)
        self.embed_Y = nn.Conv1d(dim, dim, 1)

    def forward(self, x):
        X = F.normalize(self.embed_X(x), dim=1)                     # (B, D, T), unit length over D
        Y = F.normalize(self.embed_Y(x), dim=1)
        # the mean over Y's time of X . Y is X . mean(Y): no (T, T) matrix is needed
        return torch.einsum('bdt,bd->bt', X, Y.mean(-1))


class AttentivePooling(nn.Module):
    """Factor graph attention over time with one modality (section 3.1, "as in Yariv et al. (2023)").

    x: (B, T, D) -> (B, k, D): per audio token a softmax over time of a mixture of the two potentials.
    Paper: Table 11's k tokens need k pooled vectors and the paper does not say how they differ. Here each has its own
    row of the unary potential and its own mixture; k = 1 is the released module, name for name.
    """

    def __init__(self, dim, tokens=1):
        super().__init__()
        self.un_models = nn.ModuleList([UnaryPotential(dim, tokens)])
        self.pp_models = nn.ModuleList([SelfPotential(dim)])
        self.reduce_potentials = nn.ModuleList([nn.Conv1d(2, 1, 1, bias=False) for _ in range(tokens)])

    def forward(self, x):
        channels_first = rearrange(x, 'b t d -> b d t')
        unary = self.un_models[0](channels_first)                   # (B, k, T)
        agreement = self.pp_models[0](channels_first)               # (B, T)
        mixed = [mix(torch.stack([unary[:, k], agreement], 1))      # (B, 2, T) -> (B, 1, T)
                 for k, mix in enumerate(self.reduce_potentials)]
        attention = torch.cat(mixed, 1).softmax(-1)                 # (B, k, T)
        return attention @ x                                        # (B, k, D)


class AudioProjection(nn.Module):
    """The trained half of the AudioTokenizer: two linear layers with GELU, then attentive pooling (section 3.1).

    features: (B, T, width of E_A's features) -> audio tokens (B, k, width of CLIP's word embeddings).
    """

    def __init__(self, in_dim, out_dim, tokens=1):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, in_dim)
        self.fc2 = nn.Linear(in_dim, out_dim)
        self.fga = AttentivePooling(out_dim, tokens)

    def forward(self, features):
        return self.fga(self.fc2(F.gelu(self.fc1(features))))


# ------------------------------------------------------------------------------------------------
# What the CLIP encoders give (functions of a CLIPSeg model, so that others can borrow them)
# ------------------------------------------------------------------------------------------------

@dataclass
class Vision:
    """What the frozen CLIP image encoder says of B images; computed once, whatever the number of audios."""
    pooled: torch.Tensor        # (B, D) the image embedding, in CLIP's shared space
    activations: list           # three of (B, 1 + hw, width), shallow to deep: what the CLIPSeg decoder reads
    v_D: torch.Tensor           # (B, D, h, w) spatial features in CLIP's shared space


def encode_image(clipseg, image):
    """E_CLIP_v of section 3.2. image: (B, 3, H, W), CLIP-normalised; H and W multiples of the patch. -> Vision."""
    vision, patch = clipseg.clip.vision_model, clipseg.config.vision_config.patch_size
    h, w = image.shape[-2] // patch, image.shape[-1] // patch
    x, activations = vision.pre_layrnorm(vision.embeddings(image)), {}      # (B, 1 + hw, width)
    for i, layer in enumerate(vision.encoder.layers[:-1]):
        x = activations[i] = layer(x, attention_mask=None)
    pooled = clipseg.clip.visual_projection(class_token(vision, x))         # (B, D)
    # v_D: the last layer with its attention reduced to values (MaskCLIP): a cell then speaks of its own place.
    # Paper: it says "spatial visual features" only; this is the released code.
    last = vision.encoder.layers[-1]
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
    x = x + last.mlp(last.layer_norm2(x))
    x = clipseg.clip.visual_projection(vision.post_layernorm(x))    # (B, 1 + hw, D)
    v_D = rearrange(x[:, 1:], 'b (h w) d -> b d h w', h=h, w=w)     # without the class token
    return Vision(pooled, [activations[i] for i in clipseg.extract_layers], v_D)


def class_token(vision, x):
    """The last layer for the class token alone, which is all that the image embedding takes of it.

    x: (B, 1 + hw, width) before that layer -> (B, width), normalised. The others would cost a twelfth of the encoder.
    """
    last, attention = vision.encoder.layers[-1], vision.encoder.layers[-1].self_attn
    normed = last.layer_norm1(x)
    q, k, v = (rearrange(linear(tokens), 'b t (heads d) -> b heads t d', heads=attention.num_heads) for linear, tokens in
               ((attention.q_proj, normed[:, :1]), (attention.k_proj, normed), (attention.v_proj, normed)))
    pooled = rearrange(F.scaled_dot_product_attention(q, k, v), 'b heads 1 d -> b (heads d)')
    token = x[:, 0] + attention.out_proj(pooled)
    return vision.post_layernorm(token + last.mlp(last.layer_norm2(token)))


def embed_image(clipseg, image):
    """The image embedding alone, for v_I: (B, 3, H, W) -> (B, D)."""
    vision = clipseg.clip.vision_model
    x = vision.pre_layrnorm(vision.embeddings(image))               # (B, 1 + hw, width)
    for layer in vision.encoder.layers[:-1]:
        x = layer(x, attention_mask=None)
    return clipseg.clip.visual_projection(class_token(vision, x))


def embed_prompt(clipseg, before, tokens, after):
    """E_CLIP_t of section 3.1 on a prompt that holds audio tokens instead of words.

    before, after: ids around the tokens (P,), (Q,), the start token first and the end-of-text token last;
    tokens: (N, k, width) -> A: (N, D), pooled at the end-of-text position, the last one: there is no padding.
    """
    text, N = clipseg.clip.text_model, len(tokens)
    embed = text.embeddings.token_embedding
    x = torch.cat([embed(before).expand(N, -1, -1), tokens, embed(after).expand(N, -1, -1)], 1)  # (N, P+k+Q, width)
    x = x + text.embeddings.position_embedding.weight[:x.shape[1]]
    causal = torch.full((x.shape[1],) * 2, float('-inf'), dtype=x.dtype, device=x.device).triu(1)[None, None]
    x = text.encoder(inputs_embeds=x, attention_mask=causal).last_hidden_state
    return clipseg.clip.text_projection(text.final_layer_norm(x[:, -1]))


def decode(clipseg, activations, A):
    """The grounder G of section 3.2, CLIPSeg's decoder with A in place of a text embedding.

    activations: Vision's; A: (B, N, D), N conditions for each of B images -> logits (B, N, H', W').
    The reduce layers do not depend on A: they run once per image and are broadcast over its N audios.
    """
    decoder, (B, N, _) = clipseg.decoder, A.shape
    scale, shift = decoder.film_mul(A).unsqueeze(2), decoder.film_add(A).unsqueeze(2)   # (B, N, 1, r)
    x, conditioned = 0, False
    for i, (activation, reduce, layer) in enumerate(zip(activations[::-1], decoder.reduces, decoder.layers)):
        reduced = reduce(activation)                                # (B, 1 + hw, r)
        x = x + (repeat(reduced, 'b t r -> (b n) t r', n=N) if conditioned else reduced)
        if i == decoder.conditional_layer:                          # FiLM: the one place where the audio enters
            x = rearrange(scale * x.unsqueeze(1) + shift, 'b n t r -> (b n) t r')
            conditioned = True
        x = layer(x, attention_mask=None)                           # (BN, 1 + hw, r)
    side = int((x.shape[1] - 1) ** 0.5)
    x = rearrange(x[:, 1:], 'bn (h w) r -> bn r h w', h=side)
    return rearrange(decoder.transposed_convolution(x), '(b n) 1 h w -> b n h w', b=B)


# ------------------------------------------------------------------------------------------------
# The whole
# ------------------------------------------------------------------------------------------------

@dataclass
class Alignment:
    """What the losses need of a batch of B pairs; None where a term was not asked for.

    N audios: the B of these images or, with global negatives, those of all processes.
    """
    A: torch.Tensor                     # (N, D) audio-driven embeddings
    M_G: torch.Tensor                   # (B, N, H, W) logits, image i under audio j
    areas: torch.Tensor                 # (B, N) mean of each image mask, for Eq. 4
    M_I: torch.Tensor                   # (B, 1, H, W) image mask of the positive pairs
    v_I: torch.Tensor | None            # (B, D) embedding of the masked images, for Eq. 1
    M_F: torch.Tensor                   # (B, N, h, w) feature masks, for Eq. 2
    v_D: torch.Tensor                   # (B, D, h, w) spatial features, for Eq. 2
    first: int = 0                      # image i's own audio is A[first + i]


class SoundLocalizer(nn.Module):
    """AudioTokenizer, audio-driven embedder, audio-visual grounder and mask generators (Figure 2).

    clipseg: transformers' CLIPSegForImageSegmentation; beats: beats.BEATs; prompt_ids: two id lists, before and after
    the audio tokens; audio_tokens: k of Table 11; w, b: initial values of MaskGen_I.
    """

    def __init__(self, clipseg, beats, prompt_ids, audio_tokens=1, w=W_INIT, b=B_INIT):
        super().__init__()
        self.clipseg, self.beats = clipseg.requires_grad_(False), beats.requires_grad_(False)
        width = clipseg.config.text_config.hidden_size
        self.audio_proj = AudioProjection(3 * beats.cfg.encoder_embed_dim, width, audio_tokens)
        self.masker_i = MaskGenI(w, b)
        before, after = prompt_ids
        longest, length = clipseg.config.text_config.max_position_embeddings, len(before) + audio_tokens + len(after)
        if length > longest:
            raise ValueError(f'the prompt takes {length} tokens with its {audio_tokens} of audio, and the text encoder '
                             f'reads {longest}: shorten --prompt')
        self.register_buffer('prompt_before', torch.as_tensor(before), persistent=False)
        self.register_buffer('prompt_after', torch.as_tensor(after), persistent=False)
        self.eval()

    def train(self, mode=True):
        """Frozen parts never leave eval mode.

        Paper: E_A is frozen; the release leaves BEATs in train mode, so its dropout is live.
        """
        super().train(mode)
        self.clipseg.eval()
        self.beats.eval()
        return self

    # --- 3.1

    def audio_tokens(self, wav, features=None):
        """wav: (N, samples) at 16 kHz in -1..1 -> (N, k, width): what stands for a word in the prompt.

        features: (N, T, 3 * width of E_A), what E_A says of wav, where it is known already (cache.py).
        """
        if features is None:
            with torch.no_grad():
                features = self.beats(wav)                          # (N, T, 3 * width of E_A)
        return self.audio_proj(features)

    def embed_audio(self, wav, features=None):
        """Section 3.1: wav (N, samples) -> audio-driven embedding A (N, D)."""
        return embed_prompt(self.clipseg, self.prompt_before, self.audio_tokens(wav, features), self.prompt_after)

    # --- 3.2

    def ground(self, vision, A, size, pair_chunk=None):
        """Section 3.2: vision of B images, A (B, N, D) -> M_G (B, N, H, W) logits at size = (H, W).

        CLIPSeg at patch 16 already answers at the image's size; any other size is reached by bicubic resizing of the
        logits, before the sigmoid (released code). pair_chunk: that many of the B * N pairs at a time, each chunk
        computed again in the backward pass: less memory, one decoder forward more, the same numbers.
        """
        if pair_chunk and torch.is_grad_enabled():
            # the decoder holds 15 MB a pair for the backward pass at 352 x 352; held are only its inputs, and it runs again
            M_G = torch.cat([checkpoint(decode, self.clipseg, vision.activations, part, use_reentrant=False,
                                        preserve_rng_state=False)
                             for part in A.split(max(1, pair_chunk // len(A)), 1)], 1)
        else:
            M_G = decode(self.clipseg, vision.activations, A)
        if M_G.shape[-2:] != tuple(size):
            M_G = F.interpolate(M_G, size=size, mode='bicubic', align_corners=False)
        return M_G

    def forward(self, image, wav, image_mask='hard', feature_mask='feature', with_v_I=True, noise=(None, None),
                features=None, pair_chunk=None, negatives='local'):
        """One training step's worth: B images and their B audios, every image under every audio.

        image: (B, 3, H, W) normalised, wav: (B, samples) -> Alignment. The vision encoder runs once on the images, for
        all B x B masks, and once more on the B masked images (not with with_v_I=False: nothing then asks for v_I).
        image_mask, feature_mask: Table 13, see image_masks and below. noise: the two uniform draws of MaskGen_I, of
        shapes (B, B, H, W) for the areas and (B, 1, H, W) for the masked image; drawn when None. features: see
        audio_tokens. pair_chunk: see ground. negatives='global': every image under the N audios of all processes
        (negatives.py), and the first draw is (B, N, H, W).
        """
        B, _, H, W = image.shape
        A = self.embed_audio(wav, features)                         # (B, D)
        A, first = (everyone(A), first_of_mine(B)) if negatives == 'global' else (A, 0)         # (N, D)
        with torch.no_grad():
            vision = encode_image(self.clipseg, image)
        # (B, N, H, W): image i under audio j; masks and losses in float32, or the model's float64
        M_G = self.ground(vision, A.expand(B, *A.shape), (H, W), pair_chunk)
        M_G = M_G.to(torch.promote_types(M_G.dtype, torch.float32))
        grid = vision.v_D.shape[-2:]

        every_M_I = self.image_masks(M_G, image_mask, grid, noise[0])
        # Table 13, first row: M_I in the place of M_F
        M_F = to_grid(every_M_I, grid) if feature_mask == 'image' else mask_gen_f(M_G, grid)   # (B, N, h, w)

        positive = M_G.diagonal(first).permute(2, 0, 1).unsqueeze(1)    # (B, 1, H, W): each image under its own audio
        # Paper: one M_I for both uses; the release draws the noise of the masked image anew
        M_I = self.image_masks(positive, image_mask, grid, noise[1])
        # Paper: M_I * X; the mask is laid on the normalised image, so what is hidden has CLIP's mean colour (release)
        v_I = embed_image(self.clipseg, image * M_I) if with_v_I else None
        return Alignment(A, M_G, every_M_I.mean((-2, -1)), M_I, v_I, M_F, vision.v_D, first)

    def image_masks(self, M_G, kind, grid, uniform=None):
        """M_G (B, N, H, W) -> image masks of the same shape, by Table 13's variants.

        'hard': MaskGen_I; 'soft': sigma(M_G); 'feature': MaskGen_F's map, from the feature grid back to the image.
        Paper: Eq. 4 is on "the image masks"; the areas are therefore those of whichever mask is in use.
        """
        if kind == 'soft':
            return soft_image_mask(M_G)
        if kind == 'feature':
            return to_image(mask_gen_f(M_G, grid), M_G.shape[-2:])
        return self.masker_i(M_G, uniform)

    # --- 3.7

    @torch.no_grad()
    def heatmap(self, image, wav, size):
        """Section 3.7: image (B, 3, H, W), wav (B, samples) -> (B, *size) in 0..1, each image under its own audio."""
        return self.heatmaps(encode_image(self.clipseg, image), self.embed_audio(wav).unsqueeze(1), size)[:, 0]

    @torch.no_grad()
    def heatmaps(self, vision, A, size):
        """The same from parts already computed: A (B, N, D), of audio or of text -> (B, N, *size) in 0..1."""
        return self.masker_i.inference(self.ground(vision, A, size))

    @torch.no_grad()
    def embed_text(self, tokenizer, words, template=PROMPT):
        """The oracle's condition (Table 1, CLIPSeg w/ GT text): class names in the prompt -> (len(words), D).

        template='<*>' takes the words as they are: the caption embeddings C of section 3.6.
        """
        ids = tokenizer([template.replace('<*>', word) for word in words], padding=True, truncation=True,
                        return_tensors='pt').to(self.prompt_before.device)
        return self.clipseg.clip.get_text_features(**ids).pooler_output


# ------------------------------------------------------------------------------------------------
# Weights
# ------------------------------------------------------------------------------------------------

def prompt_ids(tokenizer, prompt):
    """Ids before and after the audio tokens of e.g. "A photo of a <*>" (Table 12). ValueError without one <*>."""
    if prompt.count('<*>') != 1:
        raise ValueError(f'the prompt {prompt!r} must hold <*> exactly once, where the audio token goes')
    before, after = (tokenizer(part.strip()).input_ids for part in prompt.split('<*>'))
    return before[:-1], after[1:]   # the start token of the one, the end-of-text token of the other


def load_clipseg(name):
    """CLIPSeg (frozen, eval, float32) and its tokenizer, from a folder or from the hub. FileNotFoundError."""
    transformers_logging.disable_progress_bar()
    try:
        clipseg, report = CLIPSegForImageSegmentation.from_pretrained(name, dtype=torch.float32,
                                                                      output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f'CLIPSeg weights not found or not readable at {name!r}: put the folder there, '
                                f'name another with --clipseg, or go online once for the hub ({reason})') from None
    if absent := [key for key in report['missing_keys'] if not key.endswith('position_ids')]:
        raise ValueError(f'{name!r} holds no whole CLIPSeg: {len(absent)} weights are missing, e.g. {absent[0]}; '
                         'name another folder with --clipseg')
    return clipseg.requires_grad_(False).eval(), tokenizer


def load_model(preset='miniature', checkpoint=None, prompt=None, audio_tokens=None, clipseg=None, beats=None):
    """Backbones of a preset and, with a checkpoint, the trained part. -> (SoundLocalizer in eval mode, tokenizer)

    checkpoint: a file of train.py or the authors' released one; prompt, audio_tokens: by default the checkpoint's, and
    for a file that does not say (the authors') the release's prompt; clipseg, beats: paths instead of the preset's.
    """
    config = PRESETS[preset]
    saved = read_checkpoint(checkpoint) if checkpoint else {}
    if saved and 'prompt' not in saved and prompt is None:
        print(f'{checkpoint} does not name its prompt: using the release\'s, "{RELEASE_PROMPT}"')
        prompt = RELEASE_PROMPT
    prompt = saved.get('prompt', PROMPT) if prompt is None else prompt
    clip_model, tokenizer = load_clipseg(clipseg or config.clipseg)
    model = SoundLocalizer(clip_model, load_beats(beats or config.beats),
                           prompt_ids(tokenizer, prompt),
                           audio_tokens or int(saved.get('audio_tokens', 1)), config.w, config.b)
    if saved:
        load_trained(model, saved, checkpoint)
    return model, tokenizer


def read_checkpoint(path):
    """The dict in a checkpoint file, {'audio_proj', 'masker_i', ...}.

    FileNotFoundError; ValueError where it is damaged; OSError where it cannot be read now.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise FileNotFoundError                         # a pipe's writer would be waited for
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'no checkpoint at {path}: train one with train.py or correct '
                                '--checkpoint') from None
    except OSError as error:
        raise OSError(f'cannot read {path} ({error.strerror}): it may be intact, so make it '
                      'readable and try again') from None
    try:
        saved = torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)
        values = [torch.as_tensor(v) for part in ('audio_proj', 'masker_i') for v in saved[part].values()]
        named = (saved.get('preset', 'paper') in PRESETS and isinstance(saved.get('prompt', ''), str)
                 and saved.get('audio_tokens', 1) in (1, 2, 4, 8))
        finite = all(value.isfinite().all() for value in values)
    except Exception:           # a truncated zip, a foreign pickle, another program's file
        named = False
    if not named:
        raise ValueError(f"{path} is not a checkpoint of this method: it must hold 'audio_proj' and 'masker_i', "
                         'as train.py and the authors write them')
    if not finite:
        raise ValueError(f'{path} holds weights that are not finite: take an earlier checkpoint')
    return saved


def load_trained(model, saved, path):
    """Copy audio_proj and masker_i of a checkpoint into the model. ValueError when the sizes differ."""
    for name in ('audio_proj', 'masker_i'):
        part, state = getattr(model, name), {k: torch.as_tensor(v) for k, v in saved[name].items()}
        for key, value in part.state_dict().items():
            if key in state and state[key].numel() == value.numel() == 1:
                state[key] = state[key].reshape(value.shape)        # a scalar is a scalar, with a dimension or without
            elif key not in state or state[key].shape != value.shape:
                found = tuple(state[key].shape) if key in state else 'missing'
                raise ValueError(f'{path} does not fit this model: {name}.{key} is {found}, expected '
                                 f'{tuple(value.shape)}; give the --preset, --clipseg and --beats it was trained with')
        if extra := state.keys() - part.state_dict().keys():
            raise ValueError(f'{path} does not fit this model: it also holds {name}.{min(extra)}')
        part.load_state_dict(state)


def trained_state(model):
    """What a checkpoint holds of the model, under the released names: {'audio_proj': ..., 'masker_i': ...}."""
    return {'audio_proj': model.audio_proj.state_dict(), 'masker_i': model.masker_i.state_dict()}
