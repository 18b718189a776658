"""WAV2CLIP (Wu et al., ICASSP 2022), reimplemented: sounds in CLIP ViT-B/32's space (section 4.1).

    wav (N, samples) -> log power spectrogram (N, 257, T) -> ResNet-18 (N, 512) -> MLP (N, D)

Two baselines use it. CLIPSeg (w/ WAV2CLIP Text): the label whose CLIP text embedding is most
similar to the sound's is given to CLIPSeg. WAV2CLIP: the region proposal whose CLIP image embedding
is most similar is the localization result. Texts and images are embedded by CLIP ViT-B/32 itself
(D = 512; `openai/clip-vit-base-patch32` of transformers), so there is no embed_image here.

    model = WAV2CLIP.from_checkpoint('weights/Wav2CLIP.pt')
    audio = model.embed_audio(prepare_audio(media.read_audio('a.wav', 10.0)))           # (1, 512)

Checkpoint: Wav2CLIP.pt, release v0.1.0-alpha of github.com/descriptinc/lyrebird-wav2clip; 11.7
million weights, about 47 MB; MIT licence. Entries of other modules are skipped.
"""

import torch
from torch import nn

from encoders import Weights

FFT = 512                       # samples, also the length of the window (released code)
HOP = 353                       # samples: 454 frames in 10 s (released code)
USED = 'audio_encoder.', 'audio_transform.'
REMEDY = ('download Wav2CLIP.pt from the release v0.1.0-alpha of '
          'https://github.com/descriptinc/lyrebird-wav2clip')


def prepare_audio(wav):
    """wav: (samples,), 16 kHz, -1..1, of any length -> (1, samples)."""
    return wav[None]


def standardise(x):
    """x: log power spectrogram -> the same, mean 0 and standard deviation 1 over all elements."""
    return (x - x.mean()) / (x.std() + 1e-9)


class Spectrogram(nn.Module):
    """wav: (N, samples) -> ln(power + 1e-7), (N, 257, T), T = 1 + samples // 353."""
    def __init__(self):
        super().__init__()
        self.register_buffer('window', torch.hann_window(FFT))      # periodic

    def forward(self, wav):
        x = torch.stft(wav, FFT, HOP, window=self.window, return_complex=True)
        return torch.log(x.real ** 2 + x.imag ** 2 + 1e-7)              # (N, 257, T)


class Block(nn.Module):
    """ResNet's basic block: two 3 x 3 convolutions and a shortcut."""
    def __init__(self, width, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1 or width != out:
            shortcut = nn.Conv2d(width, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x):                                               # (N, width, h, w)
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x)).relu()                              # (N, out, h', w')
        return (self.bn2(self.conv2(y)) + shortcut).relu()


class ResNet(nn.Module):
    """One-channel ResNet-18 without its classifier. (N, 257, T) -> (N, widths[-1])."""
    def __init__(self, widths, blocks):
        super().__init__()
        self.spectrogram = Spectrogram()
        self.conv1 = nn.Conv2d(1, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            first = Block(before, width, stride=1 if number == 1 else 2)
            others = [Block(width, width, stride=1) for _ in range(count - 1)]
            self.add_module(f'layer{number}', nn.Sequential(first, *others))
            before = width

    def forward(self, x):
        x = self.bn1(self.conv1(x[:, None])).relu()                     # (N, 64, 129, T / 2)
        x = self.maxpool(x)                                             # (N, 64, 65, T / 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))       # (N, 512, 9, T / 32)
        return x.mean((2, 3))                                           # (N, 512)


class WAV2CLIP(nn.Module):
    """Random weights at any size; from_checkpoint gives the trained, frozen one.

    widths, blocks: of ResNet's four stages. hidden: of the MLP. dim: D, the width of the CLIP.
    """
    def __init__(self, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2), hidden=512, dim=512):
        super().__init__()
        self.audio_encoder = ResNet(widths, blocks)
        layers = [nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, dim)]
        self.audio_transform = nn.ModuleDict({'sequential': nn.Sequential(*layers)})

    @classmethod
    def from_checkpoint(cls, file):
        """file: a path, or the dict that it holds. OSError, ValueError: sentence with a remedy."""
        weights = Weights(file, USED, 'WAV2CLIP', REMEDY)
        stages = [f'audio_encoder.layer{number}' for number in (1, 2, 3, 4)]
        model = cls(widths=[weights.shape(f'{stage}.0.conv1.weight', 4)[0] for stage in stages],
                    blocks=[weights.count(stage) for stage in stages],
                    hidden=weights.shape('audio_transform.sequential.0.weight', 2)[0],
                    dim=weights.shape('audio_transform.sequential.3.weight', 2)[0])
        return weights.load_into(model)

    def embed_audio(self, wav):
        """wav: (N, samples), of one length -> (N, D), not normalised.

        Paper [67]: silent. The released code standardises a batch by one mean and deviation, so a
        sound's embedding depends on the others. Here each sound is standardised by itself.
        """
        spectrograms = [standardise(x) for x in self.audio_encoder.spectrogram(wav)]
        return self.embed_spectrogram(torch.stack(spectrograms))

    def embed_spectrogram(self, x):
        """x: (N, 257, T), standardised -> (N, D)."""
        return self.audio_transform['sequential'](self.audio_encoder(x))
