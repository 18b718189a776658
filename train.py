"""Training, sections 3.5 (Eq. 5) and 3.6 (Eq. 7), with the settings of section 4.1.

    python train.py --variant av                            # the miniature, minutes on a laptop
    python train.py --variant av_llm                        # with the language model's answers
    python train.py --variant av --preset paper             # real data (docs/datasets.md)
    torchrun --nproc_per_node=2 train.py --preset paper     # as in the paper: 8 pairs on each GPU
    python train.py --variant av --resume                   # go on after a crash or a kill

The loop is take_steps. It trains the audio projection with its pooling, and MaskGen_I's w and b;
all else is frozen. The folder of a run holds last.pt, previous.pt (the checkpoint before it),
log.jsonl, loss.png, before_after.png and summary.json (scores on held-out scenes before and after).
After SIGTERM (which clusters send before they kill), Ctrl-C, SIGHUP or SIGUSR1 it finishes the
current step, saves a checkpoint and ends.

Paper [25]: silent on which epoch counts; the release keeps the best one on the VGG-SS test set.
Here no test set chooses: the result is the model after the last step.
"""

import signal

if __name__ == '__main__' and hasattr(signal, 'pthread_sigmask'):
    # Block these signals before NumPy and torch start threads, which inherit the signal mask. One
    # thread (checkpoint.watch_signals) waits for them; SIGCHLD is blocked only to keep DataLoader's
    # handler from interrupting a computation. Windows has no signal mask: there Ctrl-C interrupts
    # as in any Python script.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
                                              signal.SIGUSR1, signal.SIGCHLD})

import argparse
import json
import math
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import checkpoint
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import losses
from captions import captions_path, load_answers, make_captions
from checkpoint import agree, rank_and_processes, some_path
from data import AudioFeatures, VGGSound, loader, print_other_splits, training_steps
from figures import attempt, curves, tables
from heldout import before_after_sheet, held_out
from model import PRESETS, PROMPT, load_model, load_trained, trained_state


@dataclass(frozen=True)
class Recipe:
    """Training settings of one preset; each is an option of the same name."""
    epochs: int             # section 4.1: 20
    steps: int | None       # in place of epochs
    # Paper [23]: 16 (section 4.1), which was 8 on each of two GPUs, so with 7 negatives, not 15
    batch_size: int
    lr: float               # Adam; section 4.1: 1e-4
    lr_schedule: str        # constant (section 4.1 names no other), or linear: falls to 0
    weight_decay: float     # section 4.1: 1e-4
    save_seconds: float     # seconds between two checkpoints within an epoch, at least


RECIPES = {
    'paper': Recipe(epochs=20, steps=None, batch_size=16, lr=1e-4, lr_schedule='constant',
                    weight_decay=1e-4, save_seconds=600),
    # Paper [11]: 180,000 steps at 1e-4. The miniature takes 400, at twenty times that rate. A batch
    # of 8 is what one of the authors' GPUs saw; with only twelve classes, a larger one would often
    # hold a class twice. Many more steps only raise b / w, as p+ = 0.4 asks for masks larger than
    # these objects. At so high a rate one or two classes have wrong masks at any step (a dog's head
    # only), and other classes have them twenty steps later; so the rate falls to 0.
    'miniature': Recipe(epochs=1, steps=400, batch_size=8, lr=2e-3, lr_schedule='linear',
                        weight_decay=1e-4, save_seconds=10),
}

LOW = {'bf16': torch.bfloat16, 'fp16': torch.float16}       # --precision below float32
SETTINGS = (    # options that --resume must find unchanged
    'preset', 'variant', 'seed', 'batch_size', 'lr', 'weight_decay', 'tau', 'lambda_i', 'lambda_f',
    'lambda_reg', 'lambda_c', 'captions_from', 'same_answers', 'p_pos', 'p_neg', 'area', 'acl_f',
    'image_mask', 'feature_mask', 'audio_tokens', 'prompt', 'precision', 'clipseg', 'beats',
    'negatives', 'accumulate', 'lr_schedule')


# ============ the loop ============

def take_steps(args, run, device, model, optimiser, scaler, pairs, validation, answers, state):
    """Train from step state['step'] to the last. -> number of the signal that stopped it, or 0

    run: checkpoint.Run, which logs and saves. answers: C (texts, D) of section 3.6 and {id: row of
    C}, or (None, {}) for Eq. 5. state: the counters that a checkpoint keeps (see train).
    """
    C, row_of = answers
    loss_terms = partial(losses.loss_terms, tau=args.tau, p_pos=args.p_pos, p_neg=args.p_neg,
                         area=args.area, acl_f_reading=args.acl_f)
    weights = {'acl_i': args.lambda_i, 'acl_f': args.lambda_f, 'reg': args.lambda_reg,
               'acl_c': args.lambda_c}
    gather = losses.all_gather if args.negatives == 'global' else lambda rows: rows
    rank, processes = rank_and_processes()
    parallel = share_gradients(model, device) if processes > 1 else model
    last = state['last_step']
    steps = training_steps(pairs, state['step'], last, args.batch_size, args.accumulate, rank,
                           processes, args.workers)
    bar = tqdm(steps, total=last, initial=state['step'], disable=rank > 0, unit=' steps',
               dynamic_ncols=True)
    for step, epoch, ends_epoch, batches in bar:
        # Each step is seeded, so its Gumbel noise and dropout do not depend on --resume
        torch.manual_seed(hash((args.seed, rank, step)) % 2**63)
        rate = args.lr * ((last - step) / last if args.lr_schedule == 'linear' else 1.0)
        for group in optimiser.param_groups:
            group['lr'] = rate
        optimiser.zero_grad()
        model.train()
        parts = []
        for batch in batches:                                       # one, or --accumulate N
            state['skipped'] += tell_skipped(batch, state['skipped'])
            image = batch['image'].to(device, non_blocking=True)    # (B, 3, H, W)
            wav = batch['wav'].to(device, non_blocking=True)        # (B, samples)
            with autocast(args.precision, device):
                # E_A's features from the cache; None without --cache-audio
                known = pairs.features and pairs.features.complete(batch, model.beats, device)
                # Figure 2: A, M_G, M_I, M_F, v_I and v_D (model.Alignment)
                out = parallel(image, wav, args.image_mask, args.feature_mask, features=known,
                               pair_chunk=args.pair_chunk, negatives=args.negatives)

            terms = loss_terms(out, gather=gather)      # acl_i: Eq. 1; acl_f: Eq. 2, 3; reg: Eq. 4
            if C is not None:
                rows = gather(torch.tensor([row_of.get(i, -1) for i in batch['id']]))   # (N,)
                terms['acl_c'] = losses.acl_c_of_answered(          # Eq. 6
                    C, rows, out.A.float(), args.tau, args.same_answers)
            loss = losses.total_loss(terms, weights)                # Eq. 5; with acl_c Eq. 7
            scaler.scale(loss / len(batches)).backward()

            positive, negative = losses.mean_areas(out.areas.detach(), out.first)
            parts.append({'loss': loss, **terms, 'area_pos': positive, 'area_neg': negative})
        refuse_not_finite(parts, optimiser, args.precision, step, batches, run.folder)
        scaler.step(optimiser)
        scaler.update()

        if step % checkpoint.LOG_EVERY == 0:
            mask = model.masker_i
            means = run.log(step, epoch, parts, w=mask.w.item(), b=mask.b.item(), lr=rate)
            bar.set_postfix({name: f'{value:.2f}' for name, value in means.items()})
        state.update(step=step + 1, seconds=run.seconds())
        content = partial(checkpoint_of, args, model, optimiser, scaler, state)
        if stop := run.save_if_due_or_asked(ends_epoch, content):
            return stop
        if ends_epoch and validation:
            scores = validate(model, validation, loss_terms, weights, args, device)
            run.write({'step': step + 1, 'epoch': epoch, **scores})
    return checkpoint.stop_asked()


def autocast(precision, device):
    """The context in which the networks run in this precision."""
    return torch.autocast(device.type, LOW.get(precision), enabled=precision in LOW)


def share_gradients(model, device):
    """Wrap the model in DDP, which averages its gradients over the ranks in each backward pass.

    Paper [24]: the release calls the module inside the wrapper, which leaves out the averaging, so
    each of its two processes trains a model of its own.
    """
    devices = [device.index] if device.type == 'cuda' else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def tell_skipped(batch, before):
    """Print which unreadable pairs of a batch were replaced by others. -> how many

    before: how many earlier batches had. ValueError if a pair could not be replaced.
    """
    if batch['errors']:
        raise ValueError(str(batch['errors'][0]))
    skipped = [sentence for sentences in batch['unreadable'] for sentence in sentences]
    for number, sentence in enumerate(skipped, before + 1):
        tqdm.write(f'skipped ({number} so far): {sentence}')
    return len(skipped)


def refuse_not_finite(parts, optimiser, precision, step, batches, folder):
    """ValueError where the loss or a gradient is not finite, before the weights are changed."""
    loss = sum(part['loss'].item() for part in parts) / len(parts)
    finite = math.isfinite(loss)
    if finite and precision != 'fp16':      # fp16 gradients may overflow: GradScaler skips the step
        gradients = [p.grad for group in optimiser.param_groups for p in group['params']]
        finite = torch.nn.utils.get_total_norm(gradients).isfinite().item()
    if not finite:
        ids = ', '.join(i for batch in batches for i in batch['id'])
        last = folder / 'last.pt'
        raise ValueError(f'the loss is {loss} or a gradient is not finite at step {step} on the '
                         f'pairs {ids}: lower --lr or look at these files; last good checkpoint: '
                         f'{last if last.exists() else "none yet"}')


@torch.no_grad()
def validate(model, validation, loss_terms, weights, args, device):
    """Eq. 5 (never Eq. 7) and retrieval accuracy on held-out pairs, without dropout.

    -> {'val_loss', 'val_retrieval', ..., 'val_n'}; retrieval: the share of masked images v_I whose
    most similar A in the batch is that of their own sound.
    Paper [26]: no validation is mentioned, and the release watches the VGG-SS test set. Here only
    the pairs of val.csv are used.
    """
    model.eval()
    torch.manual_seed(0)                    # the same Gumbel noise in every validation
    totals, count = {}, 0
    size = args.batch_size // rank_and_processes()[1]
    for batch in loader(validation, args.workers, batch_size=size):
        if batch['errors'] and not args.skip_bad_samples:
            raise ValueError(str(batch['errors'][0]))
        B = len(batch['id'])
        if B < 2:                           # one pair has no negatives
            continue
        with autocast(args.precision, device):
            out = model(batch['image'].to(device), batch['wav'].to(device), args.image_mask,
                        args.feature_mask)
        terms = loss_terms(out)
        found = losses.cosine_similarities(out.v_I.float(), out.A.float()).argmax(1).cpu()
        values = {**terms, 'loss': losses.total_loss(terms, weights),
                  'retrieval': (found == torch.arange(B)).float().mean()}
        totals = {k: totals.get(k, 0) + float(v) * B for k, v in values.items()}
        count += B
    return {**{f'val_{k}': v / count for k, v in totals.items()}, 'val_n': count}


def checkpoint_of(args, model, optimiser, scaler, state):
    """What last.pt holds: the trained weights under the released names, how the model was made,
    and what --resume needs."""
    return {**trained_state(model), 'prompt': args.prompt, 'audio_tokens': args.audio_tokens,
            'preset': args.preset, 'variant': args.variant,
            'trainer': {**state, 'optimiser': optimiser.state_dict(),
                        'scaler': scaler.state_dict()}}


# ============ before and after the loop ============

def train(args):
    """One run: data, model, --resume, the loop, held-out scores. -> the exit code"""
    device = checkpoint.start_processes(args.device)
    refuse_uneven(args.batch_size)
    run = checkpoint.Run(args.out, args.resume, args.overwrite, args.save_seconds)
    make_data(args.preset, args.data_root, args.data_root_given, args.captions_from,
              with_captions=args.lambda_c and not args.captions, device=args.device)
    pairs, validation = open_pairs(args)
    per_epoch = len(pairs) // args.batch_size // args.accumulate
    last_step = args.steps or args.epochs * per_epoch

    torch.manual_seed(args.seed)
    model, tokenizer = load_parts(args)
    model.to(device)
    # Some ablations never use w and b; DDP would wait for their gradients.
    # Paper [19]: silent on the heatmaps of a model that never trains w and b (Table 13, rows 2 and
    # 3). Here they are sigmoid(M_G + b/w) as always, with the initial b/w = 1.4.
    used = args.lambda_i or args.lambda_reg or args.lambda_f and args.feature_mask == 'image'
    model.masker_i.requires_grad_(args.image_mask == 'hard' and bool(used))
    trained = [p for p in model.parameters() if p.requires_grad]
    # Paper [27]: Adam with weight decay 1e-4, hence added to the gradient (not AdamW's), and on w
    # and b too (released code)
    optimiser = torch.optim.Adam(trained, args.lr, weight_decay=args.weight_decay,
                                 fused=device.type == 'cuda' or None)
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == 'fp16')

    C, row_of, digest = None, {}, None
    if args.lambda_c:
        path = args.captions or captions_path(args.data_root, args.captions_from)
        C, row_of, digest = load_answers(path, model, tokenizer, pairs.ids)
        C = C.to(device)
    settings = {name: getattr(args, name) for name in SETTINGS}
    settings |= {'answers': digest, 'pairs': checksum(pairs.ids)}
    state = run.resume(model, optimiser, scaler, settings) if args.resume else None
    if state is None:
        state = {'step': 0, 'seconds': 0.0, 'skipped': 0, 'untrained': None}
        if run.first:
            scores, _ = held_out(model, tokenizer, args.preset, args.data_root, rows=['ours'])
            state['untrained'] = scores.get('ours')
    elif args.lr_schedule == 'linear' and state['last_step'] != last_step:
        run.say(f'the rate was to reach 0 after step {state["last_step"]}: now it does after step '
                f'{last_step}')
    state.update(last_step=last_step, settings=settings)
    if args.precision in LOW:
        model.hold_frozen(LOW[args.precision])
    if args.cache_audio is not None:
        folder = args.cache_audio or Path(args.data_root, 'cache/beats')
        pairs.features = AudioFeatures(folder, model.beats, pairs.seconds, pairs.ids,
                                       args.cache_share)
        if run.first:
            pairs.features.tell_size()

    with run.steps_from(state['step'], state['seconds'], args.batch_size * args.accumulate):
        stop = take_steps(args, run, device, model, optimiser, scaler, pairs, validation,
                          (C, row_of), state)
    if stop:
        return run.leave(stop, state['step'])
    if run.first:
        finish(args, run, model, tokenizer, state, len(pairs.absent))
    checkpoint.wait_for_all()
    return 0


def refuse_uneven(batch_size):
    """ValueError unless the batch divides among the processes, with two pairs or more on each."""
    processes = rank_and_processes()[1]
    if batch_size % processes:
        raise ValueError(f'--batch-size {batch_size} does not divide among {processes} processes')
    if batch_size // processes < 2:
        raise ValueError('every process needs at least 2 pairs: a contrastive loss has no '
                         'negatives otherwise')


def make_data(preset, data_root, given, captions_from, with_captions, device):
    """Draw the miniature's data, and caption them for Eq. 7, where they do not exist yet."""
    if preset == 'miniature' and not given and rank_and_processes()[0] == 0:
        from miniature import world
        world.build(data_root)
        if with_captions and not captions_path(data_root, captions_from).exists():
            make_captions(captions_from, device)
    checkpoint.wait_for_all()


def open_pairs(args):
    """-> the training pairs, and the validation pairs in the first process (None elsewhere)"""
    rank, _ = rank_and_processes()
    config = PRESETS[args.preset]
    read = partial(VGGSound, args.data_root, image_size=config.image_size, seconds=config.seconds,
                   seed=args.seed, skip_bad=args.skip_bad_samples)
    pairs = read(split='train', augmented=True)
    has_validation = Path(args.data_root, 'vggsound/val.csv').exists()
    validation = read(split='val') if has_validation and rank == 0 else None
    agree(checksum(pairs.ids),
          f'{pairs.list}: process {rank} finds {len(pairs)} samples with files, and not all '
          'processes find the same: give every machine the same data')
    if len(pairs) < args.batch_size * args.accumulate:
        raise ValueError(f'{pairs.list} has {len(pairs)} samples, fewer than {args.accumulate} '
                         f'batch(es) of {args.batch_size}: add samples or lower --batch-size')
    if rank == 0:
        print_other_splits(pairs.list)
        if pairs.absent:
            print(f'left out {len(pairs.absent)} samples of {pairs.list} without files, e.g. '
                  f'{pairs.absent[0]}')
        if not has_validation:
            print(f'no {args.data_root}/vggsound/val.csv: training without validation')
    return pairs, validation


def checksum(ids):
    """A number that differs, very likely, for another list of pairs."""
    return zlib.crc32(' '.join(ids).encode('utf-8'))


def load_parts(args):
    """-> model, tokenizer; the part to train has random weights: call torch.manual_seed before"""
    return load_model(args.preset, prompt=args.prompt, audio_tokens=args.audio_tokens,
                      clipseg=args.clipseg, beats=args.beats)


def finish(args, run, model, tokenizer, state, absent):
    """Score held-out scenes, draw the pictures and write summary.json, which marks a finished run.

    absent: how many pairs were left out because they have no files.
    """
    if args.precision in LOW:       # its frozen weights are rounded; evaluate.py's are in float32
        trained, device = trained_state(model), next(model.parameters()).device
        model, tokenizer = load_parts(args)
        load_trained(model, trained, args.out / 'last.pt')
        model.to(device)
    scores, counts = held_out(model.eval(), tokenizer, args.preset, args.data_root)
    columns = {'untrained': state['untrained'], 'trained': scores.get('ours'),
               'oracle': scores.get('oracle'), 'ceiling': scores.get('ceiling')}
    shown = {'cIoU': 1, 'AUC': 1, 'mIoU': 1, 'mIoU_multi': 1, 'both_right': 1,
             'area_silence': 100, 'area_noise': 100}    # areas: fractions, printed in per cent
    rows = []
    for name, factor in shown.items():
        values = [(column or {}).get(name) for column in columns.values()]
        rows.append([None if value is None else value * factor for value in values])
    print(tables.table([[f'{name}, %', *row] for name, row in zip(shown, rows)], ['', *columns]))
    attempt(args.out / 'loss.png', curves.loss_curve, args.out / 'log.jsonl', args.out / 'loss.png',
            args.p_pos, args.p_neg)
    attempt(args.out / 'before_after.png', draw_before_and_after, model, tokenizer, args)
    seconds = round(run.seconds(), 1)
    print(f'{args.out}: seed {args.seed}, {state["step"]} steps, {seconds:.0f} s in all, '
          f'n = {counts}')
    summary = {**columns, 'seconds': seconds, 'seed': args.seed, 'n': counts,
               'skipped': {'without_files': absent, 'unreadable': state['skipped']}}
    checkpoint.write_file(args.out / 'summary.json', json.dumps(summary, indent=1))


def draw_before_and_after(model, tokenizer, args):
    """Held-out frames under the weights that this run began with and those that it ended with."""
    torch.manual_seed(args.seed)            # gives the initial weights of train() again
    untrained, _ = load_parts(args)
    untrained.to(next(model.parameters()).device)
    before_after_sheet(untrained, model, tokenizer, args.preset, args.data_root,
                       args.out / 'before_after.png')


# ============ the command line ============

def refuse_ignored(parser, given, variant):
    """parser.error for an option that would have no effect.

    Options of a loss term with weight 0 are allowed, so that a sweep over the weight can keep them.
    """
    for name in ('lambda_c', 'captions', 'captions_from', 'same_answers'):
        if name in given and variant == 'av':
            parser.error(f'{given[name]} is for --variant av_llm: name that, or leave it out')
    for one, other in (('epochs', 'steps'), ('captions', 'captions_from')):
        if one in given and other in given:
            parser.error(f'{given[one]} and {given[other]} do not go together: leave one out')
    if 'cache_share' in given and 'cache_audio' not in given:
        parser.error('--cache-share is for --cache-audio: name that, or leave it out')


LIMITS = {
    'epochs': (1, 1e9), 'steps': (1, 1e12), 'batch_size': (2, 1e6), 'workers': (0, 1e3),
    'seed': (0, 2**63 - 1), 'lr': (1e-12, 10), 'tau': (1e-6, 1e6), 'weight_decay': (0, 10),
    'save_seconds': (0, 1e9), 'p_pos': (0, 1), 'p_neg': (0, 1), 'cache_share': (1e-6, 1),
    'pair_chunk': (1, 1e9), 'accumulate': (1, 1e6), 'lambda_i': (0, 1e6), 'lambda_f': (0, 1e6),
    'lambda_reg': (0, 1e6), 'lambda_c': (0, 1e6)}


def by_preset(name):
    """A setting of each preset's recipe, as text for --help."""
    return ', '.join(f'{preset}: {getattr(recipe, name)}' for preset, recipe in RECIPES.items())


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group('the run').add_argument
    add('--preset', choices=list(PRESETS), default='miniature', help='scale (default: miniature)')
    add('--variant', choices=['av', 'av_llm'], default='av',
        help='av: Eq. 5 (default); av_llm: Eq. 7')
    add('--seed', type=int, default=0)
    add('--out', type=some_path,
        help='folder of the run (default: runs/<preset>-<variant>-seed<seed>)')
    add('--resume', action='store_true', help='go on from last.pt; without one, start afresh')
    add('--overwrite', action='store_true', help='start over in a folder that already holds a run')
    add('--data-root', type=some_path, help='folder of the datasets (default: the preset\'s)')
    add('--clipseg', type=some_path,
        help='hub name or folder of the CLIPSeg weights (default: the preset\'s)')
    add('--beats', type=some_path, help='BEATs checkpoint (default: the preset\'s)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: the best that is there')
    add('--workers', type=int, help='worker processes that load data (default: miniature 0, paper '
        '8)')
    add('--precision', choices=['float32', 'bf16', 'fp16'], default='float32',
        help='of the networks; masks and losses stay in float32')
    add('--save-seconds', type=float,
        help=f'seconds between checkpoints, at least ({by_preset("save_seconds")})')
    add('--skip-bad-samples', action='store_true',
        help='print and count unusable pairs, and train on others in their places')

    add = parser.add_argument_group('speed and memory (the result is the same)').add_argument
    add('--cache-audio', nargs='?', const='', metavar='DIR',
        help='keep the frozen BEATs features on disk (default DIR: cache/beats in the data root); '
             'the size is printed first')
    add('--cache-share', type=float, default=1.0, metavar='SHARE',
        help='cache only this share of train.csv, counted from its first line (default: 1)')
    add('--pair-chunk', type=int, metavar='N',
        help='decode N pairs of an image and an audio at a time, with activation checkpointing: '
             'less memory, more time')

    add = parser.add_argument_group('optimisation (section 4.1)').add_argument
    add('--epochs', type=int, help=f'passes over the training set ({by_preset("epochs")})')
    add('--steps', type=int, help=f'stop after this many steps instead ({by_preset("steps")})')
    add('--batch-size', type=int, help=f'pairs over all processes ({by_preset("batch_size")})')
    add('--lr', type=float,
        help=f'Adam ({by_preset("lr")}); the release diverges at 1e-3 and 4e-4')
    add('--lr-schedule', choices=['constant', 'linear'],
        help='linear: falls to 0 at the last step; --resume with other --steps changes the slope '
             f'({by_preset("lr_schedule")})')
    add('--weight-decay', type=float, help=f'({by_preset("weight_decay")})')
    add('--tau', type=float, default=losses.TAU, help='temperature of Eq. 1 (default: %(default)s)')
    add('--accumulate', type=int, default=1, metavar='N',
        help='average the gradients of N batches in a step; each batch has its own negatives '
             '(default: 1)')
    add('--negatives', choices=['local', 'global'], default='local',
        help='negatives of a pair: the other pairs of its own process (default, as in the paper), '
             'or of all processes (all-gather)')

    add = parser.add_argument_group('objective and its ablations (section 4.3)').add_argument
    add('--lambda-i', type=float, default=1.0, help='weight of L_ACL_I; 0: without it (Table 9)')
    add('--lambda-f', type=float, default=1.0, help='weight of L_ACL_F (Table 9)')
    add('--lambda-reg', type=float, default=1.0, help='weight of L_Reg (Table 9)')
    add('--lambda-c', type=float, default=1.0,
        help='weight of L_ACL_C, with --variant av_llm (Table 15; default: 1)')
    add('--captions', type=some_path,
        help='captions.py\'s file (default: captions.jsonl in the data root)')
    add('--captions-from', choices=['both', 'image', 'audio'], default='both',
        help='which captions the answers were made from (Table 10; default: both)')
    add('--same-answers', choices=['negatives', 'masked'], default='negatives',
        help='pairs of a batch with equal answers in L_ACL_C (losses.py; default: negatives)')
    add('--p-pos', type=float, default=losses.P_POS,
        help='area prior p+ (Table 14; default: %(default)s)')
    add('--p-neg', type=float, default=losses.P_NEG,
        help='area prior p- (Table 14; default: %(default)s)')
    add('--area', choices=['release', 'mean', 'sum'], default='release',
        help='reading of Eq. 4 (losses.py)')
    add('--acl-f', choices=['paper', 'release'], default='paper',
        help='which audio v^F_ij is compared with in Eq. 3: A_j (default) or A_i (losses.py)')
    add('--image-mask', choices=['hard', 'soft', 'feature'], default='hard',
        help='mask of the image in L_ACL_I (Table 13; masks.py)')
    add('--feature-mask', choices=['feature', 'image'], default='feature',
        help='mask of the features in L_ACL_F (Table 13; masks.py)')
    add('--audio-tokens', type=int, choices=[1, 2, 4, 8], default=1,
        help='how many tokens <*> stands for (Table 11)')
    add('--prompt', default=PROMPT,
        help='<*> stands for the sound (Table 12; default: "%(default)s")')

    args = parser.parse_args(argv)
    refuse_ignored(parser, checkpoint.given_options(parser, argv), args.variant)
    recipe = vars(RECIPES[args.preset])
    if args.epochs is not None:
        recipe = {**recipe, 'steps': None}
    for name, value in recipe.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.workers is None:
        args.workers = 8 if args.preset == 'paper' else 0
    args.out = Path(args.out or f'runs/{args.preset}-{args.variant}-seed{args.seed}')
    args.data_root_given = bool(args.data_root)
    args.data_root = args.data_root or PRESETS[args.preset].data_root
    outputs = [('--out', args.out / name) for name in checkpoint.RUN_FILES]
    inputs = [(f'--{name}', getattr(args, name)) for name in ('captions', 'beats', 'clipseg')]
    if sentence := checkpoint.overwritten(outputs, inputs):
        parser.error(sentence)
    for name, (least, most) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            parser.error(f'--{name.replace("_", "-")} must lie between {least:g} and {most:g}, '
                         f'not {value}')
    if args.variant == 'av':
        args.lambda_c = 0.0                 # Eq. 5 is Eq. 7 without the caption term
    if not (args.lambda_i or args.lambda_f or args.lambda_reg or args.lambda_c):
        parser.error('at least one of --lambda-i, --lambda-f, --lambda-reg and --lambda-c must be '
                     'above 0')
    return args


if __name__ == '__main__':
    checkpoint.watch_signals()
    checkpoint.run_script('train.py', lambda: train(parse_args()),
                          'interrupted; the same command with --resume goes on from the last '
                          'checkpoint')
