"""The released encoders behind the baselines of section 4.1, one file each, loaded by path.

    wav2clip.py     WAV2CLIP (Wu et al., 2022)          audio in the space of CLIP ViT-B/32
    audioclip.py    AudioCLIP (Guzhov et al., 2022)     audio and images
    imagebind.py    ImageBind (Girdhar et al., 2023)    audio and images
    spaces.py       these, CLIP and CLAP with one interface: embed_audio, embed_text, embed_image
    regions.py      region proposals of a frame, by OWLv2 or from a file

The first three files each hold a class with the same methods, and never download anything:

    model = WAV2CLIP.from_checkpoint('weights/Wav2CLIP.pt')     # eval mode, frozen, float32
    sound = prepare_audio(wav)                      # (samples,) of media.read_audio -> (1, ...)
    audio = model.embed_audio(sound)                # (N, D)
    image = model.embed_image(prepare_images(crops))        # PIL images -> (B, D); not WAV2CLIP

Embeddings are as the released code gives them: normalise both before taking their cosine
similarity. A model's sizes are read from the shapes of its weights; with other sizes the classes
make small models. Sources, sizes and licences of the files: docs/baselines.md. This file holds what
the encoders share: reading a checkpoint, and preparing images.

Shapes: B images, N audios, D embedding, T audio frames, H W pixels, h w feature cells.
"""

import torch
from PIL import Image

from launch import read_weights
from media import normalise


# ---- Checkpoints ---------------------------------------------------------------------------------

class Weights:
    """The tensors of a checkpoint that one encoder uses. OSError, ValueError: one sentence.

    file: the path of a checkpoint, or the dict that it holds. used: the prefixes of the names to
    keep; all others are skipped. encoder, remedy: for the error's sentence.
    """
    def __init__(self, file, used, encoder, remedy):
        entries = file if isinstance(file, dict) else read_weights(file, remedy, mapped=True)
        self.problem = f'{"the dict" if entries is file else file} is no checkpoint of {encoder}'
        self.remedy = remedy
        self.tensors = {name: value for name, value in entries.items()
                        if str(name).startswith(used) and isinstance(value, torch.Tensor)}
        self.tensors.pop('audio.fbsp.bias', None)       # AudioCLIP's, which is empty

    def error(self, reason):
        """The ValueError of an unusable checkpoint, to be raised."""
        return ValueError(f'{self.problem} ({reason}): {self.remedy}')

    def shape(self, name, dimensions):
        """The shape of an entry, which must have so many dimensions."""
        if name not in self.tensors:
            raise self.error(f'it has no entry {name}')
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dimensions or 0 in shape:
            raise self.error(f'{name} has the shape {shape}')
        return shape

    def count(self, prefix):
        """How many layers prefix.0, prefix.1, ... there are."""
        names = [name for name in self.tensors if name.startswith(f'{prefix}.')]
        if not names:
            raise self.error(f'it has no entries {prefix}.*')
        return len({name.removeprefix(f'{prefix}.').split('.')[0] for name in names})

    def load_into(self, model):
        """Copy all entries, which must be exactly the model's. -> model, frozen, in eval mode."""
        try:
            model.load_state_dict(self.tensors)         # into float32, whatever it was
        except RuntimeError as error:
            raise self.error(str(error).splitlines()[1].strip('\t .')[:200]) from None
        for name, value in model.state_dict().items():
            if not value.isfinite().all():      # argmax of NaN would choose the first region
                raise self.error(f'{name} holds values that are not numbers')
        return model.eval().requires_grad_(False)


# ---- Images --------------------------------------------------------------------------------------

def prepare_images(images, size=224):
    """PIL images of any shape -> (B, 3, size, size), as CLIP prepares them.

    Resize the shorter side to `size` (bicubic), crop the centre, normalise by CLIP's mean and
    standard deviation. The filter is PIL's, as in both releases: with torch's bicubic filter
    ImageBind's embedding changes by up to 2%.
    """
    return torch.stack([normalise(centre_square(image, size)) for image in images])


def centre_square(image, size):
    """PIL of any shape -> PIL, RGB, (size, size)"""
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    image = image.convert('RGB').resize((width, height), Image.Resampling.BICUBIC)
    left = round((width - size) / 2)
    top = round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
