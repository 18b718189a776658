"""Training: section 3.5 (Eq. 5), 3.6 (Eq. 7), the settings of section 4.1.

    python train.py --variant av            # the miniature, minutes on a laptop
    python train.py --variant av_llm        # with the language model's answers
    python train.py --preset paper          # real data (docs/datasets.md)
    torchrun --nproc_per_node=2 train.py --preset paper     # as in the paper
    python train.py --variant av --resume   # go on after a crash or a kill

The loop is take_steps. It trains the audio projection with its pooling, and
MaskGen_I's w and b; all else is frozen. The folder of a run holds last.pt,
previous.pt (the checkpoint before it), log.jsonl, loss.png, before_after.png
and summary.json (scores on held-out scenes before and after).
After SIGTERM (which clusters send before they kill), Ctrl-C, SIGHUP or
SIGUSR1 it finishes the current step, saves a checkpoint and ends.

Paper [25]: silent on which epoch counts; the release keeps the best one on
the VGG-SS test set. Here no test set chooses: the result is the model after
the last step.
"""

import signal

if __name__ == '__main__' and hasattr(signal, 'pthread_sigmask'):
    # Before NumPy and torch start threads, which inherit the signal mask.
    # checkpoint.watch_signals waits for these; SIGCHLD is blocked only to
    # keep DataLoader's handler from interrupting a computation. Windows has
    # no signal mask: there Ctrl-C interrupts as in any script.
    signal.pthread_sigmask(signal.SIG_BLOCK, {
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1,
        signal.SIGCHLD})

import argparse
import json
import math
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import checkpoint
import launch
import losses
from captions import captions_path, load_answers, make_captions
from data import (cache_features, check_read, draw_miniature, loader,
                  open_pairs, steps_per_epoch, training_steps)
from figures import attempt, curves
from heldout import before_after_sheet, held_out, table_of
from launch import between, rank_and_processes, some_path
from model import PRESETS, PROMPT, load_model, trained_state

# Defaults of each preset, all of them options; the paper's: section 4.1
RECIPES = {
    'paper': {
        'epochs': 20,
        # Paper [23]: 16, which was 8 on each of two GPUs, so with 7
        # negatives, not 15
        'batch_size': 16,
        'lr': 1e-4,
        'lr_schedule': 'constant',  # section 4.1 names no other
        'save_seconds': 600,        # between two checkpoints, at least
        'workers': 8},              # processes that load data
    # Paper [11]: 180,000 steps at 1e-4. The miniature takes 400, at a rate that
    # falls from twenty times that to 0: docs/results.md says why.
    'miniature': {
        'steps': 400,
        'batch_size': 8,
        'lr': 2e-3,
        'lr_schedule': 'linear',
        'save_seconds': 10,
        'workers': 0}}

# --precision below float32
HALF = {'bf16': torch.bfloat16, 'fp16': torch.float16}
# Options that may change with --resume: where, how fast and how long to train
MAY_CHANGE = {
    'out', 'resume', 'overwrite', 'save_seconds',
    'data_root', 'data_root_given', 'skip_bad_samples',
    'workers', 'device', 'cache_audio', 'cache_share', 'pair_chunk',
    'epochs', 'steps',
    'captions'}     # train() compares the answers, not the file's name


# ============ the loop ============

def take_steps(args, model, pairs, validation, answers, optimiser, scaler,
               run, state):
    """The loop of one training. -> the number of a signal that stopped it, or 0

    args: the options (parse_args). pairs, validation: data.open_pairs.
    answers, for Eq. 7: C (texts, D) and {id: its row of C}; else None.
    scaler: scales the loss in fp16, and does nothing in other precisions.
    run: checkpoint.Run. state: the step and what else --resume needs (train).
    """
    rank, processes = rank_and_processes()
    parallel = data_parallel(model.train())     # dropout, in audio_proj only
    last_step = state['last_step']
    steps = training_steps(pairs, state['step'], last_step, args.batch_size,
                           args.accumulate, rank, processes, args.workers)
    bar = tqdm(steps, total=last_step, initial=state['step'], disable=rank > 0,
               unit=' steps', dynamic_ncols=True)
    for step, epoch, ends_epoch, batches in bar:
        # Gumbel noise and dropout depend on the step, not on --resume
        torch.manual_seed(hash((args.seed, rank, step)) % 2**63)
        falling = (last_step - step) / last_step        # from 1 towards 0
        rate = args.lr * falling if args.lr_schedule == 'linear' else args.lr
        optimiser.param_groups[0]['lr'] = rate
        optimiser.zero_grad()
        parts = []                  # loss, terms and areas of each batch
        for batch in batches:       # one, or --accumulate N
            if args.skip_bad_samples:
                state['skipped'] = print_skipped(batch, state['skipped'])
            # Figure 2: A, M_G, M_I, M_F, v_I and v_D
            out = forward(parallel, batch, args.precision, pairs.features,
                          image_mask=args.image_mask, feature_mask=args.feature_mask,
                          negatives=args.negatives, pair_chunk=args.pair_chunk)
            # acl_i: Eq. 1; acl_f: Eq. 2 and 3; reg: Eq. 4
            terms = losses.loss_terms(out, args.tau, args.p_pos, args.p_neg, args.area,
                                      args.acl_f)
            if answers:                             # Eq. 6
                C, row_of = answers
                rows = [row_of.get(i, -1) for i in batch['id']]     # -1: no answer
                terms['acl_c'] = losses.acl_c_of_answered(
                    C, torch.tensor(rows), out.A.float(), args.tau, args.same_answers)
            # Eq. 5; with acl_c Eq. 7
            loss = losses.total_loss(terms, loss_weights(args))
            scaler.scale(loss / len(batches)).backward()
            area_means = losses.mean_areas(out.areas.detach(), out.first)   # to log
            parts.append({'loss': loss, **terms, **area_means})
        check_finite(parts, optimiser, scaler, step, batches, run.last_pt)
        scaler.step(optimiser)
        scaler.update()

        if step % checkpoint.LOG_EVERY == 0:
            means = run.log(step, epoch, parts, w=model.masker_i.w.item(),
                            b=model.masker_i.b.item(), lr=rate)
            bar.set_postfix({name: f'{value:.2f}' for name, value in means.items()})
        state['step'] = step + 1
        stop = run.save_if_due_or_asked(
            ends_epoch, lambda: checkpoint_of(run, model, optimiser, scaler, state))
        if stop:
            return stop
        if ends_epoch and validation:
            run.write({'step': step + 1, 'epoch': epoch, **validate(args, model, validation)})
    return checkpoint.stop_asked()      # perhaps while validate() ran


def forward(model, batch, precision, cache=None, **options):
    """Run Figure 2 on a batch, under autocast. -> model.Alignment

    model: a SoundLocalizer, or DDP around it. precision: of the networks.
    cache: data.AudioFeatures, or None. options: of SoundLocalizer.forward.
    """
    device = next(model.parameters()).device
    image = batch['image'].to(device, non_blocking=True)    # (B, 3, H, W)
    wav = batch['wav'].to(device, non_blocking=True)        # (B, samples)
    autocast = torch.autocast(device.type, HALF.get(precision),
                              enabled=precision in HALF)
    features = None
    with autocast:
        if cache:
            E_A = getattr(model, 'module', model).beats     # DDP: model.module
            features = cache.of_batch(batch, E_A, device)
        return model(image, wav, features=features, **options)


def loss_weights(args):
    """The lambdas of Eq. 5 and 7, by the names of losses.loss_terms."""
    return {'acl_i': args.lambda_i, 'acl_f': args.lambda_f,
            'reg': args.lambda_reg, 'acl_c': args.lambda_c}


def data_parallel(model):
    """Wrap the model in DDP, which averages the gradients over the processes.

    Paper [24]: the release calls the module inside the wrapper, without the
    averaging, so each of its two processes trains a model of its own.
    """
    if rank_and_processes()[1] == 1:
        return model
    device = next(model.parameters()).device
    devices = [device.index] if device.type == 'cuda' else None
    return DistributedDataParallel(model, device_ids=devices)


def print_skipped(batch, before):
    """Print this batch's unreadable pairs, which others have replaced.

    Those of all processes: a collective call. before: the number of earlier
    ones. -> the new number
    """
    skipped = launch.gather_lists(sum(batch['unreadable'], []))
    for number, sentence in enumerate(skipped, before + 1):
        if rank_and_processes()[0] == 0:
            tqdm.write(f'skipped ({number} so far): {sentence}')
    return before + len(skipped)


def check_finite(parts, optimiser, scaler, step, batches, last_pt):
    """ValueError if the loss or a gradient is not finite, before the weights change.

    parts: the losses of this step's batches. last_pt: the last good checkpoint.
    """
    loss = sum(part['loss'].item() for part in parts) / len(parts)
    finite = math.isfinite(loss)
    if finite and not scaler.is_enabled():  # fp16: GradScaler skips such a step
        gradients = [p.grad for p in optimiser.param_groups[0]['params']]
        finite = torch.nn.utils.get_total_norm(gradients).isfinite().item()
    if not finite:
        ids = ', '.join(i for batch in batches for i in batch['id'])
        good = last_pt if last_pt.exists() else 'none yet'
        raise ValueError(
            f'the loss is {loss} or a gradient is not finite at step {step} on '
            f'the pairs {ids}: lower --lr or look at these files; last good '
            f'checkpoint: {good}')


@torch.no_grad()
def validate(args, model, pairs):
    """Eq. 5 (never Eq. 7) and retrieval, averaged over held-out pairs, in eval mode.

    Only the first process has these pairs. -> {'val_loss', ..., 'val_n'};
    val_retrieval: the share of v_I whose most similar A is their own sound's.
    Paper [26]: no validation is mentioned, and the release watches the VGG-SS
    test set. Here only the pairs of val.csv are used.
    """
    model.eval()
    torch.manual_seed(0)                    # the same Gumbel noise each time
    totals = {}
    count = 0
    batch_size = args.batch_size // rank_and_processes()[1]
    for batch in loader(pairs, args.workers, batch_size=batch_size):
        if not args.skip_bad_samples:
            check_read(batch)
        for error in batch['errors']:
            tqdm.write(f'left out of the validation: {error}')
        B = len(batch['id'])
        if B < 2:                           # one pair has no negatives
            continue
        out = forward(model, batch, args.precision, pairs.features,
                      image_mask=args.image_mask, feature_mask=args.feature_mask)
        terms = losses.loss_terms(out, args.tau, args.p_pos, args.p_neg, args.area,
                                  args.acl_f)
        loss = losses.total_loss(terms, loss_weights(args))
        S = losses.cosine_similarities(out.v_I.float(), out.A.float())  # (B, B)
        right = S.argmax(1).cpu() == torch.arange(B)
        means = {**terms, 'loss': loss, 'retrieval': right.float().mean()}
        for name, mean in means.items():
            totals[name] = totals.get(name, 0) + float(mean) * B
        count += B
    model.train()
    scores = {f'val_{name}': total / count for name, total in totals.items()}
    return {**scores, 'val_n': count}


def checkpoint_of(run, model, optimiser, scaler, state):
    """What last.pt holds: trained weights, what --resume needs, some options."""
    names = ('prompt', 'audio_tokens', 'preset', 'variant')
    options = {name: state['settings'][name] for name in names}
    trainer = {**state, 'seconds': run.seconds(),
               'optimiser': optimiser.state_dict(), 'scaler': scaler.state_dict()}
    return {**trained_state(model), **options, 'trainer': trainer}


# ============ before and after the loop ============

def train(args):
    """Data, model, --resume, the loop, held-out scores. -> the exit code"""
    device = launch.start_processes(args.device)
    run = checkpoint.Run(args.out, args.resume, args.overwrite, args.save_seconds)
    make_data(args)
    config = PRESETS[args.preset]
    pairs, validation = open_pairs(args.data_root, config.image_size, config.seconds,
                                   args.seed, args.skip_bad_samples)
    per_epoch = steps_per_epoch(pairs, args.batch_size, rank_and_processes()[1],
                                args.accumulate)
    last_step = args.steps or args.epochs * per_epoch

    model, tokenizer = load(args)
    # w and b train only where Eq. 1, 2 or 4 has hard image masks (Tables 9, 13)
    M_I_in_Eq_2 = args.lambda_f and args.feature_mask == 'image'
    uses_M_I = bool(args.lambda_i or args.lambda_reg or M_I_in_Eq_2)
    optimiser = adam(model.to(device), args.lr, args.weight_decay,
                     with_mask=uses_M_I and args.image_mask == 'hard')
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == 'fp16')
    answers = digest = None
    if args.lambda_c:                       # Eq. 7
        path = args.captions or captions_path(args.data_root, args.captions_from)
        C, row_of, digest = load_answers(path, model, tokenizer, pairs.ids)
        answers = C.to(device), row_of

    settings = {k: value for k, value in vars(args).items() if k not in MAY_CHANGE}
    settings |= {'answers': digest, 'pairs': pairs.checksum}
    state = run.resume(model, optimiser, scaler, settings) if args.resume else None
    if state is None:
        untrained = None
        if run.is_main:
            scores, _ = held_out(model, tokenizer, args.preset, args.data_root,
                                 rows=['ours'])
            untrained = scores.get('ours')
        state = {'step': 0, 'seconds': 0.0, 'skipped': 0, 'untrained': untrained}
    else:
        check_resumed(run, state, last_step, args.lr_schedule)
    state |= {'last_step': last_step, 'settings': settings}

    if args.precision in HALF:
        model.cast_frozen(HALF[args.precision])
    if args.cache_audio:
        cache_features(pairs, validation, model.beats, args.cache_audio,
                       args.cache_share)
    pairs_per_step = args.batch_size * args.accumulate
    with run.steps_from(state['step'], state['seconds'], pairs_per_step):
        stop = take_steps(args, model, pairs, validation, answers, optimiser, scaler,
                          run, state)
    if stop:
        return run.leave(stop, state['step'])
    if run.is_main:
        finish(args, run, model, tokenizer, state, absent=len(pairs.absent))
    launch.wait_for_all()
    return 0


def check_resumed(run, state, last_step, lr_schedule):
    """ValueError if the checkpoint is past the last step; a new slope is printed."""
    if state['step'] > last_step:
        raise ValueError(f'{run.last_pt} is of step {state["step"]}, past the last one, '
                         f'{last_step}: ask for more --steps or --epochs')
    if lr_schedule == 'linear' and state['last_step'] != last_step:
        run.say(f'the learning rate was to reach 0 after step {state["last_step"]}: '
                f'now it does after step {last_step}')


def load(args, last_pt=None):
    """-> the model with the seed's weights, or last.pt's; its tokenizer"""
    torch.manual_seed(args.seed)
    return load_model(args.preset, last_pt, prompt=args.prompt, clipseg=args.clipseg,
                      audio_tokens=args.audio_tokens, beats=args.beats)


def make_data(args):
    """Draw the miniature's data and, for Eq. 7, caption them, unless done."""
    rank, _ = rank_and_processes()
    if args.preset == 'miniature' and not args.data_root_given and rank == 0:
        draw_miniature(args.data_root)
        path = captions_path(args.data_root, args.captions_from)
        if args.lambda_c and not args.captions and not path.exists():
            make_captions(args.captions_from, args.device)
    launch.wait_for_all()


def adam(model, lr, weight_decay, with_mask):
    """The optimiser of the audio projection and of MaskGen_I's w and b.

    with_mask: whether a loss uses w and b. If none does they are frozen, as DDP
    would wait for their gradients.
    Paper [19]: silent on the heatmaps of a model that never trains w and b
    (Table 9, row B; Table 13, rows 2 and 3). Here they are sigmoid(M_G + b/w)
    as always, with the initial b/w = 1.4.
    Paper [27]: Adam with weight decay 1e-4, hence added to the gradient (not
    AdamW's), and on w and b too (released code).
    """
    model.masker_i.requires_grad_(with_mask)
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = trained[0].is_cuda or None      # on a GPU one kernel for all weights
    return torch.optim.Adam(trained, lr, weight_decay=weight_decay, fused=fused)


def finish(args, run, model, tokenizer, state, absent):
    """Scores, pictures and summary.json, which marks a finished run.

    absent: how many pairs had no files. attempt: a picture may fail.
    """
    device = next(model.parameters()).device
    if args.precision in HALF:      # cast_frozen has rounded weights; load them again
        model = load(args, run.last_pt)[0].to(device)
    scores, counts = held_out(model.eval(), tokenizer, args.preset, args.data_root)
    columns = {'untrained': state['untrained'], 'trained': scores.get('ours'),
               'oracle': scores.get('oracle'), 'ceiling': scores.get('ceiling')}

    path = run.folder / 'loss.png'
    attempt(path, curves.loss_curve, run.log_file, path, args.p_pos, args.p_neg)
    untrained = load(args)[0].to(device)
    path = run.folder / 'before_after.png'
    attempt(path, before_after_sheet, untrained, model, tokenizer, args.preset,
            args.data_root, path)
    seconds = round(run.seconds(), 1)
    skipped = {'without_files': absent, 'unreadable': state['skipped']}
    summary = {**columns, 'seconds': seconds, 'seed': args.seed, 'n': counts,
               'skipped': skipped}
    launch.write_file(run.folder / 'summary.json', json.dumps(summary, indent=1))
    if any(columns.values()):           # else no test set is there
        print(table_of(columns))
    samples = ', '.join(f'{what} {n}' for what, n in counts.items())
    print(f'{run.folder}: seed {args.seed}, {state["step"]} steps, {seconds:.0f} s in '
          f'all; samples scored: {samples}')


# ============ the command line ============

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='Of several choices the first is the default, '
               'unless the preset sets it.')
    weight = between(float, 0, 1e6)
    share = between(float, 0, 1)
    add = parser.add_argument_group('the run').add_argument
    add('--preset', choices=list(PRESETS), default='miniature', help='scale')
    add('--variant', choices=['av', 'av_llm'], default='av', help='Eq. 5 or Eq. 7')
    add('--seed', type=between(int, 0), default=0)
    add('--out', type=some_path,
        help='folder (default: runs/<preset>-<variant>-seed<seed>)')
    add('--resume', action='store_true',
        help='go on from last.pt; without one, start afresh')
    add('--overwrite', action='store_true',
        help='start over in a folder that holds a run')
    add('--data-root', type=some_path,
        help='folder of the datasets (default: the preset\'s)')
    add('--clipseg', type=some_path,
        help='hub name or folder (default: the preset\'s)')
    add('--beats', type=some_path, help='checkpoint file (default: the preset\'s)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    add('--precision', choices=['float32', 'bf16', 'fp16'], default='float32',
        help='of the networks; masks and losses stay in float32')
    add('--skip-bad-samples', action='store_true',
        help='print and count unusable pairs, and train on others in their places')

    presets = '\n'.join(f'{preset}: {recipe}' for preset, recipe in RECIPES.items())
    group = parser.add_argument_group('set by the preset (section 4.1)', presets)
    add = group.add_mutually_exclusive_group().add_argument
    add('--epochs', type=between(int, 1), help='passes over the training set')
    add('--steps', type=between(int, 1), help='in place of --epochs')
    add = group.add_argument
    add('--batch-size', type=between(int, 2), help='pairs over all processes')
    add('--lr', type=between(float, 1e-12, 10),
        help='of Adam; at paper scale the release diverges at 1e-3 and 4e-4')
    add('--weight-decay', type=between(float, 0, 10), default=1e-4,
        help='default: %(default)s')
    add('--lr-schedule', choices=['constant', 'linear'],
        help='linear: to 0 at the last step; with other --steps, --resume changes '
             'the slope')
    add('--save-seconds', type=between(float, 0, math.inf),
        help='seconds between checkpoints, at least')
    add('--workers', type=between(int, 0), help='worker processes that load data')

    add = parser.add_argument_group('negatives, speed and memory').add_argument
    add('--negatives', choices=['local', 'global'], default='local',
        help='other pairs of the same process (as in the paper), or of all')
    add('--accumulate', type=between(int, 1), default=1, metavar='N',
        help='average the gradients of N batches, each with its own negatives')
    add('--cache-audio', nargs='?', const='', metavar='DIR',
        help='keep BEATs\' features (default DIR: cache/beats in the data root)')
    add('--cache-share', type=share, default=1.0, metavar='SHARE',
        help='keep the features of this share of train.csv only, its first lines')
    add('--pair-chunk', type=between(int, 1), metavar='N',
        help='decode N pairs at a time, recomputed backward: less memory, more time')

    group = parser.add_argument_group('objective and its ablations (section 4.3)')
    add = group.add_argument
    add('--tau', type=between(float, 1e-6, 1e6), default=losses.TAU,
        help='of Eq. 1 (default: %(default)s)')
    add('--lambda-i', type=weight, default=1.0,
        help='of L_ACL_I (default: 1; Table 9)')
    add('--lambda-f', type=weight, default=1.0,
        help='of L_ACL_F (default: 1; Table 9)')
    add('--lambda-reg', type=weight, default=1.0,
        help='of L_Reg (default: 1; Table 9)')
    add('--lambda-c', type=weight, default=1.0,
        help='of L_ACL_C, with --variant av_llm (default: 1; Table 15)')
    add = group.add_mutually_exclusive_group().add_argument
    add('--captions', type=some_path,
        help='file (default: captions.jsonl in the data root)')
    add('--captions-from', choices=['both', 'image', 'audio'], default='both',
        help='which captions the answers were made from (Table 10)')
    add = group.add_argument
    add('--same-answers', choices=['negatives', 'masked'], default='negatives',
        help='pairs of a batch with equal answers in L_ACL_C (losses.py)')
    add('--p-pos', type=share, default=losses.P_POS,
        help='p+ (default: %(default)s; Table 14)')
    add('--p-neg', type=share, default=losses.P_NEG,
        help='p- (default: %(default)s; Table 14)')
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
    add('--prompt', default=PROMPT,
        help='<*> is the sound (Table 12; default: "%(default)s")')

    given = launch.given_options(parser, argv)
    preset = parser.parse_args(argv).preset         # it sets the defaults of the rest
    parser.set_defaults(**RECIPES[preset], data_root=PRESETS[preset].data_root)
    args = parser.parse_args(argv)
    if 'epochs' in given:
        args.steps = None                   # those of the miniature's recipe
    if args.variant == 'av':
        args.lambda_c = 0.0                 # Eq. 5 is Eq. 7 without acl_c
    check_options(parser, args, given)
    args.out = Path(args.out or f'runs/{args.preset}-{args.variant}-seed{args.seed}')
    args.data_root_given = 'data_root' in given
    if args.cache_audio == '':
        args.cache_audio = Path(args.data_root, 'cache/beats')
    outputs = [('--out', args.out / name) for name in checkpoint.RUN_FILES]
    inputs = [('--captions', args.captions), ('--beats', args.beats),
              ('--clipseg', args.clipseg)]
    if sentence := launch.overwritten(outputs, inputs):
        parser.error(sentence)
    return args


def check_options(parser, args, given):
    """parser.error where no loss is left or an option would have no effect.

    given: the options on the command line. Those of a loss term with weight 0
    are allowed, so that a sweep over the weight can keep them.
    """
    if not any(loss_weights(args).values()):
        parser.error('at least one of --lambda-i, --lambda-f, --lambda-reg and '
                     '--lambda-c must be above 0')
    for name in ('lambda_c', 'captions', 'captions_from', 'same_answers'):
        if name in given and args.variant == 'av':
            parser.error(f'{given[name]} is for --variant av_llm: name that, or leave '
                         'it out')
    if 'cache_share' in given and 'cache_audio' not in given:
        parser.error('--cache-share is for --cache-audio: name that, or leave it out')


if __name__ == '__main__':
    checkpoint.watch_signals()
    launch.run_script('train.py', lambda: train(parse_args()),
                      'interrupted; the same command with --resume goes on from the '
                      'last checkpoint')
