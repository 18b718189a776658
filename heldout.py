"""What a training says of itself: scores on held-out scenes before and after, and the same frames side by side.

    scores, counts = held_out(model, tokenizer, 'miniature', 'data/miniature')          # -> summary.json
    before_after_sheet(untrained, trained, tokenizer, 'miniature', 'data/miniature', 'before_after.png')

train.py calls both; the tables of section 4.2 are evaluate.py's. Boxes are VGG-SS's, masks and pairs of sounds IS4's
(VGG-SS has masks in the miniature only).
"""

import torch

import figures.pictures
import metrics
from data import Benchmark, displayable
from evaluate import embed_names, read_batches
from heatmaps import localise, oracle_of_named
from model import PRESETS


def held_out(model, tokenizer, preset, data_root, batch_size=32):
    """Scores on held-out scenes for summary.json. -> {'ours', 'oracle', 'ceiling'}: scores, and counts

    cIoU, AUC: VGG-SS, boxes. mIoU: every sample with a mask; mIoU_multi: IS4, whose frames hold two sounding objects;
    both_right: share of IS4 frames in which, for both sounds, the mean heat on the sound's own object exceeds that on
    the other. area_silence, area_noise: mean share of VGG-SS frames over 0.5 when nothing, or noise, is heard.
    All in per cent but the areas, which are fractions. 'ceiling' is what perfect masks score. A score is None where
    its benchmark is not on the disk; that, and every sample left out, is said.
    """
    config, kept = PRESETS[preset], {}      # kept[row of the table][score]: a list with one number per sample
    keep = lambda who, score, values: kept.setdefault(who, {}).setdefault(score, []).extend(values)
    noise = torch.Generator().manual_seed(42)
    for name in ('vggss', 'is4'):
        try:
            dataset = Benchmark(name, data_root, config.image_size, config.seconds)
        except FileNotFoundError as error:
            print(f'held-out scores without {name}: {error}')
            continue
        words = embed_names(model, tokenizer, dataset)
        waiting = {}                        # IS4's frames of which one sound is still to come
        for batch, _ in read_batches(dataset, batch_size):
            unrelated = {}
            if name == 'vggss':
                loud = torch.rand(batch['wav'].shape, generator=noise) * 2 - 1
                unrelated = {'silence': torch.zeros_like(loud[:1]), 'noise': loud}
            heat = localise(model, batch, words, sounds=unrelated)
            heat = oracle_of_named(heat, batch, lambda part: localise(model, part, words))
            for kind in unrelated:
                keep('ours', f'area_{kind}', (heat.pop(kind) > 0.5).float().mean((1, 2)).tolist())
            masks = batch['mask']           # (B, 224, 224); a list where a sample has none
            if isinstance(masks, torch.Tensor):
                heat['ceiling'] = masks
            samples = range(len(masks))
            named = [i for i in samples if batch['label'][i]]       # the oracle's maps are of these
            rows = {who: named if who == 'oracle' else list(samples) for who in heat}
            for who, h in heat.items():
                if name == 'vggss':
                    maps, boxes = h[rows[who]], batch['boxes'][rows[who]]
                    iou = metrics.overlap(maps, boxes, metrics.thresholds_for(maps))
                    keep(who, 'box_iou', metrics.ratio(*iou)[:, 0].tolist())
                if masked := [i for i in rows[who] if masks[i] is not None]:
                    maps, truth = h[masked], torch.stack([masks[i] for i in masked]) > 0.5
                    iou = metrics.overlap(maps, truth.float(), metrics.thresholds_for(maps), True)
                    iou = (metrics.ratio(*iou)[:, 0] * 100).tolist()
                    keep(who, 'mIoU', iou)
                    keep(who, 'mIoU_multi', iou if name == 'is4' else [])
            for i in samples if name == 'is4' else ():
                if masks[i] is None:
                    continue
                # the two samples of a frame need not lie in one batch: the first waits for the second
                mine = {who: h[i] for who, h in heat.items() if i in rows[who]}, masks[i] > 0.5
                if other := waiting.pop(batch['group'][i], None):
                    for who in other[0].keys() & mine[0].keys():
                        keep(who, 'both_right', [both_right(other, mine, who)])
                else:
                    waiting[batch['group'][i]] = mine
        if len(dataset) - len(dataset.unreadable) < dataset.expected or waiting:
            print(f'{name}: scored {len(dataset) - len(dataset.unreadable)} of {dataset.expected} samples'
                  + (f'; {len(waiting)} frames lack their second sound' if waiting else ''))
    return summarised(kept)


def summarised(kept):
    """kept[row][score], a list with a number per sample -> scores, counts: see held_out."""
    mean = lambda values: sum(values) / len(values) if values else None
    scores, counts = {}, {}
    for who, lists in kept.items():
        box_iou = lists.pop('box_iou', [])
        scores[who] = {'cIoU': metrics.success_share(box_iou) if box_iou else None,
                       'AUC': metrics.area_under_success(box_iou) if box_iou else None,
                       **{k: mean(lists.get(k, [])) for k in ('mIoU', 'mIoU_multi', 'both_right', 'area_silence',
                                                              'area_noise')}}
        if who == 'ours':
            counts = {'boxes': len(box_iou), **{new: len(lists.get(k, [])) for new, k in (
                ('masks', 'mIoU'), ('multi', 'mIoU_multi'), ('pairs', 'both_right'), ('silence', 'area_silence'))}}
    return scores, counts


def both_right(one, other, who):
    """100 if either sound's mean heat is stronger on its own object than on the other's, else 0."""
    (heat_1, mask_1), (heat_2, mask_2) = one, other
    mean = lambda heat, mask: float(heat[who][mask].mean())
    return 100.0 * (mean(heat_1, mask_1) > mean(heat_1, mask_2) and mean(heat_2, mask_2) > mean(heat_2, mask_1))


def before_after_sheet(untrained, trained, tokenizer, preset, data_root, path, frames=6):
    """Figure 11's habit: the same frames untrained, trained and by the text oracle, under both sounds of each frame."""
    config = PRESETS[preset]
    try:
        dataset = Benchmark('is4', data_root, config.image_size, config.seconds, 2 * frames)
    except FileNotFoundError:
        return                                              # held_out has said so
    words, rows, names = embed_names(trained, tokenizer, dataset), [], []
    for batch, _ in read_batches(dataset, 1, 'pictures'):
        frame, after = displayable(batch['image'][0]), localise(trained, batch, words)
        heats = [localise(untrained, batch)['ours'], after['ours'], *([after['oracle']] if 'oracle' in after else [])]
        truth = (batch['mask'][0] if batch['mask'][0] is not None else batch['boxes'][0]).numpy()
        rows.append([frame, figures.pictures.ground_truth_tile(frame, truth),
                     *(figures.pictures.overlay(frame, heat[0].numpy()) for heat in heats)])
        names.append(batch['label'][0] or batch['id'][0])
    if rows:
        figures.pictures.contact_sheet(rows, path, ['frame', 'sounding object', 'untrained', 'trained', 'text oracle'], names)
