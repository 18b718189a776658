"""The five baselines of section 4.1, in the tables of evaluate.py (which has the oracle).

    python baselines.py --method all --json baselines.json          # on the miniature, all tables
    python baselines.py --method clipseg_clap_text --task single --benchmarks vggss flickr
    python baselines.py --preset paper --method imagebind --imagebind weights/imagebind_huge.pth
    python baselines.py --preset paper --method wav2clip --boxes glip.jsonl     # GLIP's own regions

CLIPSeg (w/ WAV2CLIP Text), CLIPSeg (w/ CLAP Text): localise_by_text. The label whose text embedding
has the highest cosine similarity to the sound's is retrieved. CLIPSeg gets it as its text, as it
gets the true label in the oracle. Tables 1, 2, 6 and 7.

WAV2CLIP, AudioCLIP, ImageBind: localise_by_region. A detector proposes regions of the frame
(encoders/regions.py); the one whose image embedding has the highest cosine similarity to the
sound's is the localization result, 1 inside its box and 0 elsewhere. Tables 1 to 3 and 5 to 7. All
pixels of a box tie, so the K highest are undefined: no "w/ Adap." columns.

Files of the encoders, their sizes and licences: docs/baselines.md. --save-heatmaps DIR writes
DIR/<method>/<benchmark>/<id>.npy, for which evaluate.py --heatmaps DIR/<method> gives equal scores.
Shapes: B samples, F frames, L labels, n regions of a frame, D embedding.
"""

import argparse
import functools
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import BENCHMARKS
from benchmarks.lists import files_of_root, read_labels
from benchmarks.maps import SIZE
from encoders.regions import PROPOSALS, Detector, crop, read_boxes
from encoders.spaces import WEIGHTS, load_spaces
from evaluate import (SHIPPED, TASKS, add_scores, load, open_benchmarks, score_benchmark,
                      tasks_of, tasks_wanted)
from figures.tables import BENCHMARK_NAMES, ORACLE_TASKS, table
from launch import (between, check_outputs, gather_lists, given_options, overwritten,
                    rank_and_processes, run_script, some_path, start_processes)
from localise import distinct, encode_frames
from media import box_map, read_image
from model import PRESETS, ROOT

TEXTS = ('clipseg_wav2clip_text', 'clipseg_clap_text')
REGIONS = ('wav2clip', 'audioclip', 'imagebind')
METHODS = TEXTS + REGIONS               # in the order of the paper's tables


# ---- The embeddings of sounds --------------------------------------------------------------------
def embed_sounds(space, samples, cache):
    """The embeddings of B samples' sounds -> (B, D)

    cache: {(space, sound): its embedding (D,)}; new ones are added, as benchmarks repeat sounds.
    """
    keys, sounds = distinct([s['wav'] for s in samples])
    new = [key for key in sounds if (space, key) not in cache]
    if new:
        found = space.embed_audio(torch.stack([sounds[key] for key in new])).cpu()
        cache.update(zip([(space, key) for key in new], found))
    return torch.stack([cache[space, key] for key in keys])


# ---- CLIPSeg (w/ WAV2CLIP Text), CLIPSeg (w/ CLAP Text) ------------------------------------------
@torch.no_grad()
def localise_by_text(model, spaces, labels, texts, words, cache, correct, samples):
    """-> {method: B maps (224, 224)}: sigmoid(M_G + b/w), with the checkpoint's b/w

    labels: the candidates, L names. texts: {method: their embeddings in the method's space (L, D)}.
    words: their embeddings as CLIPSeg's text condition (L, D), with the oracle's prompt. cache: see
    embed_sounds. correct: {method: [bool]}; for each sample with a label, whether that label was
    retrieved is appended.
    """
    vision = encode_frames(model.clipseg, samples, words.device)            # of B frames
    maps = {}
    for method, of_labels in texts.items():
        sounds = embed_sounds(spaces[method], samples, cache)               # (B, D)
        best = (sounds @ of_labels.T).argmax(1)                             # (B,)
        condition = words[best.to(words.device)].unsqueeze(1)               # (B, 1, D)
        maps[method] = list(model.heatmaps(vision, condition, SIZE)[:, 0].cpu())
        correct[method] += [labels[k] == s['label'] for k, s in zip(best.tolist(), samples)
                            if s['label']]
    return maps


def candidates(dataset, listed, path, default):
    """The labels from which one is retrieved for each sound of this benchmark.

    listed: the labels of the file `path` (--labels), or None. default: the file for a benchmark
    without class names. Paper [75]: silent on the list from which "the most relevant text (class
    label)" (4.1) is retrieved. Here it holds the benchmark's own class names, as for the oracle.
    Flickr and ADE20K have none, and yet rows in Tables 1, 2 and 6: theirs are VGGSound's classes.
    """
    if not listed:
        return dataset.classes or read_labels(default, '--labels')
    absent = [name for name in dataset.classes if name not in listed]
    if absent and len(absent) == len(dataset.classes):
        raise ValueError(f'{path} holds none of the {len(absent)} class names of {dataset.name}, '
                         f'e.g. {absent[0]!r}: add them, or leave out --labels')
    if absent and rank_and_processes()[0] == 0:
        print(f'{dataset.name}: {len(absent)} of its {len(dataset.classes)} class names are not in '
              f'{path}, e.g. {absent[0]!r}, and cannot be retrieved')
    return listed


# ---- WAV2CLIP, AudioCLIP, ImageBind --------------------------------------------------------------
@torch.no_grad()
def localise_by_region(spaces, propose, files, cache, samples):
    """-> {method: B maps (224, 224) of 0 and 1}; adds 'confidence' {method: number} to samples

    propose(ids, pictures) -> the boxes (n, 4) of each picture. files: {id: the file of its frame}.
    Paper [76]: silent on the confidence for Table 3. Here it is the cosine similarity of the chosen
    region. Paper [77]: silent on how a region becomes an image. Here it is cropped to its box, then
    prepared as its encoder prepares any image.
    """
    keys, frames = distinct([s['image'] for s in samples])
    ids = [samples[keys.index(key)]['id'] for key in frames]                # of F frames
    pictures = [read_image(files[name]) for name in ids]
    regions = dict(zip(frames, propose(ids, pictures)))                     # {frame: (n, 4)}
    maps = {}
    for sample in samples:
        sample['confidence'] = {}
    for method, space in spaces.items():
        embedded = {key: embed_regions(space, picture, regions[key])        # {frame: (n, D)}
                    for key, picture in zip(frames, pictures)}
        sounds = embed_sounds(space, samples, cache)                        # (B, D)
        maps[method] = []
        for sample, key, sound in zip(samples, keys, sounds):
            similarity = embedded[key] @ sound                              # (n,)
            best = int(similarity.argmax())
            maps[method].append(box_map(regions[key][best]))
            sample['confidence'][method] = float(similarity[best])
    return maps


def embed_regions(space, picture, boxes):
    """A PIL frame, boxes (n, 4) -> (n, D)"""
    return space.embed_image([crop(picture, box) for box in boxes.tolist()]).cpu()


def check_ids(boxes, datasets, path):
    """ValueError where a sample has no line in the file of boxes."""
    for name, dataset in datasets.items():
        lacking = [sample.id for sample in dataset.samples if sample.id not in boxes]
        if lacking:
            raise ValueError(f'{path} has no line for {len(lacking)} of the {len(dataset)} samples '
                             f'of {name}, the first {lacking[0]}: add them, with an empty list '
                             'where nothing was found, or name other --benchmarks')


# ---- Scores --------------------------------------------------------------------------------------
def run(args):
    """Score args.methods in args.wanted. -> {method: {task: {benchmark: scores}}}"""
    check_outputs([args.json, args.csv], [args.save_heatmaps])
    listed = read_labels(args.labels, '--labels') if args.labels else None
    boxes = read_boxes(args.boxes, args.proposals) if args.boxes else None
    device = start_processes(args.device)
    by_text = [method for method in args.methods if method in TEXTS]
    by_region = [method for method in args.methods if method in REGIONS]
    model = tokenizer = None
    preset = args.preset or 'miniature'
    if by_text:
        model, tokenizer, preset, *_ = load(device, args.checkpoint, args.variant, args.preset,
                                            untrained=False, clipseg=args.clipseg)
    files = replace(WEIGHTS[preset], **args.weights)
    spaces = load_spaces(args.methods, files, device)
    detector = Detector(files.detector, device) if by_region and not boxes else None

    def propose(ids, pictures):
        if boxes:
            return [boxes[name] for name in ids]
        return detector.propose(pictures, args.proposals)

    datasets = open_benchmarks(args.wanted, preset, args.data_root, args.limit)
    if boxes:
        check_ids(boxes, datasets, args.boxes)

    cache = {}                          # of sounds, which the extended sets repeat
    correct = {}
    localisers = {}
    for name, dataset in datasets.items():
        parts = []
        if by_text and set(tasks_of(name, args.wanted)) & set(ORACLE_TASKS):
            labels = candidates(dataset, listed, args.labels, files.labels)
            correct[name] = {method: [] for method in by_text}
            parts.append(text_localiser(model, tokenizer, spaces, labels, cache, correct[name]))
        if by_region:
            pictures = {sample.id: sample.images[0] for sample in dataset.samples}
            image_spaces = {method: spaces[method] for method in by_region}
            parts.append(functools.partial(localise_by_region, image_spaces, propose, pictures,
                                           cache))
        localisers[name] = functools.partial(localise_all, parts)

    paper = 'av' if preset == 'paper' else None         # either variant: its own row is not shown
    scores = {method: {} for method in args.methods}
    for name, dataset in datasets.items():
        tasks = tasks_of(name, args.wanted)
        rows = args.methods if set(tasks) & set(ORACLE_TASKS) else by_region    # Tables 3, 5
        folders = []
        if args.save_heatmaps:
            folders = [(row, Path(args.save_heatmaps, row, name)) for row in rows]
        metrics, _ = score_benchmark(dataset, tasks, localisers[name], rows, args.batch_size,
                                     folders=folders, reading=args.reading)
        add_scores(scores, args.wanted, dataset, metrics, paper, args.json, args.csv)
    print_retrieved(correct)
    return scores


def text_localiser(model, tokenizer, spaces, labels, cache, correct):
    """Embed the L labels. -> the localiser that retrieves from them, see localise_by_text"""
    texts = {method: spaces[method].embed_text(labels).cpu() for method in correct}     # (L, D)
    words = model.embed_text(tokenizer, labels)                                         # (L, D)
    return functools.partial(localise_by_text, model, spaces, labels, texts, words, cache, correct)


def localise_all(parts, samples):
    """The localiser of all methods. parts: those of the texts and of the regions"""
    maps = {}
    for localiser in parts:
        maps |= localiser(samples)
    return maps


def print_retrieved(correct):
    """Print how often the true label was retrieved. correct: {benchmark: {method: [bool]}}"""
    rows = []
    for name, of_methods in correct.items():
        right = [gather_lists(found) for found in of_methods.values()]
        count = len(right[0])
        if count:                       # Flickr and ADE20K name no class
            rows.append([BENCHMARK_NAMES[name], *(100 * sum(r) / count for r in right), count])
    if rows and rank_and_processes()[0] == 0:
        print('\nClass names retrieved (%)')
        methods = next(iter(correct.values()))
        print(table(rows, ['benchmark', *methods, 'n']))


# ---- The command line ----------------------------------------------------------------------------
ENCODERS = ('wav2clip', 'clip', 'audioclip', 'imagebind', 'clap', 'detector')
USED_BY = {     # option: the methods that it has an effect on
    'checkpoint': TEXTS, 'variant': TEXTS, 'clipseg': TEXTS, 'labels': TEXTS, 'boxes': REGIONS,
    'proposals': REGIONS, 'detector': REGIONS, 'clap': ('clipseg_clap_text',),
    'wav2clip': ('clipseg_wav2clip_text', 'wav2clip'),
    'clip': ('clipseg_wav2clip_text', 'wav2clip'),
    'audioclip': ('audioclip',), 'imagebind': ('imagebind',)}


def parse_args(argv=None):
    """-> options; `methods`; `wanted`: {task: {benchmark: metric}}; `weights`: {encoder: path}"""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--method', nargs='+', choices=[*METHODS, 'all'], default=['all'], help='rows of the '
        'tables (default: all five)')
    add('--task', choices=[*(task for task in TASKS if task != 'multisource'), 'all'],
        default='all', help='see evaluate.py; Table 8 has no baselines (default: all)')
    add('--benchmarks', nargs='+', choices=list(BENCHMARKS), help='only these of the task')
    add('--preset', choices=list(PRESETS), help='default: the checkpoint\'s, or miniature')
    add('--variant', choices=list(SHIPPED), help='which shipped checkpoint (default: av)')
    add('--checkpoint', type=some_path, help='of train.py, or the authors\': its b/w '
        '(default: shipped)')
    add('--data-root', type=some_path, help='default: the preset\'s')
    add('--labels', type=some_path, metavar='FILE', help='a class name per line, to retrieve from '
        '(default: the benchmark\'s; where it has none, the preset\'s list)')
    add('--boxes', type=some_path, metavar='FILE', help='regions made elsewhere')
    add('--proposals', type=between(int, 1), default=PROPOSALS, help='most regions per frame '
        f'(default: {PROPOSALS})')
    add('--detector', type=some_path, help='OWLv2: folder, or name on the hub')
    add('--wav2clip', type=some_path, metavar='FILE', help='Wav2CLIP.pt')
    add('--clip', type=some_path, help='CLIP ViT-B/32 beside it: folder, or name on the hub')
    add('--audioclip', type=some_path, metavar='FILE', help='AudioCLIP-Full-Training.pt')
    add('--imagebind', type=some_path, metavar='FILE', help='imagebind_huge.pth')
    add('--clap', type=some_path, help='CLAP: folder, or name on the hub')
    add('--clipseg', type=some_path, help='hub name or folder instead of the preset\'s')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    add('--reading', choices=['release', 'paper'], default='release', help='see evaluate.py')
    add('--batch-size', type=between(int, 1), default=16, help='samples at once (default: 16)')
    add('--limit', type=between(int, 1), help='the first N of each benchmark or of its conditions')
    add('--json', type=some_path, help='write the scores here')
    add('--csv', type=some_path, help='the same, a line per row, task, benchmark and metric')
    add('--save-heatmaps', type=some_path, metavar='DIR', help='write '
        'DIR/<method>/<benchmark>/<id>.npy, and the confidences of the extended sets')
    args = parser.parse_args(argv)
    args.methods = [name for name in METHODS if {name, 'all'} & set(args.method)]
    for name, option in given_options(parser, argv).items():
        if not set(USED_BY.get(name, args.methods)) & set(args.methods):
            parser.error(f'{option} has no effect on --method {" ".join(args.method)}: leave it '
                         'out')
    if args.boxes and args.detector:
        parser.error('--boxes and --detector do not go together: leave one out')
    try:
        args.wanted = tasks_wanted(args.task, args.benchmarks)
    except ValueError as error:
        parser.error(str(error))
    kept = set(TASKS if set(REGIONS) & set(args.methods) else ORACLE_TASKS) - {'multisource'}
    args.wanted = {task: sets for task, sets in args.wanted.items() if task in kept}
    if not args.wanted:
        parser.error(f'the paper has no row of {" ".join(args.method)} there: name another --task '
                     'or other --benchmarks')
    args.weights = {name: getattr(args, name) for name in ENCODERS if getattr(args, name)}
    inputs = [(f'--{name}', getattr(args, name)) for name in (*ENCODERS, 'labels', 'boxes',
                                                              'checkpoint', 'clipseg')]
    inputs.append(('the weights that ship', ROOT / 'miniature/weights'))
    roots = [args.data_root] if args.data_root else [p.data_root for p in PRESETS.values()]
    inputs += [pair for root in roots for pair in files_of_root(root)]
    if sentence := overwritten([('--json', args.json), ('--csv', args.csv)], inputs):
        parser.error(sentence)
    return args


def main():
    run(parse_args())


if __name__ == '__main__':
    run_script('baselines.py', main, 'interrupted; --json and --csv, where given, hold the '
               'benchmarks that were finished')
