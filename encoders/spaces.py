"""The embedding spaces of the five baselines (section 4.1), with one interface.

    spaces = load_spaces(['clipseg_clap_text', 'imagebind'], WEIGHTS['paper'], 'cuda')
    sounds = spaces['imagebind'].embed_audio(wav)                       # (N, D), wav at 16 kHz
    similarity = sounds @ spaces['imagebind'].embed_image(crops).T      # (N, B) of PIL images
    texts = spaces['clipseg_clap_text'].embed_text(['dog barking'])     # (L, D)

WAV2CLIP embeds sounds, texts and images, CLAP sounds and texts, AudioCLIP and ImageBind sounds and
images. CLAP and CLIP are those of transformers, by a folder or a name on the hub. Embeddings have
length 1 here. Shapes: B images, N audios, L labels, D embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torchaudio
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, CLIPModel

from encoders import audioclip, imagebind, prepare_images, wav2clip
from media import SAMPLE_RATE
from model import ROOT, from_pretrained, load_pretrained

# Paper [73]: silent on the prompts. CLAP's own for classes of sounds; the oracle's for CLIP.
CLAP_PROMPT = 'This is a sound of {}'
CLIP_PROMPT = 'A photo of a {}'
SOUNDS_AT_ONCE = 8          # per pass of an audio encoder


class Clap:
    """CLAP (Wu et al., 2023): sounds and texts in one space, without images.

    Paper [74]: silent. CLAP was trained on 48 kHz. Here it gets the sounds of the paper's model,
    16 kHz resampled to 48, so nothing above 8 kHz.
    """

    def __init__(self, name, device):
        self.model = load_pretrained(ClapModel, name, '--clap').to(device)
        self.tokenizer = from_pretrained(AutoTokenizer, name, '--clap')
        self.extractor = from_pretrained(ClapFeatureExtractor, name, '--clap')

    @torch.no_grad()
    def embed_audio(self, wav):
        """wav (N, samples), 16 kHz, -1..1 -> (N, D)"""
        rate = self.extractor.sampling_rate
        wav = torchaudio.functional.resample(wav, SAMPLE_RATE, rate)
        mel = self.extractor(list(wav.numpy()), sampling_rate=rate, return_tensors='pt')
        mel = mel['input_features'].to(self.model.device)           # (N, 1, T, mel bands)
        return F.normalize(self.model.get_audio_features(input_features=mel).pooler_output)

    @torch.no_grad()
    def embed_text(self, labels):
        """L labels -> (L, D)"""
        texts = [CLAP_PROMPT.format(label) for label in labels]
        config = self.model.config.text_config
        # RoBERTa counts positions from the padding token's id + 1
        longest = config.max_position_embeddings - config.pad_token_id - 1
        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=longest,
                             return_tensors='pt').to(self.model.device)
        return F.normalize(self.model.get_text_features(**ids).pooler_output)


class Clip:
    """CLIP (Radford et al., 2021): the texts and images of WAV2CLIP's space."""

    def __init__(self, name, device):
        self.model = load_pretrained(CLIPModel, name, '--clip').to(device)
        self.tokenizer = from_pretrained(AutoTokenizer, name, '--clip')
        self.size = self.model.config.vision_config.image_size

    @torch.no_grad()
    def embed_text(self, labels):
        """L labels -> (L, D)"""
        texts = [CLIP_PROMPT.format(label) for label in labels]
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors='pt')
        ids = ids.to(self.model.device)
        return F.normalize(self.model.get_text_features(**ids).pooler_output)

    @torch.no_grad()
    def embed_image(self, images):
        """PIL images -> (B, D)"""
        x = prepare_images(images, self.size).to(self.model.device)         # (B, 3, S, S)
        return F.normalize(self.model.get_image_features(pixel_values=x).pooler_output)


class Wav2clip:
    """WAV2CLIP's sounds in CLIP's space, with CLIP's own texts and images."""

    def __init__(self, path, clip, device):
        self.sounds = wav2clip.WAV2CLIP.from_checkpoint(path).to(device)
        width = self.sounds.audio_transform['sequential'][-1].out_features
        if width != clip.model.config.projection_dim:
            raise ValueError(f'{path} belongs to a CLIP of {width} dimensions, and --clip names '
                             f'one of {clip.model.config.projection_dim}: WAV2CLIP\'s own is '
                             'ViT-B/32')
        self.embed_text = clip.embed_text
        self.embed_image = clip.embed_image

    def embed_audio(self, wav):
        """wav (N, samples), 16 kHz -> (N, D)"""
        return embed_each(self.sounds, wav2clip.prepare_audio, wav)


class SoundsAndImages:
    """AudioCLIP or ImageBind. module: encoders.audioclip or .imagebind; model: its model."""

    def __init__(self, module, model):
        self.module = module
        self.model = model

    def embed_audio(self, wav):
        """wav (N, samples), 16 kHz -> (N, D)"""
        return embed_each(self.model, self.module.prepare_audio, wav)

    def embed_image(self, images):
        """PIL images -> (B, D)"""
        device = next(self.model.parameters()).device
        x = prepare_images(images, self.model.image_size).to(device)
        return F.normalize(self.model.embed_image(x))


def embed_each(model, prepare, wav):
    """Embed a few sounds at a time: AudioCLIP needs 20 MB for one. wav (N, samples) -> (N, D)"""
    device = next(model.parameters()).device
    parts = []
    for few in wav.split(SOUNDS_AT_ONCE):
        sounds = torch.cat([prepare(one) for one in few])                   # (few, ...)
        parts.append(model.embed_audio(sounds.to(device)))                  # (few, D)
    return F.normalize(torch.cat(parts))


def load_spaces(methods, files, device):
    """Load what the methods need. -> {method: its space}. OSError, ValueError: unusable files"""
    spaces = {}
    if {'wav2clip', 'clipseg_wav2clip_text'} & set(methods):
        space = Wav2clip(files.wav2clip, Clip(files.clip, device), device)
        spaces['wav2clip'] = spaces['clipseg_wav2clip_text'] = space
    if 'clipseg_clap_text' in methods:
        spaces['clipseg_clap_text'] = Clap(files.clap, device)
    if 'audioclip' in methods:
        model = audioclip.AudioCLIP.from_checkpoint(files.audioclip).to(device)
        spaces['audioclip'] = SoundsAndImages(audioclip, model)
    if 'imagebind' in methods:
        model = imagebind.ImageBind.from_checkpoint(files.imagebind).to(device)
        spaces['imagebind'] = SoundsAndImages(imagebind, model)
    return {method: spaces[method] for method in methods}


# ---- Which files ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Files:
    """Where the encoders of a preset are: files, or folders and names on transformers' hub."""
    wav2clip: str
    clip: str               # the texts and images of WAV2CLIP's space
    audioclip: str
    imagebind: str
    clap: str
    detector: str
    labels: str             # candidates where a benchmark has no class names


TINY = f'{ROOT}/miniature/weights'
WEIGHTS = {
    'miniature': Files(f'{TINY}/wav2clip.pt', f'{TINY}/clipseg', f'{TINY}/audioclip.pt',
                       f'{TINY}/imagebind.pth', f'{TINY}/clap', f'{TINY}/owlv2',
                       f'{ROOT}/miniature/labels.txt'),
    'paper': Files(f'{ROOT}/weights/Wav2CLIP.pt', 'openai/clip-vit-base-patch32',
                   f'{ROOT}/weights/AudioCLIP-Full-Training.pt',
                   f'{ROOT}/weights/imagebind_huge.pth',
                   'laion/clap-htsat-unfused', 'google/owlv2-base-patch16-ensemble',
                   f'{ROOT}/benchmarks/vggsound_labels.txt')}
