"""ImageBind (Girdhar et al., CVPR 2023), reimplemented: its audio and image towers (section 4.1).

    mel (N, 1, 128, 204) -> 12 x 19 patches (N, 228, 768) -> 12 layers -> class token -> (N, D)
    image (B, 3, 224, 224) -> 16 x 16 patches (B, 256, 1280) -> 32 layers -> class token -> (B, D)

The baseline of the same name: the region proposal whose image embedding is most similar to the
sound's is the localization result. The depth, thermal, IMU and text towers are not needed and not
here.

    model = ImageBind.from_checkpoint('weights/imagebind_huge.pth')
    audio = model.embed_audio(prepare_audio(media.read_audio('a.wav', 10.0)))           # (1, 1024)
    image = model.embed_image(encoders.prepare_images([Image.open('a.jpg')]))           # (1, 1024)

Checkpoint: imagebind_huge.pth, linked in the README of github.com/facebookresearch/ImageBind; 1.2
billion weights, 4.8 GB, of which these two towers are 2.9 GB. Its licence, CC BY-NC-SA 4.0, forbids
commercial use. The code here was written from a description of the architecture.
"""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

from encoders import Weights

SAMPLE_RATE = 16_000            # Hz
CLIPS = 3                       # parts of a sound, whose embeddings are averaged (released code)
CLIP_SECONDS = 2
FRAME = 400                     # samples, 25 ms (Kaldi)
HOP = 160                       # samples, 10 ms (Kaldi)
FFT = 512                       # samples, the next power of two after FRAME (Kaldi)
MELS = 128                      # the height of the audio tower's picture
FRAMES = 204                    # its width
MEL_MEAN = -4.268               # of the log mel over AudioSet (released code)
MEL_STD = 9.138
AUDIO_PATCH = 16
AUDIO_STRIDE = 10               # patches overlap: 12 x 19 of them
VIDEO_FRAMES = 2                # an image is a video of two equal frames
LARGEST_SCALE = 100             # limit of Scale, whose trained value is 20
PARTS = 'preprocessors', 'trunks', 'heads', 'postprocessors'
USED = tuple(f'modality_{part}.{tower}.' for part in PARTS for tower in ('audio', 'vision'))
REMEDY = ('download imagebind_huge.pth, which the README of '
          'https://github.com/facebookresearch/ImageBind links')


# ---- Preparation ---------------------------------------------------------------------------------

def prepare_audio(wav):
    """wav: (samples,), 16 kHz, -1..1 -> (1, 3, 1, 128, 204), the log mels of three clips of 2 s.

    Paper [70]: silent on which parts of 10 s ImageBind gets. As in its released code the clips
    are 0-2, 4-6 and 8-10 s, and their embeddings are averaged. In less than 6 s they overlap.
    wav (channels, samples): the first channel is used, less the mean over all channels.
    """
    wav = torch.atleast_2d(wav).clone()                                 # (channels, samples)
    spare = Fraction(max(wav.shape[1] / SAMPLE_RATE - CLIP_SECONDS, 0))
    mels = []
    for number in range(CLIPS):
        start = spare * number / (CLIPS - 1)                # seconds, a fraction as in the release
        first, last = (int(second * SAMPLE_RATE) for second in (start, start + CLIP_SECONDS))
        clip = wav[:, first:last]
        clip -= clip.mean()     # in place: it changes a later clip that overlaps (released code)
        mels.append(log_mel(clip[0]))
    return torch.stack(mels)[None, :, None]                             # (1, 3, 1, 128, 204)


def log_mel(clip):
    """clip: (samples,) -> (128, 204), zero-padded to 204 frames, then standardised."""
    if len(clip) < FRAME:
        raise ValueError(f'a sound of {len(clip)} samples is shorter than one frame of 25 ms '
                         f'({FRAME} samples)')
    x = clip.unfold(0, FRAME, HOP)                                      # (T, 400), T = 198 in 2 s
    x = x - x.mean(1, keepdim=True)
    x = x - 0.97 * F.pad(x, (1, 0), mode='replicate')[:, :-1]           # pre-emphasis, per frame
    window = torch.hann_window(FRAME, periodic=False, dtype=x.dtype, device=x.device)
    power = torch.fft.rfft(x * window, n=FFT).abs() ** 2                # (T, 257)
    mel = power @ mel_triangles().to(x)                                 # (T, 128)
    mel = mel.clamp(min=torch.finfo(torch.float32).eps).log()
    mel = F.pad(mel.t(), (0, FRAMES - len(mel)))                        # (128, 204)
    return (mel - MEL_MEAN) / MEL_STD


def mel_triangles():
    """Kaldi's filters, whose corners are equally spaced in mel from 20 Hz to 8 kHz. -> (257, 128)

    In float64, so that the result does not depend on torch's default precision.
    """
    hertz = torch.arange(FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT
    mel = 1127 * torch.log(1 + hertz / 700)[:, None]                    # (257, 1)
    first, last = (1127 * math.log(1 + corner / 700) for corner in (20, SAMPLE_RATE / 2))
    corners = torch.linspace(first, last, MELS + 2, dtype=torch.float64)
    left = corners[:-2]                                                 # (128,)
    centre = corners[1:-1]
    right = corners[2:]
    rising = (mel - left) / (centre - left)                             # (257, 128)
    falling = (right - mel) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0)


# ---- From patches to tokens ----------------------------------------------------------------------

class Tokens(nn.Module):
    """Embedded patches behind a class token, with learned positions. -> (N, 1 + count, width)

    stem: its parts, {'proj': convolution} and for audio {'norm_layer': LayerNorm}.
    """
    def __init__(self, stem, width, count):
        super().__init__()
        self.rgbt_stem = nn.ModuleDict(stem)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = nn.Parameter(torch.randn(1, 1 + count, width) * 0.02)
        self.pos_embedding_helper = nn.ParameterDict({'pos_embed': positions})

    def forward(self, x):
        x = self.rgbt_stem['proj'](x).flatten(2).transpose(1, 2)        # (N, count, width)
        if 'norm_layer' in self.rgbt_stem:
            x = self.rgbt_stem['norm_layer'](x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)    # (N, 1 + count, width)
        return x + self.pos_embedding_helper['pos_embed']


def audio_tokens(width):
    """(N, 1, 128, 204) -> (N, 229, width)"""
    rows, columns = ((side - AUDIO_PATCH) // AUDIO_STRIDE + 1 for side in (MELS, FRAMES))
    proj = nn.Conv2d(1, width, AUDIO_PATCH, AUDIO_STRIDE, bias=False)
    stem = {'proj': proj, 'norm_layer': nn.LayerNorm(width)}            # eps 1e-5 here alone
    return Tokens(stem, width, rows * columns)


def image_tokens(width, image_size, patch):
    """A video of two frames, (B, 3, 2, H, W) -> (B, 1 + hw, width)"""
    kernel = VIDEO_FRAMES, patch, patch
    convolution = nn.Conv3d(3, width, kernel, kernel, bias=False)
    proj = nn.Sequential(nn.Identity(), convolution)        # it is entry 1 of the released names
    return Tokens({'proj': proj}, width, (image_size // patch) ** 2)


# ---- Transformers --------------------------------------------------------------------------------

class Layer(nn.Module):
    """Pre-norm layer with exact GELU. extra_key: attention also sees one learned key and value."""
    def __init__(self, width, heads, extra_key):
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.MultiheadAttention(width, heads, add_bias_kv=extra_key, batch_first=True)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({'fc1': nn.Linear(width, 4 * width),
                                  'fc2': nn.Linear(4 * width, width)})

    def forward(self, x):                                               # (N, tokens, width)
        y = self.norm_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp['fc2'](F.gelu(self.mlp['fc1'](self.norm_2(x))))


class Trunk(nn.Module):
    """vision: with a LayerNorm before the layers, without the extra key."""
    def __init__(self, width, layers, heads, vision):
        super().__init__()
        norm = nn.LayerNorm(width, eps=1e-6)
        self.pre_transformer_layer = nn.Sequential(norm) if vision else nn.Identity()
        self.blocks = nn.ModuleList(Layer(width, heads, not vision) for _ in range(layers))

    def forward(self, x):                                               # (N, tokens, width)
        x = self.pre_transformer_layer(x)
        for layer in self.blocks:
            x = layer(x)
        return x


def head(width, dim):
    """A class token to the shared space: (N, width) -> (N, D)."""
    norm = nn.LayerNorm(width, eps=1e-6)
    linear = nn.Linear(width, dim, bias=False)
    return nn.Sequential(norm, nn.Identity(), linear)       # entries 0 and 2 of the released names


class Scale(nn.Module):
    """The trained temperature, which the release keeps in the length of audio embeddings."""
    def __init__(self):
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(20)))

    def forward(self, x):
        return x * self.log_logit_scale.exp().clamp(max=LARGEST_SCALE)


# ---- ImageBind -----------------------------------------------------------------------------------

class ImageBind(nn.Module):
    """Random weights at any size, by default that of imagebind_huge; from_checkpoint gives its own.

    dim: D. width, layers, heads: of each tower's transformer. image_size, patch: in pixels.
    """
    def __init__(self, dim=1024, audio_width=768, audio_layers=12, audio_heads=12,
                 vision_width=1280, vision_layers=32, vision_heads=16, image_size=224, patch=14):
        super().__init__()
        self.image_size = image_size
        self.modality_preprocessors = nn.ModuleDict({
            'audio': audio_tokens(audio_width),
            'vision': image_tokens(vision_width, image_size, patch)})
        self.modality_trunks = nn.ModuleDict({
            'audio': Trunk(audio_width, audio_layers, audio_heads, vision=False),
            'vision': Trunk(vision_width, vision_layers, vision_heads, vision=True)})
        self.modality_heads = nn.ModuleDict({
            'audio': head(audio_width, dim), 'vision': head(vision_width, dim)})
        self.modality_postprocessors = nn.ModuleDict({
            'audio': nn.Sequential(nn.Identity(), Scale())})

    @classmethod
    def from_checkpoint(cls, file, audio_heads=12, vision_heads=16):
        """file: a path, or the dict that it holds. OSError, ValueError: sentence with a remedy.

        Heads cannot be read from the shapes.
        """
        weights = Weights(file, USED, 'ImageBind', REMEDY)
        tokens = 'modality_preprocessors.vision.'
        dim, audio_width = weights.shape('modality_heads.audio.2.weight', 2)
        vision_width = weights.shape('modality_heads.vision.2.weight', 2)[1]
        positions = weights.shape(f'{tokens}pos_embedding_helper.pos_embed', 3)[1]
        patch = weights.shape(f'{tokens}rgbt_stem.proj.1.weight', 5)[-1]
        for width, heads in ((audio_width, audio_heads), (vision_width, vision_heads)):
            if width % heads:
                raise weights.error(f'a width of {width} does not divide into {heads} heads')
        model = cls(dim=dim, audio_width=audio_width, audio_heads=audio_heads,
                    audio_layers=weights.count('modality_trunks.audio.blocks'),
                    vision_width=vision_width, vision_heads=vision_heads,
                    vision_layers=weights.count('modality_trunks.vision.blocks'),
                    image_size=patch * math.isqrt(positions - 1), patch=patch)
        return weights.load_into(model)

    def embed_audio(self, sounds):
        """sounds: (N, clips, 1, 128, 204) -> (N, D), of a length a little under 20."""
        clips = self.embed_clips(sounds.flatten(0, 1))                  # (N clips, D)
        return clips.unflatten(0, sounds.shape[:2]).mean(1)             # (N, D)

    def embed_clips(self, clips):
        """clips: (N, 1, 128, 204) -> (N, D), of length 20 (the temperature, see Scale)."""
        return self.modality_postprocessors['audio'](self.encode(clips, 'audio'))

    def embed_image(self, images):
        """images: (B, 3, H, W) -> (B, D), of length 1."""
        video = images[:, :, None].expand(-1, -1, VIDEO_FRAMES, -1, -1)     # (B, 3, 2, H, W)
        return self.encode(video, 'vision')

    def encode(self, x, modality):
        """x: what the tower of this modality, 'audio' or 'vision', reads -> (N, D), of length 1."""
        x = self.modality_preprocessors[modality](x)                    # (N, 1 + patches, width)
        x = self.modality_trunks[modality](x)
        x = self.modality_heads[modality](x[:, 0])                      # (N, D), the class token's
        return F.normalize(x, dim=-1)
