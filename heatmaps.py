"""Heatmaps: from a batch to maps of where the sound comes from (sections 3.7 and 4.2.5), and maps on disk.

    words = {'dog': model.embed_text(tokenizer, ['dog'])[0]}
    localise(model, batch, words)                         # {'ours': (B, 224, 224), 'oracle': (B, 224, 224)}
    localise_sources(model, batch, classes)               # {'ours': (B, 2, 224, 448)}: two sources of a mixture
    save_heatmaps(folder, batch['id'], maps)              # folder/<id>.npy, which any method can write

batch: what data.py's evaluation_loader yields. Everything is scored at 224 x 224, or 448 x 224 for two frames side by
side; maps lie in 0..1.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import losses
from benchmarks.lists import csv_lines, utf8_text
from data import GROUND_TRUTH_SIZE, SampleError
from masks import mask_gen_f
from model import embed_image, encode_image

SIZE = (GROUND_TRUTH_SIZE, GROUND_TRUTH_SIZE)                   # H, W
PAIR_SIZE = (GROUND_TRUTH_SIZE, 2 * GROUND_TRUTH_SIZE)          # two frames side by side
CLASSES_AT_ONCE = 16        # masked images of a frame in one pass of the vision encoder: memory, not results


# ------------------------------------------------------------------------------------------------
# From a batch to heatmaps
# ------------------------------------------------------------------------------------------------

@torch.no_grad()
def localise(model, batch, words=None, with_confidence=False, sounds=None):
    """Heatmaps of a batch. -> {'ours': (B, 224, 224), 'oracle': the same, 'confidence': (B,)}

    words: {class name: its text embedding (D,)}; without it, or where a sample has no name, there is no oracle. sounds:
    {name: (B or 1, samples)}, under which the images are seen too: more maps, of these names (not those above). The
    vision encoder runs once per image whatever is asked.
    """
    device = next(model.parameters()).device
    vision, A = encode_image(model.clipseg, batch['image'].to(device)), model.embed_audio(batch['wav'].to(device))
    conditions = {'ours': A}
    if words is not None and all(batch['label']):
        conditions['oracle'] = torch.stack([words[word] for word in batch['label']])
    for name, wav in (sounds or {}).items():
        conditions[name] = model.embed_audio(wav.to(device)).expand_as(A)
    heat = model.heatmaps(vision, torch.stack(list(conditions.values()), 1), SIZE)      # (B, conditions, 224, 224)
    found = {who: maps.cpu() for who, maps in zip(conditions, heat.unbind(1))}
    if with_confidence:
        found['confidence'] = confidence(model, vision, A, batch['image'].shape[-2:]).cpu()
    return found


def oracle_of_named(found, batch, find):
    """Add the oracle's maps to what localise found, where only some of a batch have a class name.

    localise leaves the oracle out of such a batch. find(batch) is localise, called here for the
    named samples alone; the maps of the others are NaN and must not be scored.
    """
    named = [i for i, label in enumerate(batch['label']) if label]
    if 0 < len(named) < len(batch['id']):
        found['oracle'] = torch.full_like(found['ours'], torch.nan)             # (B, 224, 224)
        found['oracle'][named] = find(only(batch, named))['oracle']
    return found


def confidence(model, vision, A, size):
    """How much an image goes with its sound: cos(v_F[i, i], A_i). vision of B images, A (B, D) -> (B,)

    Paper: "derived from a global audio-visual similarity score" (4.1, AP); this is the released code's. v_F as in
    Eq. 2, of the positive pair alone. size: that of the images, at which MaskGen_F reads M_G in training.
    """
    M_F = mask_gen_f(model.ground(vision, A.unsqueeze(1), size), vision.v_D.shape[-2:])     # (B, 1, h, w)
    v_F = losses.masked_features(M_F, vision.v_D)[:, 0]                                     # (B, D)
    return F.cosine_similarity(v_F, A)


@torch.no_grad()
def localise_sources(model, batch, classes, k=2):
    """Section 4.2.5: the k sources of a mixture. classes (N, D) text embeddings. -> {'ours': (B, k, 224, 448)}

    Each class name grounds a mask M_n; the image under M_n gives v_n^I; the k classes whose v_n^I are most similar to
    the audio-driven embedding A of the mixture are the answer, their heatmaps the result.
    Paper: "these masks are subsequently passed to MaskGen_I", "following the inference procedure of section 3.7": the
    image is weighted by sigmoid(M_G + b/w), not cut. k is the number of sources, which the benchmarks give away.
    """
    device = next(model.parameters()).device
    image, A = batch['image'].to(device), model.embed_audio(batch['wav'].to(device))            # (B, D)
    vision, B = encode_image(model.clipseg, image), len(image)
    similarity = []
    for part in classes.split(CLASSES_AT_ONCE):
        M = model.heatmaps(vision, part.expand(B, -1, -1), image.shape[-2:])                    # (B, n, H, W)
        masked = image.unsqueeze(1) * M.unsqueeze(2)                                            # (B, n, 3, H, W)
        v_I = embed_image(model.clipseg, masked.flatten(0, 1)).view(B, len(part), -1)           # (B, n, D)
        similarity.append(F.cosine_similarity(v_I, A.unsqueeze(1), dim=-1))                     # (B, n)
    top = torch.cat(similarity, 1).topk(k, dim=1).indices                                       # (B, k)
    return {'ours': model.heatmaps(vision, classes[top], PAIR_SIZE).cpu()}


# ------------------------------------------------------------------------------------------------
# Heatmaps on disk: one .npy per sample, ours or any other method's
# ------------------------------------------------------------------------------------------------

def save_heatmaps(folder, ids, heat):
    """Write folder/<id>.npy, or <id>_<source>.npy for (B, k, H, W) maps: float16 in 0..1.

    What rounds to 0.5 from above or below is kept on its side of it, so that a saved map cut there scores as the map
    itself did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half, edge = heat.half(), torch.tensor(0.5, dtype=torch.half)
    for beyond, side in ((heat > 0.5, 1.0), (heat < 0.5, 0.0)):
        half = torch.where(beyond & (half == edge), torch.nextafter(edge, torch.tensor(side, dtype=torch.half)), half)
    for name, maps in zip(ids, half.numpy()):
        for suffix, one in [('', maps)] if maps.ndim == 2 else [(f'_{k}', one) for k, one in enumerate(maps)]:
            path = folder / f'{name}{suffix}.npy'
            try:
                np.save(path, one)
            except OSError as error:                        # a full disk has no name of the file
                raise OSError(f'cannot write {path} ({error.strerror or error}): free some space '
                              'or name another place by --save-heatmaps') from None


def read_heatmap(folder, name, size):
    """<name>.npy, numbers in 0..1, or <name>.png, 8 bit. -> float32 of size (H, W). SampleError names what is wrong."""
    path = folder / f'{name}.npy'
    try:
        if path.is_file():
            heat = np.load(path, allow_pickle=False)
        elif (path := path.with_suffix('.png')).is_file():
            with Image.open(path, formats=['PNG']) as image:
                if image.mode not in ('L', '1'):
                    raise SampleError(f'{path} is a picture of mode {image.mode}: a heatmap is grey, 8 bits a pixel')
                heat = np.asarray(image.convert('L'), np.float32) / 255
        else:
            raise SampleError(f'no heatmap {folder / name}.npy or .png: write one of {size[1]} x {size[0]} pixels')
        if not isinstance(heat, np.ndarray) or heat.dtype.kind not in 'biuf':
            raise SampleError(f'{path} holds no array of numbers: write the map as one')
        heat = heat.astype(np.float32)
    except SampleError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise SampleError(f'{path} is not a readable heatmap ({str(error).splitlines()[0]}): write it again') from None
    if heat.shape != tuple(size):
        raise SampleError(f'{path} has the shape {heat.shape}: heatmaps are {tuple(size)}, height first')
    if not (heat.min() >= 0 and heat.max() <= 1):           # written so that NaN fails too
        raise SampleError(f'{path} holds values outside 0..1 (or NaN): scale the map, then write it again')
    return torch.from_numpy(heat)


def read_confidences(folder):
    """{id: confidence} of folder/confidence.csv, lines id,confidence; {} where there is none. ValueError names a line."""
    path, found = folder / 'confidence.csv', {}
    if not path.exists():
        return found
    if not path.is_file():
        raise ValueError(f'{path} is a folder or a pipe: put a file of lines id,confidence there')
    for number, line in csv_lines(path, utf8_text(path, 'write it again'), 'write it again'):
        if number == 1 and line == ['id', 'confidence']:
            continue
        try:
            name, value = line[0], float(line[1])
        except (IndexError, ValueError):
            value = float('nan')
        if len(line) != 2 or not np.isfinite(value) or name in found:
            raise ValueError(f'{path}, line {number}: expected id,confidence, a number, each id once, not {",".join(line)!r}')
        found[name] = value
    if not found:
        raise ValueError(f'{path} holds no confidence: write a line per sample, or remove it')
    return found


def only(batch, indices):
    """A batch of only these of its samples; its 'errors', which are of none of them, stay."""
    part = {}
    for key, values in batch.items():
        if key == 'errors':
            part[key] = values
        elif isinstance(values, torch.Tensor):
            part[key] = values[indices]
        else:
            part[key] = [values[i] for i in indices]
    return part


def read_localised(folder, batch, confidences, two_sources):
    """What localise gives, from files; leaves samples without a usable map out of the batch and names them."""
    names, good, maps = batch['id'], [], []
    for i, name in enumerate(names):
        try:
            maps.append(torch.stack([read_heatmap(folder, f'{name}_{k}', PAIR_SIZE) for k in (0, 1)]) if two_sources
                        else read_heatmap(folder, name, SIZE))
            good.append(i)
        except SampleError as error:
            batch['errors'].append(error)
    batch.update(only(batch, good))
    found = {'ours': torch.stack(maps)} if maps else {}
    if maps and confidences:
        if absent := [name for name in batch['id'] if name not in confidences]:
            raise ValueError(f'{folder}/confidence.csv has no line for {absent[0]}: write one per sample')
        found['confidence'] = torch.tensor([confidences[name] for name in batch['id']])
    return found
