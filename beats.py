"""The frozen audio encoder E_A (Section 3.1): BEATs (Chen et al., ICML 2023), reimplemented.

    wav (B, samples) -> fbank (B, frames, 128) -> 16 x 16 patches, tokens (B, T, 512)
                     -> 12 transformer layers (B, T, D) -> layers 4, 8, 12 joined (B, T, 3 D)

    E_A = load_beats('BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt')     # unilm/beats repository
    with torch.no_grad():
        features = E_A(wav)                             # wav: (B, samples), 16 kHz, -1 .. 1

Unlike a textbook transformer: a convolution encodes positions; each layer adds to its attention
logits a bias by relative position, gated by the query; residuals are scaled up (DeepNorm).
Weights have the names of the official files.
Shapes: B clips, T tokens, of 10 s 62 x 8 = 496; D width, 768; h heads, d = D / h.
"""

import dataclasses
import functools
import math
import os
import zipfile

import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.compliance.kaldi import get_mel_banks

SAMPLE_RATE = 16000         # Hz; BEATs' own (released code)
FBANK_MEAN, FBANK_STD = 15.41663, 6.55582       # log filterbank over AudioSet (released code)
N_MELS = 128                # mel bins (released code)
FRAME, HOP, FFT = 400, 160, 512     # samples: 25 ms, 10 ms, and the next power of two (Kaldi)

HOW_TO_GET = ('download BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt from the unilm/beats '
              'repository')


# ---- filterbank -----------------------------------------------------------------------------

@functools.cache
@torch.inference_mode(False)        # cached tensors must also work where gradients are computed
def kaldi_window_and_mels(device):
    """Kaldi's Povey window (400,), and the mel triangles from 20 Hz to 8 kHz (257, 128)."""
    # high_freq 0 is half the sample rate; a warp factor of 1 switches vtln_low and vtln_high off
    mels, _ = get_mel_banks(N_MELS, FFT, SAMPLE_RATE, low_freq=20.0, high_freq=0.0,
                            vtln_low=100.0, vtln_high=-500.0, vtln_warp_factor=1.0)
    mels = F.pad(mels, (0, 1)).T        # a row of zeros: Kaldi leaves out the Nyquist bin
    return torch.hann_window(FRAME, periodic=False).pow(0.85).to(device), mels.to(device)


def fbank(wav):
    """wav: (B, samples), floats in -1 .. 1 at 16 kHz -> log mel energies (B, frames, 128).

    Equals torchaudio.compliance.kaldi.fbank of each clip, normalised: 998 frames of 10 s.
    """
    if wav.ndim != 2 or not wav.is_floating_point():
        given = f'{wav.dtype} {tuple(wav.shape)}'
        raise ValueError(f'fbank needs (B, samples) floats in -1 .. 1, not {given}.')
    if wav.shape[1] < FRAME:
        raise ValueError(f'A wav of {wav.shape[1]} samples is shorter than one 25 ms frame '
                         f'({FRAME} samples).')
    with torch.autocast(wav.device.type, enabled=False):        # energies need float32
        x = wav.float() * 2 ** 15                               # Kaldi's scale: 16-bit samples
        x = x.unfold(1, FRAME, HOP)                             # (B, frames, 400), complete ones
        x = x - x.mean(-1, keepdim=True)
        x = x - 0.97 * F.pad(x, (1, 0), mode='replicate')[..., :-1]     # pre-emphasis, per frame
        window, mels = kaldi_window_and_mels(x.device)
        power = torch.fft.rfft(x * window, n=FFT).abs().square_()       # (B, frames, 257)
        x = (power @ mels).clamp_(min=torch.finfo(torch.float32).eps).log_()    # (B, frames, 128)
        return x.sub_(FBANK_MEAN).div_(2 * FBANK_STD)   # two deviations, not one (released code)


# ---- configuration --------------------------------------------------------------------------

# Entries of a cfg of which only this value is supported. gru_rel_pos: the gate on the bias
FIXED = {'relative_position_embedding': True, 'gru_rel_pos': True, 'deep_norm': True,
         'layer_norm_first': False, 'activation_fn': 'gelu'}


@dataclasses.dataclass
class BEATsConfig:
    """An official checkpoint's 'cfg', without dropout, as E_A is frozen. Defaults: the real one."""
    encoder_layers: int = 12
    encoder_embed_dim: int = 768            # D
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    embed_dim: int = 512                    # width of a patch, before the linear layer to D
    input_patch_size: int = 16              # frames x mel bins
    conv_bias: bool = False                 # of the patch convolution
    conv_pos: int = 128                     # kernel of the position convolution, in tokens
    conv_pos_groups: int = 16
    num_buckets: int = 320                  # of relative positions, both directions together
    max_distance: int = 800                 # tokens; farther apart shares the last bucket
    finetuned_model: bool = False           # there is a predictor of AudioSet classes on top
    predictor_class: int = 527

    def __post_init__(self):
        D = self.encoder_embed_dim
        if D % self.encoder_attention_heads or D % self.conv_pos_groups:
            raise ValueError(f'encoder_embed_dim={D} must be a multiple of encoder_attention_heads '
                             'and of conv_pos_groups.')
        if self.max_distance <= self.num_buckets // 4:      # relative_bucket takes a logarithm
            raise ValueError(f'max_distance={self.max_distance} is too short.')
        feature_layers(self.encoder_layers)

    @classmethod
    def from_cfg(cls, cfg):
        """cfg: a checkpoint's dict; entries without a field are ignored."""
        for name, only in FIXED.items():
            if cfg.get(name, only) != only:
                raise ValueError(f'{name}={cfg[name]!r} is not supported here, only {only!r}.')
        return cls(**{f.name: cfg[f.name] for f in dataclasses.fields(cls) if f.name in cfg})


def feature_layers(n):
    """Which of n layers (counted from 1) make the feature: the ends of the three thirds.

    Paper [6]: silent. Layers 4, 8 and 12 are the released code's; the rule for other n is ours.
    """
    if n < 3:
        raise ValueError(f'The feature joins three layers, so encoder_layers={n} is too few.')
    return math.ceil(n / 3), math.ceil(2 * n / 3), n


# ---- transformer ----------------------------------------------------------------------------

class PositionConv(nn.Module):
    """Grouped convolution over time with weight norm: weight = g v / |v|, one norm per kernel tap.

    torch's own weight_norm with the official names, weight_g and weight_v, is deprecated.
    """
    def __init__(self, D, kernel, groups):
        super().__init__()
        self.groups = groups
        self.bias = nn.Parameter(torch.zeros(D))
        v = torch.randn(D, D // groups, kernel) * math.sqrt(4 / (kernel * D))
        self.weight_v = nn.Parameter(v)
        self.weight_g = nn.Parameter(v.norm(dim=(0, 1), keepdim=True))      # (1, 1, kernel)

    def forward(self, x):                                                   # (B, D, T)
        kernel = self.weight_v.shape[2]
        # In float32 under autocast too: on processors with AMX, oneDNN's grouped bf16 convolution
        # with an even kernel has a relative error of 1 at widths below 256 (torch 2.11 to 2.14).
        exact = torch.promote_types(x.dtype, torch.float32)
        device = 'cpu' if x.is_meta else x.device.type      # autocast knows no "meta" tensors
        with torch.autocast(device, enabled=False):
            v, g, bias = (p.to(exact) for p in (self.weight_v, self.weight_g, self.bias))
            weight = g * v / v.norm(dim=(0, 1), keepdim=True)
            y = F.conv1d(x.to(exact), weight, bias, padding=kernel // 2, groups=self.groups)
        y = y.to(x.dtype)
        return y[..., :-1] if kernel % 2 == 0 else y        # of an even kernel's T + 1, the first T


def relative_bucket(offset, num_buckets=320, max_distance=800):
    """offset = key position - query position (integers, any shape) -> bucket, 0 .. num_buckets - 1.

    As in T5: the lower half of the buckets is for keys up to the query, the upper half for later
    keys. In each half, the first half counts single tokens; the rest widens logarithmically.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offset.abs()
    far = torch.log(distance.clamp(min=exact).float() / exact)
    far = far / math.log(max_distance / exact) * (half - exact)
    far = (exact + far.long()).clamp(max=half - 1)
    return half * (offset > 0) + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """Self-attention with gated relative position bias (grep). table: the biases of all layers."""
    def __init__(self, cfg, table):
        super().__init__()
        D = cfg.encoder_embed_dim
        self.heads = cfg.encoder_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(D, D) for _ in range(4))
        self.grep_linear = nn.Linear(D // self.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))
        self.relative_attention_bias = table

    def forward(self, x, bias):                                             # (B, T, D), (h, T, T)
        B, T, D = x.shape
        q, k, v = (linear(x).view(B, T, self.heads, -1).transpose(1, 2)     # (B, h, T, d) each
                   for linear in (self.q_proj, self.k_proj, self.v_proj))
        # A query's gate: a, b = sigmoid of the sums of four numbers each; heads share grep_linear.
        groups = self.grep_linear(q).view(B, self.heads, T, 2, 4)
        a, b = groups.sum(-1).sigmoid().chunk(2, dim=-1)                    # (B, h, T, 1) each
        bias = (a * (b * self.grep_a - 1) + 2) * bias                       # (B, h, T, T)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.out_proj(x.transpose(1, 2).reshape(B, T, D))            # (B, T, D)


class Layer(nn.Module):
    """Post-norm layer with DeepNorm: both residuals are multiplied by (2 N)^(1/4), N layers."""
    def __init__(self, cfg, table):
        super().__init__()
        D = cfg.encoder_embed_dim
        self.alpha = (2 * cfg.encoder_layers) ** 0.25
        self.self_attn = Attention(cfg, table)
        self.self_attn_layer_norm = nn.LayerNorm(D)
        self.fc1 = nn.Linear(D, cfg.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(cfg.encoder_ffn_embed_dim, D)
        self.final_layer_norm = nn.LayerNorm(D)

    def forward(self, x, bias):                                             # (B, T, D)
        x = self.self_attn_layer_norm(x * self.alpha + self.self_attn(x, bias))
        y = self.fc2(F.gelu(self.fc1(x)))                                   # exact GELU, not tanh
        return self.final_layer_norm(x * self.alpha + y)


class Encoder(nn.Module):
    """Position convolution and layers; returns the outputs of the layers in `keep`, joined."""
    def __init__(self, cfg):
        super().__init__()
        D = cfg.encoder_embed_dim
        N = cfg.encoder_layers
        self.num_buckets = cfg.num_buckets
        self.max_distance = cfg.max_distance
        self.pos_conv = nn.Sequential(PositionConv(D, cfg.conv_pos, cfg.conv_pos_groups), nn.GELU())
        self.layer_norm = nn.LayerNorm(D)
        table = nn.Embedding(cfg.num_buckets, cfg.encoder_attention_heads)
        self.layers = nn.ModuleList(Layer(cfg, table) for _ in range(N))

        nn.init.normal_(table.weight, std=0.02)
        beta = (8 * N) ** -0.25          # DeepNorm's initialisation: residual branches start small
        for layer in self.layers:
            attn = layer.self_attn
            nn.init.normal_(attn.grep_linear.weight, std=0.02)
            small = [attn.v_proj, attn.out_proj, layer.fc1, layer.fc2]
            for linear in (attn.q_proj, attn.k_proj, *small):
                nn.init.xavier_normal_(linear.weight, beta if linear in small else 1)
                nn.init.zeros_(linear.bias)

    def position_bias(self, T, device):
        """The bias before its gate, (h, query, key): computed once, gated by each layer."""
        position = torch.arange(T, device=device)
        offset = position[None, :] - position[:, None]                      # (T, T)
        bucket = relative_bucket(offset, self.num_buckets, self.max_distance)
        return self.layers[0].self_attn.relative_attention_bias(bucket).permute(2, 0, 1)

    def forward(self, x, keep):                                             # (B, T, D)
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.layer_norm(x)
        bias = self.position_bias(x.shape[1], x.device)                     # (h, T, T)
        kept = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, bias)
            if number in keep:
                kept.append(x)
        return torch.cat(kept, dim=-1)                                      # (B, T, len(keep) D)


class BEATs(nn.Module):
    """E_A. BEATs() has random, trainable weights; load_beats gives the frozen, pre-trained one."""
    def __init__(self, cfg=None):
        super().__init__()
        self.cfg = cfg = cfg or BEATsConfig()
        p = cfg.input_patch_size
        self.patch_embedding = nn.Conv2d(1, cfg.embed_dim, p, stride=p, bias=cfg.conv_bias)
        self.layer_norm = nn.LayerNorm(cfg.embed_dim)
        D = cfg.encoder_embed_dim
        self.post_extract_proj = nn.Linear(cfg.embed_dim, D) if cfg.embed_dim != D else None
        self.encoder = Encoder(cfg)
        self.predictor = nn.Linear(D, cfg.predictor_class) if cfg.finetuned_model else None
        self.feature_layers = feature_layers(cfg.encoder_layers)
        self.feature_dim = 3 * D

    def forward(self, wav):
        """wav: (B, samples), 16 kHz, -1 .. 1 -> (B, T, 3 D)."""
        return self.features(fbank(wav))

    def features(self, x):
        """x: (B, frames, 128) of fbank -> (B, T, 3 D), T = (frames // 16) * 8, time-major."""
        p = self.cfg.input_patch_size
        if x.shape[1] < p:
            raise ValueError(f'A wav of {x.shape[1]} frames is too short for one {p} x {p} patch: '
                             f'{p} frames are {FRAME + (p - 1) * HOP} samples at 16 kHz.')
        x = x[:, None].to(self.patch_embedding.weight.dtype)
        x = self.patch_embedding(x)     # (B, 512, frames // 16, 8): up to 15 last frames are lost
        x = self.layer_norm(x.flatten(2).transpose(1, 2))                   # (B, T, 512)
        if self.post_extract_proj is not None:
            x = self.post_extract_proj(x)                                   # (B, T, D)
        return self.encoder(x, keep=self.feature_layers)                    # (B, T, 3 D)

    def last_layer(self, features):
        """features: (B, T, 3 D) -> (B, T, D); predictor(last_layer).mean(1): AudioSet logits."""
        return features[..., -self.cfg.encoder_embed_dim:]


# ---- checkpoints ----------------------------------------------------------------------------

def load_beats(path, keep_predictor=False):
    """An official checkpoint {'cfg', 'model'} -> BEATs in eval mode, frozen, float32.

    keep_predictor: keep a fine-tuned file's AudioSet predictor, model.predictor (nn.Linear).
    OSError: absent, or unreadable now. ValueError: damaged, or of another kind.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no file {path}: {HOW_TO_GET}')
    try:
        # torch.load compares no checksums: a hole of zeros would be weights. Old files have none
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise ValueError
        saved = torch.load(path, map_location='cpu', weights_only=True)
        settings = dict(saved['cfg'])
        weights = dict(saved['model'])
    except MemoryError:
        raise
    except OSError as error:                # the file may be intact
        raise OSError(f'cannot read {path} ({error.strerror}): make it readable, or '
                      f'{HOW_TO_GET}') from None
    except Exception:                       # damaged, or another program's file
        raise ValueError(f"{path} is no BEATs checkpoint (a dict of 'cfg' and 'model'): "
                         f'{HOW_TO_GET}') from None
    try:
        cfg = BEATsConfig.from_cfg(settings)
        with_predictor = bool(cfg.finetuned_model and keep_predictor)
        model = BEATs(dataclasses.replace(cfg, finetuned_model=with_predictor))
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).split('\n')[0].rstrip('.')
        raise ValueError(f'{path} needs another encoder ({reason}): {HOW_TO_GET}') from None
    if keep_predictor and not with_predictor:
        raise ValueError(f'{path} was not fine-tuned and holds no predictor: {HOW_TO_GET}')
    try:
        if not keep_predictor:
            weights = {name: weights[name] for name in weights if not name.startswith('predictor.')}
        model.load_state_dict(weights)      # copied into float32, in whatever precision they come
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[:2][-1].strip('\t .')[:200]
        raise ValueError(f'the weights in {path} do not fit its cfg ({reason}): '
                         f'{HOW_TO_GET}') from None
    lost = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if lost:
        raise ValueError(f'{path}: {lost[0]} holds values that are not numbers: {HOW_TO_GET}')
    return model.eval().requires_grad_(False)
