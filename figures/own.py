"""One picture and one sound of your own: frame | heatmap | overlay (evaluate.py --image)."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from figures.pictures import heat_colours, overlay
from launch import write_file
from media import evaluation_image, read_own_audio, read_own_image


def one_pair(model, config, image_file, audio_file, out):
    """Localise one sound in one picture; save frame | heatmap | overlay, each of its size.

    OSError where the file cannot be written.
    """
    device = next(model.parameters()).device
    picture, reduced = read_own_image(image_file)
    wav = read_own_audio(audio_file, config.seconds)                            # (samples,)
    image = evaluation_image(picture, config.image_size)                        # (3, H, W)
    size = picture.height, picture.width
    heat = model.heatmap(image[None].to(device), wav[None].to(device), size)[0].cpu().numpy()
    frame = np.asarray(picture)
    tiles = [frame, heat_colours(heat), overlay(frame, heat)]
    content = io.BytesIO()
    try:
        kind = Image.registered_extensions()[Path(out).suffix.lower()]
        Image.fromarray(np.concatenate(tiles, 1)).save(content, kind)
    except (KeyError, OSError, ValueError) as error:
        raise OSError(f'cannot write {out} ({error}): name a .png or .jpg file') from None
    write_file(out, content.getvalue())
    smaller = f', brought down to {picture.width} x {picture.height} pixels' if reduced else ''
    print(f'{out}: frame | heatmap | overlay{smaller}; {(heat > 0.5).mean():.1%} of the frame is '
          f'over 0.5, the peak is {heat.max():.2f}')
