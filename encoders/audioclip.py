"""AudioCLIP (Guzhov et al., ICASSP 2022), reimplemented: audio and image encoder (section 4.1).

    wav (N, channels, samples) -> FBSP spectrogram in dB (N, 3, 341, T) -> ESResNeXt-50 (N, D)
    image (B, 3, 224, 224) -> CLIP's RN50 (B, D)

The baseline of the same name: the region proposal whose image embedding is most similar to the
sound's is the localization result. The text encoder is not needed and not here.

    model = AudioCLIP.from_checkpoint('weights/AudioCLIP-Full-Training.pt')
    audio = model.embed_audio(prepare_audio(media.read_audio('a.wav', 10.0)))           # (1, 1024)
    image = model.embed_image(encoders.prepare_images([Image.open('a.jpg')]))           # (1, 1024)

Checkpoint: AudioCLIP-Full-Training.pt, a release of github.com/AndreyGuzhov/AudioCLIP; 134 million
weights, 537 MB, of which 70 million are used; MIT licence. Paper [68]: silent on which of the two
files of that release. In this one, our default, all three encoders were trained together; in
AudioCLIP-Partial-Training.pt, which loads too, the image and text encoders are still CLIP's.

Three mistakes give embeddings that look right and are not: amplitudes in -1..1 (the network expects
16-bit ones), a sampling rate other than 44.1 kHz, and an FFT in place of the learned filterbank.
Shapes beyond encoders/__init__.py: C channels of sound.
"""

import math

import torch
import torch.nn.functional as F
import torchaudio
from torch import nn

from encoders import Weights

SAMPLE_RATE = 44_100            # Hz
SAMPLES = 5 * SAMPLE_RATE       # 5 s of each sound (the release's evaluation)
FULL_SCALE = 32_768             # of 16-bit samples
WINDOW = 1654                   # samples (released checkpoint)
HOP = 561                       # samples (released checkpoint)
BLACKMAN_HARRIS = 0.35875, 0.48829, 0.14128, 0.01168        # the terms of the window
TAPS = 2048                     # of the filters; the window stands in the middle
FILTERS = TAPS // 2 + 1
BANDS = 3                       # parts of the spectrogram, given to ResNet as red, green, blue
LEAST_POWER = 1e-18             # -180 dB, where the power is 0
USED = 'audio.', 'visual.'
REMEDY = ('download AudioCLIP-Full-Training.pt from the releases of '
          'https://github.com/AndreyGuzhov/AudioCLIP')


# ---- Preparation ---------------------------------------------------------------------------------

def prepare_audio(wav, rate=16_000):
    """wav: (samples,), -1..1 -> (1, 1, 220500): 5 s at 44.1 kHz in -32768..32767.

    rate: of wav, in Hz. Paper [69]: silent. AudioCLIP was trained on 44.1 kHz. Here it gets the
    sounds of the paper's model, 16 kHz resampled to 44.1, so nothing above 8 kHz.
    """
    wav = torchaudio.functional.resample(wav, rate, SAMPLE_RATE) * FULL_SCALE
    lacking = SAMPLES - len(wav)
    if lacking > 0:         # repeat the first and the last sample
        before = round(lacking / 2)
        wav = F.pad(wav[None], (before, lacking - before), mode='replicate')[0]
    return middle(wav)[None, None]                                      # (1, 1, 220500)


def middle(wav):
    """The middle 5 s; if these are much quieter than the whole, the first or the last (release)."""
    spare = len(wav) - SAMPLES
    starts = (round(spare / 2), 0, spare)
    crops = [wav[start:start + SAMPLES] for start in starts]
    for crop in crops:
        if crop.std() >= wav.std() / 2:
            return crop
    return crops[-1]


# ---- The spectrogram -----------------------------------------------------------------------------

class FilterBank(nn.Module):
    """Frequency B-spline wavelets: for each filter an order m, a bandwidth fb, a centre fc.

    kernel(t) = sqrt(fb) sinc(fb t / m)^m exp(-i fc t) / sqrt(2048), sinc(u) = sin(u) / u.
    Before training m = 0, fb = 1, fc = 0..1024: a Fourier transform with a period of 2047 taps.
    An FFT, whose period is 2048, moves the embedding by 5%. To train a small AudioCLIP, freeze
    fbsp: at m = 0 the gradient of m is far larger than all others.
    """
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(FILTERS))
        self.fb = nn.Parameter(torch.ones(FILTERS))
        self.fc = nn.Parameter(torch.arange(FILTERS).float())

    def kernel(self):
        """-> (1025, 2048), complex, in the precision of the parameters."""
        m, fb, fc = (value[:, None] for value in (self.m, self.fb, self.fc))    # (1025, 1) each
        t = torch.linspace(-1, 1, TAPS, dtype=m.dtype, device=m.device) * math.pi + 1e-8
        u = fb * t / (m + 1e-8)
        sinc = torch.where(u == 0, 1, u.sin() / u)                      # (1025, 2048)
        size = fb.sqrt() * sinc.abs() ** m / math.sqrt(TAPS)
        phase = m * math.pi * (sinc < 0) - fc * t       # (-x)^m = x^m exp(i pi m)
        return torch.polar(size, phase)

    def forward(self, frames):
        """frames: (N, T, 1654), windowed -> power (N, 1023, T). The last two filters are unused."""
        used = FILTERS // BANDS * BANDS
        start = (TAPS - WINDOW) // 2
        kernel = self.kernel()[:used, start:start + WINDOW]             # (1023, 1654)
        power = (frames @ kernel.real.t()) ** 2 + (frames @ kernel.imag.t()) ** 2
        return power.transpose(1, 2)


def frames_of(wav):
    """wav: (N, samples) -> (N, T, 1654), zero-padded on both sides to fill the last frame."""
    count = 1 + math.ceil(max(wav.shape[1] - WINDOW, 0) / HOP)
    lacking = (count - 1) * HOP + WINDOW - wav.shape[1]
    wav = F.pad(wav, (lacking // 2, lacking - lacking // 2))
    return wav.unfold(1, WINDOW, HOP)


# ---- Residual networks, of both branches ---------------------------------------------------------

class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut.

    pooled: a stride is an average pool, as in CLIP, and not a step of the 3 x 3 convolution.
    """
    def __init__(self, width, inner, out, stride, groups=1, pooled=False):
        super().__init__()
        step = 1 if pooled else stride
        self.pool = nn.AvgPool2d(stride) if pooled else nn.Identity()
        self.conv1 = nn.Conv2d(width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, step, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or width != out:
            shortcut = nn.Conv2d(width, out, 1, step, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x):                                               # (N, width, h, w)
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        y = self.bn1(self.conv1(x)).relu()                              # (N, inner, h, w)
        y = self.pool(self.bn2(self.conv2(y)).relu())                   # (N, inner, h', w')
        return (self.bn3(self.conv3(y)) + shortcut).relu()              # (N, out, h', w')


def stages(stem, inner, out, blocks, **kind):
    """The four stages of a ResNet, each twice as wide as the one before it. blocks: of each."""
    built = []
    width = stem
    for number, count in enumerate(blocks):
        sizes = inner * 2 ** number, out * 2 ** number
        first = Bottleneck(width, *sizes, stride=1 if number == 0 else 2, **kind)
        width = sizes[1]
        others = [Bottleneck(width, *sizes, stride=1, **kind) for _ in range(count - 1)]
        built.append(nn.Sequential(first, *others))
    return built


# ---- The audio network ---------------------------------------------------------------------------

class Gate(nn.Module):
    """Attention of a stage: a sigmoid of the stage's input, pooled to the size of its output."""
    def __init__(self, width, out, kernel):
        super().__init__()
        padding = kernel[0] // 2, kernel[1] // 2
        self.conv_depth = nn.Conv2d(width, width, kernel, padding=padding, groups=width)
        self.conv_point = nn.Conv2d(width, out, 1)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x, size):
        """x: (N, width, h, w) -> (N, out, *size), in 0..1."""
        x = F.adaptive_max_pool2d(x, size)                              # (N, width, h', w')
        return self.bn(self.conv_point(self.conv_depth(x))).sigmoid()


class ESResNeXt(nn.Module):
    """ResNeXt-50 (32 x 4d) with gates, on spectrograms. (N, C, samples) -> (N, D)."""
    def __init__(self, dim, stem, inner, groups, blocks):
        super().__init__()
        window = torch.signal.windows.general_cosine(WINDOW, a=BLACKMAN_HARRIS, sym=False,
                                                     dtype=torch.float64)
        self.register_buffer('window', window.float())
        self.fbsp = FilterBank()
        self.conv1 = nn.Conv2d(BANDS, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        out = 4 * stem
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(stem, inner, out, blocks,
                                                                    groups=groups)
        self.att1 = Gate(stem, out, (3, 1))             # across frequency
        self.att2 = Gate(out, 2 * out, (1, 5))          # across time
        self.att3 = Gate(2 * out, 4 * out, (3, 1))
        self.att4 = Gate(4 * out, 8 * out, (1, 5))
        self.att5 = Gate(8 * out, 8 * out, (3, 5))      # of the pooled vector
        self.fc = nn.Linear(8 * out, dim)

    def spectrogram(self, wav):
        """wav: (N, samples), 16-bit amplitudes -> (N, 3, 341, T) in dB, the lowest band first."""
        wav = (wav + FULL_SCALE) * (2 / 65_535) - 1     # to -1..1, with an offset of 1.5e-5
        power = self.fbsp(frames_of(wav) * self.window)                 # (N, 1023, T)
        power = torch.where(power > 0, power, LEAST_POWER)
        return 10 * power.log10().unflatten(1, (BANDS, -1))             # (N, 3, 341, T)

    def pooled(self, x):
        """x: (N, 3, 341, T) -> (N, 2048)."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu())                # (N, 64, 86, T / 4)
        for stage, gate in ((self.layer1, self.att1), (self.layer2, self.att2),
                            (self.layer3, self.att3), (self.layer4, self.att4)):
            y = stage(x)
            x = y * gate(x, y.shape[2:])
        return (x.mean((2, 3), keepdim=True) * self.att5(x, (1, 1))).flatten(1)

    def forward(self, wav):                                             # (N, C, samples)
        x = self.pooled(self.spectrogram(wav.flatten(0, 1)))            # (N C, 2048)
        x = x.unflatten(0, wav.shape[:2]).sum(1)                        # (N, 2048)
        return self.fc(x)                                               # (N, D)


# ---- The image network ---------------------------------------------------------------------------

class AttentionPool(nn.Module):
    """Attention of the mean cell to all cells. (B, width, h, w) -> (B, D)."""
    def __init__(self, width, heads, cells, dim):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1 + cells, width) / math.sqrt(width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, dim)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)                                # (B, hw, width)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)                  # (B, 1 + hw, width)
        x = x + self.positional_embedding
        q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2)     # (B, heads, ..., d) each
                   for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)))
        x = F.scaled_dot_product_attention(q, k, v)                     # (B, heads, 1, d)
        return self.c_proj(x.flatten(1))


class CLIPResNet(nn.Module):
    """CLIP's RN50: a stem of three convolutions, pooled strides, attention at the end."""
    def __init__(self, dim, stem, blocks, heads, image_size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem // 2)
        self.conv2 = nn.Conv2d(stem // 2, stem // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem // 2)
        self.conv3 = nn.Conv2d(stem // 2, stem, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(stem)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(stem, stem, 4 * stem, blocks,
                                                                    pooled=True)
        self.attnpool = AttentionPool(32 * stem, heads, (image_size // 32) ** 2, dim)

    def forward(self, x):                                               # (B, 3, H, W)
        x = self.bn1(self.conv1(x)).relu()                              # (B, 32, H / 2, W / 2)
        x = self.bn2(self.conv2(x)).relu()
        x = self.avgpool(self.bn3(self.conv3(x)).relu())                # (B, 64, H / 4, W / 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))       # (B, 2048, H / 32, W / 32)
        return self.attnpool(x)


# ---- AudioCLIP -----------------------------------------------------------------------------------

class AudioCLIP(nn.Module):
    """Random weights at any size, by default the released one; from_checkpoint gives the trained.

    dim: D. stem: width before the first stage, whose output is 4 x stem wide. inner, groups: of the
    audio network's 3 x 3 convolutions in the first stage. blocks: of each stage.
    """
    def __init__(self, dim=1024, stem=64, inner=128, groups=32, blocks=(3, 4, 6, 3),
                 image_stem=64, image_blocks=(3, 4, 6, 3), image_heads=32, image_size=224):
        super().__init__()
        self.image_size = image_size
        self.audio = ESResNeXt(dim, stem, inner, groups, blocks)
        self.visual = CLIPResNet(dim, image_stem, image_blocks, image_heads, image_size)

    @classmethod
    def from_checkpoint(cls, file, image_heads=32):
        """file: a path, or the dict that it holds. OSError, ValueError: sentence with a remedy.

        image_heads cannot be read from the shapes.
        """
        weights = Weights(file, USED, 'AudioCLIP', REMEDY)
        inner, per_group = weights.shape('audio.layer1.0.conv2.weight', 4)[:2]
        positions, width = weights.shape('visual.attnpool.positional_embedding', 2)
        if width % image_heads:
            raise weights.error(f'a width of {width} does not divide into {image_heads} heads')
        model = cls(dim=weights.shape('audio.fc.weight', 2)[0],
                    stem=weights.shape('audio.conv1.weight', 4)[0],
                    inner=inner, groups=inner // per_group,
                    blocks=[weights.count(f'audio.layer{k}') for k in (1, 2, 3, 4)],
                    image_stem=weights.shape('visual.conv3.weight', 4)[0],
                    image_blocks=[weights.count(f'visual.layer{k}') for k in (1, 2, 3, 4)],
                    image_heads=image_heads, image_size=32 * math.isqrt(positions - 1))
        return weights.load_into(model)

    def embed_audio(self, sounds):
        """sounds: (N, C, samples), 44.1 kHz, in -32768..32767 -> (N, D), not normalised."""
        return self.audio(sounds)

    def embed_image(self, images):
        """images: (B, 3, H, W) -> (B, D), not normalised."""
        return self.visual(images)
