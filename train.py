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
    # Before NumPy and torch start threads, which inherit the signal mask. checkpoint.watch_signals
    # waits for these; SIGCHLD is blocked only to keep DataLoader's handler from interrupting a
    # computation. Windows has no signal mask: there Ctrl-C interrupts as in any script.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP,
                                              signal.SIGUSR1, signal.SIGCHLD})

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import checkpoint
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import losses
from captions import captions_path, load_answers, make_captions
from checkpoint import rank_and_processes, some_path
from data import (cache_features, checksum, draw_miniature, loader, open_pairs, steps_per_epoch,
                  training_steps)
from figures import attempt, curves, tables
from heldout import before_after_sheet, held_out
from model import PRESETS, PROMPT, load_model, trained_state

RECIPES = {     # the defaults of each preset, all of them options; the paper's are of section 4.1
    'paper': {
        'epochs': 20,
        'steps': None,              # a number of steps replaces the epochs
        # Paper [23]: 16, which was 8 on each of two GPUs, so with 7 negatives, not 15
        'batch_size': 16,
        'lr': 1e-4,
        'lr_schedule': 'constant',  # section 4.1 names no other
        'weight_decay': 1e-4,
        'save_seconds': 600,        # least time between two checkpoints of an epoch
        'workers': 8},              # processes that load data
    # Paper [11]: 180,000 steps at 1e-4. The miniature takes 400, at twenty times that rate. With
    # only twelve classes, a batch of more than 8 would often hold a class twice. Many more steps
    # only raise b / w, as p+ = 0.4 asks for masks larger than these objects. At a constant rate of
    # 2e-3 one or two classes have wrong masks at any step, and others twenty steps later, so the
    # rate falls to 0.
    'miniature': {
        'epochs': 1, 'steps': 400, 'batch_size': 8, 'lr': 2e-3, 'lr_schedule': 'linear',
        'weight_decay': 1e-4, 'save_seconds': 10, 'workers': 0}}

LOW = {'bf16': torch.bfloat16, 'fp16': torch.float16}       # --precision below float32
FREE = {    # options that may change with --resume: where, how fast and how long a run trains
    'out', 'resume', 'overwrite', 'data_root', 'data_root_given', 'workers', 'save_seconds',
    'skip_bad_samples', 'cache_audio', 'cache_share', 'pair_chunk', 'epochs', 'steps', 'device',
    'captions'}     # the answers in that file may not change: 'answers' of a run's settings


# ============ the loop ============

@dataclass(frozen=True)
class Method:
    """The functions that a training step calls, with the options of this run (see train)."""
    seed: int
    rate: Callable              # step -> learning rate
    forward: Callable           # batch -> model.Alignment: Figure 2
    loss_terms: Callable        # Alignment -> {'acl_i', 'acl_f', 'reg'}: Eq. 1 to 4
    acl_c: Callable | None      # A (N, D), ids of the batch -> Eq. 6; None in Eq. 5
    weights: dict               # {term: its lambda in Eq. 5 and 7}


def take_steps(method, steps, model, optimiser, scaler, run, state, validate):
    """Take these steps (data.training_steps). -> number of the signal that stopped it, or 0

    run: checkpoint.Run, which logs and saves. state: the counters that a checkpoint keeps.
    validate: called after each epoch, -> {'val_loss', ...}; or None.
    """
    rank, _ = rank_and_processes()
    bar = tqdm(steps, total=state['last_step'], initial=state['step'], disable=rank > 0,
               unit=' steps', dynamic_ncols=True)
    for step, epoch, ends_epoch, batches in bar:
        # Each step is seeded, so its Gumbel noise and dropout do not depend on --resume
        torch.manual_seed(hash((method.seed, rank, step)) % 2**63)
        rate = method.rate(step)
        optimiser.param_groups[0]['lr'] = rate
        optimiser.zero_grad()
        model.train()
        parts = []
        for batch in batches:                                   # one, or --accumulate N
            state['skipped'] += print_skipped(batch, state['skipped'])
            out = method.forward(batch)     # Figure 2: A, M_G, M_I, M_F, v_I and v_D
            terms = method.loss_terms(out)  # acl_i: Eq. 1; acl_f: Eq. 2, 3; reg: Eq. 4
            if method.acl_c:
                terms['acl_c'] = method.acl_c(out.A.float(), batch['id'])   # Eq. 6
            loss = losses.total_loss(terms, method.weights)     # Eq. 5; with acl_c Eq. 7
            scaler.scale(loss / len(batches)).backward()

            positive, negative = losses.mean_areas(out.areas.detach(), out.first)
            parts.append({'loss': loss, **terms, 'area_pos': positive, 'area_neg': negative})
        check_finite(parts, optimiser, scaler, step, batches, run.last)
        scaler.step(optimiser)
        scaler.update()

        if step % checkpoint.LOG_EVERY == 0:
            mask = model.masker_i
            means = run.log(step, epoch, parts, w=mask.w.item(), b=mask.b.item(), lr=rate)
            bar.set_postfix({name: f'{value:.2f}' for name, value in means.items()})
        state.update(step=step + 1, seconds=run.seconds())
        content = partial(checkpoint_of, model, optimiser, scaler, state)
        if stop := run.save_if_due_or_asked(ends_epoch, content):
            return stop
        if ends_epoch and validate:
            run.write({'step': step + 1, 'epoch': epoch, **validate()})
    return checkpoint.stop_asked()


def forward(batch, model, device, precision, beats=None, cache=None, **options):
    """Figure 2 of a batch, the networks in this precision. -> model.Alignment

    cache: AudioFeatures of these beats, or None. options: of SoundLocalizer.forward.
    """
    autocast = torch.autocast(device.type, LOW.get(precision), enabled=precision in LOW)
    image = batch['image'].to(device, non_blocking=True)        # (B, 3, H, W)
    wav = batch['wav'].to(device, non_blocking=True)            # (B, samples)
    features = cache and cache.complete(batch, autocast(beats), device)
    with autocast:
        return model(image, wav, features=features, **options)


def caption_term(C, row_of, gather, tau, same_answers, A, ids):
    """Eq. 6 of a batch. C (texts, D), row_of {id: row of C}, A (N, D) -> scalar"""
    rows = gather(torch.tensor([row_of.get(i, -1) for i in ids]))       # (N,)
    return losses.acl_c_of_answered(C, rows, A, tau, same_answers)


def average_gradients(model, device):
    """Wrap the model in DDP, whose backward pass averages the gradients over the ranks.

    Paper [24]: the release calls the module inside the wrapper, without the averaging, so each of
    its two processes trains a model of its own.
    """
    if rank_and_processes()[1] == 1:
        return model
    devices = [device.index] if device.type == 'cuda' else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def print_skipped(batch, before):
    """Print which unreadable pairs were replaced, after `before` earlier ones. -> how many

    ValueError if a pair could not be replaced.
    """
    if batch['errors']:
        raise ValueError(str(batch['errors'][0]))
    skipped = sum(batch['unreadable'], [])
    for number, sentence in enumerate(skipped, before + 1):
        tqdm.write(f'skipped ({number} so far): {sentence}')
    return len(skipped)


def check_finite(parts, optimiser, scaler, step, batches, last):
    """ValueError where the loss or a gradient is not finite, before the weights are changed."""
    loss = sum(part['loss'].item() for part in parts) / len(parts)
    finite = math.isfinite(loss)
    if finite and not scaler.is_enabled():  # fp16 gradients may overflow: GradScaler skips the step
        gradients = [p.grad for p in optimiser.param_groups[0]['params']]
        finite = torch.nn.utils.get_total_norm(gradients).isfinite().item()
    if not finite:
        ids = ', '.join(i for batch in batches for i in batch['id'])
        raise ValueError(f'the loss is {loss} or a gradient is not finite at step {step} on the '
                         f'pairs {ids}: lower --lr or look at these files; last good checkpoint: '
                         f'{last if last.exists() else "none yet"}')


@torch.no_grad()
def validate(pairs, model, forward, loss_terms, weights, batch_size, workers):
    """Eq. 5 (never Eq. 7) and retrieval accuracy on held-out pairs, without dropout.

    -> {'val_loss', 'val_retrieval', ..., 'val_n'}; retrieval: the share of masked images v_I whose
    most similar A in the batch is that of their own sound.
    Paper [26]: no validation is mentioned, and the release watches the VGG-SS test set. Here only
    the pairs of val.csv are used.
    """
    model.eval()
    torch.manual_seed(0)                    # the same Gumbel noise in every validation
    totals, count = {}, 0
    for batch in loader(pairs, workers, batch_size=batch_size):
        if batch['errors'] and not pairs.skip_bad:
            raise ValueError(str(batch['errors'][0]))
        B = len(batch['id'])
        if B < 2:                           # one pair has no negatives
            continue
        out = forward(batch)
        terms = loss_terms(out)
        S = losses.cosine_similarities(out.v_I.float(), out.A.float())      # (B, B)
        right = S.argmax(1).cpu() == torch.arange(B)
        means = {**terms, 'loss': losses.total_loss(terms, weights),
                 'retrieval': right.float().mean()}
        totals = {name: totals.get(name, 0) + float(mean) * B for name, mean in means.items()}
        count += B
    return {**{f'val_{name}': total / count for name, total in totals.items()}, 'val_n': count}


def checkpoint_of(model, optimiser, scaler, state):
    """last.pt: the trained weights under the released names, some options, --resume's 'trainer'."""
    named = ('prompt', 'audio_tokens', 'preset', 'variant')
    return {**trained_state(model), **{name: state['settings'][name] for name in named},
            'trainer': {**state, 'optimiser': optimiser.state_dict(),
                        'scaler': scaler.state_dict()}}


# ============ before and after the loop ============

def train(args):
    """One run: data, model, --resume, the loop, held-out scores. -> the exit code"""
    device = checkpoint.start_processes(args.device)
    rank, processes = rank_and_processes()
    run = checkpoint.Run(args.out, args.resume, args.overwrite, args.save_seconds)
    make_data(args.preset, args.data_root, args.data_root_given, args.captions_from,
              with_captions=args.lambda_c and not args.captions, device=args.device)
    config = PRESETS[args.preset]
    pairs, validation = open_pairs(args.data_root, config.image_size, config.seconds, args.seed,
                                   args.skip_bad_samples)
    per_epoch = steps_per_epoch(pairs, args.batch_size, processes, args.accumulate)
    last_step = args.steps or args.epochs * per_epoch

    torch.manual_seed(args.seed)
    load = partial(load_model, args.preset, prompt=args.prompt, audio_tokens=args.audio_tokens,
                   clipseg=args.clipseg, beats=args.beats)
    model, tokenizer = load()
    uses_M_I = args.lambda_i or args.lambda_reg or args.lambda_f and args.feature_mask == 'image'
    optimiser = adam(model.to(device), args.lr, args.weight_decay,
                     with_mask=args.image_mask == 'hard' and bool(uses_M_I))
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == 'fp16')

    loss_terms = partial(losses.loss_terms, tau=args.tau, p_pos=args.p_pos, p_neg=args.p_neg,
                         area=args.area, acl_f_reading=args.acl_f)
    weights = {'acl_i': args.lambda_i, 'acl_f': args.lambda_f, 'reg': args.lambda_reg,
               'acl_c': args.lambda_c}
    gather = losses.all_gather if args.negatives == 'global' else lambda rows: rows
    acl_c = answers = None
    if args.lambda_c:
        path = args.captions or captions_path(args.data_root, args.captions_from)
        C, row_of, answers = load_answers(path, model, tokenizer, pairs.ids)
        acl_c = partial(caption_term, C.to(device), row_of, gather, args.tau, args.same_answers)

    settings = {name: value for name, value in vars(args).items() if name not in FREE}
    settings |= {'answers': answers, 'pairs': checksum(pairs.ids)}
    score = partial(held_out, model, tokenizer, args.preset, args.data_root, rows=['ours'])
    state = run.resume(model, optimiser, scaler, settings) if args.resume else None
    state = begin(run, state, last_step, settings, score)

    if args.precision in LOW:
        model.hold_frozen(LOW[args.precision])
    if args.cache_audio:
        cache_features(pairs, model.beats, args.cache_audio, args.cache_share)
    run_model = partial(forward, device=device, precision=args.precision,
                        image_mask=args.image_mask, feature_mask=args.feature_mask)
    method = Method(
        seed=args.seed,
        rate=lambda step: args.lr * (1.0 if args.lr_schedule == 'constant'
                                     else (last_step - step) / last_step),
        forward=partial(run_model, model=average_gradients(model, device), beats=model.beats,
                        cache=pairs.features, pair_chunk=args.pair_chunk, negatives=args.negatives),
        loss_terms=partial(loss_terms, gather=gather), acl_c=acl_c, weights=weights)
    check = validation and partial(validate, validation, model, partial(run_model, model=model),
                                   loss_terms, weights, args.batch_size // processes, args.workers)
    steps = training_steps(pairs, state['step'], last_step, args.batch_size, args.accumulate, rank,
                           processes, args.workers)
    with run.steps_from(state['step'], state['seconds'], args.batch_size * args.accumulate):
        stop = take_steps(method, steps, model, optimiser, scaler, run, state, check)
    if stop:
        return run.leave(stop, state['step'])
    finish(run, load, model, tokenizer, args.data_root, state, absent=len(pairs.absent))
    return 0


def make_data(preset, data_root, given, captions_from, with_captions, device):
    """Draw the miniature's data and, for Eq. 7, make their captions, unless they exist."""
    if preset == 'miniature' and not given and rank_and_processes()[0] == 0:
        draw_miniature(data_root)
        if with_captions and not captions_path(data_root, captions_from).exists():
            make_captions(captions_from, device)
    checkpoint.wait_for_all()


def adam(model, lr, weight_decay, with_mask):
    """The optimiser of the audio projection and, with_mask, of MaskGen_I's w and b.

    Some ablations never use w and b; DDP would wait for their gradients.
    Paper [19]: silent on the heatmaps of a model that never trains w and b (Table 9, row B; Table
    13, rows 2 and 3). Here they are sigmoid(M_G + b/w) as always, with the initial b/w = 1.4.
    Paper [27]: Adam with weight decay 1e-4, hence added to the gradient (not AdamW's), and on w
    and b too (released code).
    """
    model.masker_i.requires_grad_(with_mask)
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = trained[0].is_cuda or None
    return torch.optim.Adam(trained, lr, weight_decay=weight_decay, fused=fused)


def begin(run, state, last_step, settings, score):
    """The state that a checkpoint keeps: of --resume, with the new last step, or of step 0.

    score: () -> held_out's scores of the untrained model. ValueError past the last step.
    """
    if state is None:
        untrained = score()[0].get('ours') if run.first else None
        state = {'step': 0, 'seconds': 0.0, 'skipped': 0, 'untrained': untrained}
    elif state['step'] > last_step:
        raise ValueError(f'{run.last} is of step {state["step"]}, past the last one, {last_step}: '
                         'ask for more --steps or --epochs')
    elif settings['lr_schedule'] == 'linear' and state['last_step'] != last_step:
        run.say(f'the rate was to reach 0 after step {state["last_step"]}: now it does after step '
                f'{last_step}')
    return {**state, 'last_step': last_step, 'settings': settings}


def finish(run, load, model, tokenizer, data_root, state, absent):
    """Scores, pictures and summary.json, which marks a finished run; by the first process alone.

    load: load_model with the options of this run. absent: how many pairs had no files.
    """
    if not run.first:
        return checkpoint.wait_for_all()
    settings = state['settings']
    preset, seed = settings['preset'], settings['seed']
    device = next(model.parameters()).device
    if settings['precision'] in LOW:    # its frozen weights are rounded; evaluate.py's are not
        model = load(checkpoint=run.last)[0].to(device)
    scores, counts = held_out(model.eval(), tokenizer, preset, data_root)
    columns = {'untrained': state['untrained'], 'trained': scores.get('ours'),
               'oracle': scores.get('oracle'), 'ceiling': scores.get('ceiling')}
    rows = []
    for name in ('cIoU', 'AUC', 'mIoU', 'mIoU_multi', 'both_right', 'area_silence', 'area_noise'):
        factor = 100 if name.startswith('area') else 1      # areas are fractions
        values = [(column or {}).get(name) for column in columns.values()]
        rows.append([f'{name}, %', *(value and value * factor for value in values)])
    print(tables.table(rows, ['', *columns]))

    log, loss, sheet = (run.folder / name for name in ('log.jsonl', 'loss.png', 'before_after.png'))
    attempt(loss, curves.loss_curve, log, loss, settings['p_pos'], settings['p_neg'])
    attempt(sheet, draw_before_and_after, load, seed, model, tokenizer, preset, data_root, sheet)
    seconds = round(run.seconds(), 1)
    print(f'{run.folder}: seed {seed}, {state["step"]} steps, {seconds:.0f} s in all, n = {counts}')
    summary = {**columns, 'seconds': seconds, 'seed': seed, 'n': counts,
               'skipped': {'without_files': absent, 'unreadable': state['skipped']}}
    checkpoint.write_file(run.folder / 'summary.json', json.dumps(summary, indent=1))
    checkpoint.wait_for_all()


def draw_before_and_after(load, seed, model, tokenizer, preset, data_root, path):
    """Held-out frames under the weights that this run began with and those that it ended with."""
    torch.manual_seed(seed)                 # the same initial weights as in train()
    untrained = load()[0].to(next(model.parameters()).device)
    before_after_sheet(untrained, model, tokenizer, preset, data_root, path)


# ============ the command line ============

LIMITS = {
    'epochs': (1, 1e9), 'steps': (1, 1e12), 'batch_size': (2, 1e6), 'workers': (0, 1e3),
    'seed': (0, 2**63 - 1), 'lr': (1e-12, 10), 'tau': (1e-6, 1e6), 'weight_decay': (0, 10),
    'save_seconds': (0, 1e9), 'p_pos': (0, 1), 'p_neg': (0, 1), 'cache_share': (1e-6, 1),
    'pair_chunk': (1, 1e9), 'accumulate': (1, 1e6), 'lambda_i': (0, 1e6), 'lambda_f': (0, 1e6),
    'lambda_reg': (0, 1e6), 'lambda_c': (0, 1e6)}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Of several choices the first is the default, but where a preset sets another.')
    add = parser.add_argument_group('the run').add_argument
    add('--preset', choices=list(PRESETS), default='miniature', help='scale')
    add('--variant', choices=['av', 'av_llm'], default='av', help='Eq. 5 or Eq. 7')
    add('--seed', type=int, default=0)
    add('--out', type=some_path, help='folder (default: runs/<preset>-<variant>-seed<seed>)')
    add('--resume', action='store_true', help='go on from last.pt; without one, start afresh')
    add('--overwrite', action='store_true', help='start over in a folder that holds a run')
    add('--data-root', type=some_path, help='folder of the datasets (default: the preset\'s)')
    add('--clipseg', type=some_path, help='hub name or folder (default: the preset\'s)')
    add('--beats', type=some_path, help='checkpoint file (default: the preset\'s)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: the best that is there')
    add('--precision', choices=['float32', 'bf16', 'fp16'], default='float32',
        help='of the networks; masks and losses stay in float32')
    add('--skip-bad-samples', action='store_true',
        help='print and count unusable pairs, and train on others in their places')

    presets = '\n'.join(f'{preset}: {recipe}' for preset, recipe in RECIPES.items())
    add = parser.add_argument_group('set by the preset (section 4.1)', presets).add_argument
    add('--epochs', type=int, help='passes over the training set')
    add('--steps', type=int, help='stop after this many steps instead')
    add('--batch-size', type=int, help='pairs over all processes')
    add('--lr', type=float, help='of Adam; the release diverges at 1e-3 and 4e-4')
    add('--lr-schedule', choices=['constant', 'linear'],
        help='linear: falls to 0 at the last step; --resume with other --steps changes the slope')
    add('--weight-decay', type=float)
    add('--save-seconds', type=float, help='seconds between checkpoints, at least')
    add('--workers', type=int, help='worker processes that load data')

    add = parser.add_argument_group('negatives, speed and memory').add_argument
    add('--negatives', choices=['local', 'global'], default='local',
        help='other pairs of the same process (as in the paper), or of all (all-gather)')
    add('--accumulate', type=int, default=1, metavar='N',
        help='average the gradients of N batches in a step; each batch has its own negatives')
    add('--cache-audio', nargs='?', const='', metavar='DIR',
        help='keep the frozen BEATs features (default DIR: cache/beats in the data root)')
    add('--cache-share', type=float, default=1.0, metavar='SHARE',
        help='cache only this share of train.csv, counted from its first line')
    add('--pair-chunk', type=int, metavar='N',
        help='decode N pairs at a time, with activation checkpointing: less memory, more time')

    add = parser.add_argument_group('objective and its ablations (section 4.3)').add_argument
    add('--tau', type=float, default=losses.TAU, help='of Eq. 1 (default: %(default)s)')
    add('--lambda-i', type=float, default=1.0, help='weight of L_ACL_I (default: 1; Table 9)')
    add('--lambda-f', type=float, default=1.0, help='weight of L_ACL_F (default: 1; Table 9)')
    add('--lambda-reg', type=float, default=1.0, help='weight of L_Reg (default: 1; Table 9)')
    add('--lambda-c', type=float, default=1.0,
        help='weight of L_ACL_C, with --variant av_llm (default: 1; Table 15)')
    add('--captions', type=some_path, help='file (default: captions.jsonl in the data root)')
    add('--captions-from', choices=['both', 'image', 'audio'], default='both',
        help='which captions the answers were made from (Table 10)')
    add('--same-answers', choices=['negatives', 'masked'], default='negatives',
        help='pairs of a batch with equal answers in L_ACL_C (losses.py)')
    add('--p-pos', type=float, default=losses.P_POS, help='p+ (default: %(default)s; Table 14)')
    add('--p-neg', type=float, default=losses.P_NEG, help='p- (default: %(default)s; Table 14)')
    add('--area', choices=['release', 'mean', 'sum'], default='release',
        help='reading of Eq. 4 (losses.py)')
    add('--acl-f', choices=['paper', 'release'], default='paper',
        help='audio that Eq. 3 compares v^F_ij with: A_j or A_i (losses.py)')
    add('--image-mask', choices=['hard', 'soft', 'feature'], default='hard',
        help='mask of the image in L_ACL_I (Table 13; masks.py)')
    add('--feature-mask', choices=['feature', 'image'], default='feature',
        help='mask of the features in L_ACL_F (Table 13; masks.py)')
    add('--audio-tokens', type=int, choices=[1, 2, 4, 8], default=1,
        help='how many tokens <*> stands for (Table 11)')
    add('--prompt', default=PROMPT, help='<*> is the sound (Table 12; default: "%(default)s")')

    args = parser.parse_args(argv)
    given = checkpoint.given_options(parser, argv)
    for name, value in RECIPES[args.preset].items():
        if name not in given:
            setattr(args, name, value)
    if 'epochs' in given and 'steps' not in given:
        args.steps = None
    if args.variant == 'av' and 'lambda_c' not in given:
        args.lambda_c = 0.0                 # Eq. 5 is Eq. 7 without the caption term
    check_options(parser, args, given)
    args.out = Path(args.out or f'runs/{args.preset}-{args.variant}-seed{args.seed}')
    args.data_root_given = bool(args.data_root)
    args.data_root = args.data_root or PRESETS[args.preset].data_root
    if args.cache_audio == '':
        args.cache_audio = Path(args.data_root, 'cache/beats')
    outputs = [('--out', args.out / name) for name in checkpoint.RUN_FILES]
    inputs = [(f'--{name}', getattr(args, name)) for name in ('captions', 'beats', 'clipseg')]
    if sentence := checkpoint.overwritten(outputs, inputs):
        parser.error(sentence)
    return args


def check_options(parser, args, given):
    """parser.error for a value out of its limits, or an option that would have no effect.

    given: the options on the command line. Those of a loss term with weight 0 are allowed, so that
    a sweep over the weight can keep them.
    """
    for name, (least, most) in LIMITS.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            parser.error(f'--{name.replace("_", "-")} must lie between {least:g} and {most:g}, '
                         f'not {value}')
    if not (args.lambda_i or args.lambda_f or args.lambda_reg or args.lambda_c):
        parser.error('at least one of --lambda-i, --lambda-f, --lambda-reg and --lambda-c must be '
                     'above 0')
    for name in ('lambda_c', 'captions', 'captions_from', 'same_answers'):
        if name in given and args.variant == 'av':
            parser.error(f'{given[name]} is for --variant av_llm: name that, or leave it out')
    for one, other in (('epochs', 'steps'), ('captions', 'captions_from')):
        if one in given and other in given:
            parser.error(f'{given[one]} and {given[other]} do not go together: leave one out')
    if 'cache_share' in given and 'cache_audio' not in given:
        parser.error('--cache-share is for --cache-audio: name that, or leave it out')


if __name__ == '__main__':
    checkpoint.watch_signals()
    checkpoint.run_script('train.py', lambda: train(parse_args()),
                          'interrupted; the same command with --resume goes on from the last '
                          'checkpoint')
