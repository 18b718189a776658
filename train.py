"""Training, sections 3.5 (Eq. 5) and 3.6 (Eq. 7), with the settings of section 4.1.

    python train.py --variant av                                         # the miniature, minutes on a laptop
    python train.py --variant av_llm                                     # with the language model's answers (captions.py)
    python train.py --variant av --preset paper                          # real backbones and data (README)
    torchrun --nproc_per_node=2 train.py --variant av --preset paper     # as in the paper: 8 pairs on each of two GPUs
    python train.py --variant av --resume                                # go on after a crash or a kill

Only the projection, the pooling and MaskGen_I's w and b are trained. A run leaves in its folder: last.pt (and
previous.pt), log.jsonl, loss.png, before_after.png and summary.json, the scores on held-out scenes before and after.
SIGTERM, which clusters send before they kill, and Ctrl-C end it after the step at hand and save; --resume goes on.
Paper: silent on which epoch counts; the release keeps the best one on the VGG-SS test set. Here nothing is chosen by a
test set: the result is the last step.
"""

import argparse
import json
import os
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import figures.curves
import figures.tables
import losses
from answers import captions_path, load_answers, make_captions
from cache import AudioFeatures, Prepared, build_features, complete
from checkpoints import (RUN_FILES, Alarm, Log, asked_to_stop, claim_folder, leave, random_states,
                         resume, save_checkpoint, set_aside)
from data import (VGGSound, epoch_batches, evaluation_loader, tell_other_splits, training_loader,
                  undisturbed)
from heldout import before_after_sheet, held_out
from model import PRESETS, PROMPT, load_model
from negatives import everyone
from processes import agree, end, largest, lost_process, rank_and_processes, smallest, start_processes
from resumable import given_options, overwritten, some_path, write_whole


@dataclass(frozen=True)
class Recipe:
    """Training settings of one preset; each is an option of the same name."""
    epochs: int             # section 4.1: 20
    batch_size: int         # Paper: 16 (section 4.1), which was 8 on each of two GPUs, so with 7 negatives, not 15
    lr: float               # Adam; section 4.1: 1e-4
    lr_schedule: str        # constant, as section 4.1 names no other, or linear, to 0
    weight_decay: float     # section 4.1: 1e-4
    save_seconds: float     # least time between two checkpoints within an epoch


RECIPES = {
    'paper': Recipe(epochs=20, batch_size=16, lr=1e-4, lr_schedule='constant', weight_decay=1e-4, save_seconds=600),
    # Paper: 180,000 steps at 1e-4. The miniature has 300, so twenty times the rate; 8 pairs are what one of the authors'
    # GPUs saw, and of twelve classes more pairs would often hold the same one twice. Many more steps only raise b / w:
    # p+ = 0.4 asks for masks larger than these objects. At so high a rate the masks of a class or two are always wrong
    # (a dog's head only), twenty steps later those of others, so the rate falls to 0.
    'miniature': Recipe(epochs=1, batch_size=8, lr=2e-3, lr_schedule='linear', weight_decay=1e-4, save_seconds=10),
}


LOST_BATCHES = 10       # in a row without a pair of readable pairs: not some bad files, but a disk that has gone


# ============ the command line ============

def refuse_ignored(parser, given, variant):
    """An option that would be ignored is an error.

    Those of a term whose weight is 0 are not: they stay the same in a sweep over the weight.
    """
    for name in ('lambda_c', 'captions', 'captions_from', 'same_answers'):
        if name in given and variant == 'av':
            parser.error(f'{given[name]} is for --variant av_llm: name that, or leave it out')
    for one, other in (('epochs', 'steps'), ('captions', 'captions_from')):
        if one in given and other in given:
            parser.error(f'{given[one]} and {given[other]} do not go together: leave one out')
    if 'cache_share' in given and 'cache_audio' not in given:
        parser.error('--cache-share is for --cache-audio: name that, or leave it out')


def refuse_overwriting(parser, args):
    """A file of the run in the place of an input is an error."""
    outputs = [('--out', args.out / name) for name in RUN_FILES]
    names = ('captions', 'beats', 'clipseg', 'prepared')
    inputs = [(f'--{name}', getattr(args, name)) for name in names]
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    by_preset = lambda name: ', '.join(f'{preset}: {getattr(r, name)}' for preset, r in RECIPES.items())

    run = parser.add_argument_group('the run')
    run.add_argument('--preset', choices=list(PRESETS), default='miniature', help='scale (default: miniature)')
    run.add_argument('--variant', choices=['av', 'av_llm'], default='av', help='av: Eq. 5 (default); av_llm: Eq. 7')
    run.add_argument('--seed', type=int, default=0)
    run.add_argument('--out', type=some_path,
                     help='folder of the run (default: runs/<preset>-<variant>-seed<seed>)')
    run.add_argument('--resume', action='store_true', help='go on from last.pt; starts afresh where there is none')
    run.add_argument('--overwrite', action='store_true', help='start over in a folder that already holds a run')
    run.add_argument('--data-root', type=some_path,
                     help='folder of the datasets (default: the preset\'s)')
    run.add_argument('--clipseg', type=some_path,
                     help='hub name or folder of the CLIPSeg weights (default: the preset\'s)')
    run.add_argument('--beats', type=some_path, help='BEATs checkpoint (default: the preset\'s)')
    run.add_argument('--workers', type=int, help='loading processes (default: miniature 0, paper 8)')
    run.add_argument('--precision', choices=['float32', 'bf16', 'fp16'], default='float32',
                     help='of the networks; masks and losses stay in float32')
    run.add_argument('--save-seconds', type=float, help=f'least time between checkpoints ({by_preset("save_seconds")})')
    run.add_argument('--skip-bad-samples', action='store_true', help='name, count and leave out unusable pairs')

    fast = parser.add_argument_group('speed and memory (the numbers stay the same; section 4.1)')
    fast.add_argument('--cache-audio', nargs='?', const=True, type=some_path, metavar='DIR',
                      help='compute the frozen BEATs features once, keep them there (default: '
                           'cache/beats in the data root); the size is printed first (cache.py)')
    fast.add_argument('--cache-share', type=float, default=1.0, metavar='SHARE',
                      help='keep the first part of train.csv only and compute the others each time (default: all)')
    fast.add_argument('--prepared', type=some_path, metavar='DIR',
                      help='decoded pairs of "data.py prepare"')
    fast.add_argument('--pair-chunk', type=int, metavar='N', help='decode N of the image and audio pairs at a time, and '
                      'again in the backward pass: less memory, more time')

    opt = parser.add_argument_group('optimisation (section 4.1)')
    opt.add_argument('--epochs', type=int, help=f'passes over the training set ({by_preset("epochs")})')
    opt.add_argument('--steps', type=int, help='stop after this many steps instead')
    opt.add_argument('--batch-size', type=int, help=f'pairs over all processes ({by_preset("batch_size")})')
    opt.add_argument('--lr', type=float, help=f'Adam ({by_preset("lr")}); the release diverges at 1e-3 and 4e-4')
    opt.add_argument('--lr-schedule', choices=['constant', 'linear'], help='linear: falls to 0 after the last step, '
                     f'which --resume with other --steps moves ({by_preset("lr_schedule")})')
    opt.add_argument('--weight-decay', type=float, help=f'({by_preset("weight_decay")})')
    opt.add_argument('--tau', type=float, default=losses.TAU, help='temperature of Eq. 1 (default: %(default)s)')

    opt.add_argument('--accumulate', type=int, default=1, metavar='N', help='average the gradients of N batches in a step; '
                     'each batch has its own negatives (default: 1)')
    opt.add_argument('--negatives', choices=['local', 'global'], default='local',
                     help='among the pairs of one process (default, as in the paper) or of all (negatives.py)')

    abl = parser.add_argument_group('objective and its ablations (section 4.3)')
    abl.add_argument('--lambda-i', type=float, default=1.0, help='weight of L_ACL_I, 0 leaves it out (Table 9)')
    abl.add_argument('--lambda-f', type=float, default=1.0, help='weight of L_ACL_F (Table 9)')
    abl.add_argument('--lambda-reg', type=float, default=1.0, help='weight of L_Reg (Table 9)')
    abl.add_argument('--lambda-c', type=float, default=1.0,
                     help='weight of L_ACL_C, with --variant av_llm (Table 15; default: 1)')
    abl.add_argument('--captions', type=some_path,
                     help='captions.py\'s file (default: captions.jsonl in the data root)')
    abl.add_argument('--captions-from', choices=['both', 'image', 'audio'], default='both',
                     help='which captions the answers were made from (Table 10; default: both)')
    abl.add_argument('--same-answers', choices=['negatives', 'masked'], default='negatives',
                     help='equal answers within a batch in L_ACL_C (losses.py; default: negatives)')
    abl.add_argument('--p-pos', type=float, default=losses.P_POS, help='area prior p+ (Table 14; default: %(default)s)')
    abl.add_argument('--p-neg', type=float, default=losses.P_NEG, help='area prior p- (Table 14; default: %(default)s)')
    abl.add_argument('--area', choices=['release', 'mean', 'sum'], default='release',
                     help='reading of Eq. 4 (losses.py)')
    abl.add_argument('--acl-f', choices=['paper', 'release'], default='paper',
                     help='whose audio S^F compares with (losses.py)')
    abl.add_argument('--image-mask', choices=['hard', 'soft', 'feature'], default='hard',
                     help='in L_ACL_I (Table 13; masks.py)')
    abl.add_argument('--feature-mask', choices=['feature', 'image'], default='feature',
                     help='in L_ACL_F (Table 13; masks.py)')
    abl.add_argument('--audio-tokens', type=int, choices=[1, 2, 4, 8], default=1, help='audio token length (Table 11)')
    abl.add_argument('--prompt', default=PROMPT, help='<*> is the audio token (Table 12; default: "%(default)s")')

    args = parser.parse_args(argv)
    refuse_ignored(parser, given_options(parser, argv), args.variant)
    for name in ('epochs', 'batch_size', 'lr', 'lr_schedule', 'weight_decay', 'save_seconds'):
        if getattr(args, name) is None:
            setattr(args, name, getattr(RECIPES[args.preset], name))
    if args.workers is None:
        args.workers = 8 if args.preset == 'paper' else 0
    args.answers = None                                     # set by load_answers
    args.out = Path(args.out or f'runs/{args.preset}-{args.variant}-seed{args.seed}')
    args.data_root_given, args.data_root = bool(args.data_root), args.data_root or PRESETS[args.preset].data_root
    if args.cache_audio is True:
        args.cache_audio = ''                               # without DIR: in the data root
    refuse_overwriting(parser, args)
    limits = {'epochs': (1, 1e9), 'steps': (1, 1e12), 'batch_size': (2, 1e6), 'workers': (0, 1e3), 'seed': (0, 2**63 - 1),
              'lr': (1e-12, 10), 'tau': (1e-6, 1e6), 'weight_decay': (0, 10), 'save_seconds': (0, 1e9), 'p_pos': (0, 1),
              'p_neg': (0, 1), 'cache_share': (1e-6, 1), 'pair_chunk': (1, 1e9), 'accumulate': (1, 1e6),
              **dict.fromkeys(('lambda_i', 'lambda_f', 'lambda_reg', 'lambda_c'), (0, 1e6))}
    for name, (least, most) in limits.items():
        if getattr(args, name) is not None and not least <= getattr(args, name) <= most:
            parser.error(f'--{name.replace("_", "-")} must lie between {least:g} and {most:g}, not {getattr(args, name)}')
    if args.variant == 'av':
        args.lambda_c = 0.0                                 # Eq. 5 is Eq. 7 without the caption term
    if args.lambda_i == args.lambda_f == args.lambda_reg == args.lambda_c == 0:
        parser.error('at least one of --lambda-i, --lambda-f, --lambda-reg and --lambda-c must be above 0')
    return args


# ============ the objective ============

def loss_terms(out, args, C=None, answers=None, gather=lambda rows: rows):
    """The terms of Eq. 5 and 7 whose weight is not 0, in float32. out: model.Alignment -> dict of scalars

    gather: negatives.everyone, where out.A holds the audios of all processes: each term is then of their whole batch.
    answers (B,), on the CPU: which row of the caption embeddings C belongs to each pair, -1 without an answer.
    """
    terms, A = {}, out.A.float()
    if args.lambda_i:
        terms['acl_i'] = losses.acl_i(gather(out.v_I.float()), A, args.tau)                      # Eq. 1
    if args.lambda_f:
        v_F = losses.masked_features(out.M_F.float(), out.v_D.float())                           # Eq. 2
        S_F = gather(losses.feature_similarities(v_F, A, out.first, args.acl_f))    # rows of this process's images
        terms['acl_f'] = losses.info_nce(S_F, args.tau)                                          # Eq. 3
    if args.lambda_reg:
        # Eq. 4; gathered first, as its absolute values are of means over all pairs
        terms['reg'] = losses.area_regulariser(gather(out.areas.float()), args.p_pos, args.p_neg, args.area)
    if args.lambda_c and C is not None:
        answers = gather(answers)
        has = (answers >= 0).nonzero()[:, 0]                # in main memory: no GPU has to say how many there are
        # Paper: silent on pairs to which the language model has no answer. They take no part in Eq. 6, neither as queries
        # nor as negatives; with fewer than two answers in a batch there is nothing to contrast.
        rows, has = (index.to(A.device, non_blocking=True) for index in (answers[has], has))
        same = rows if args.same_answers == 'masked' else None
        terms['acl_c'] = losses.acl_c(C[rows], A[has], args.tau, same) if len(has) > 1 else 0.0 * A.sum()        # Eq. 6
    return terms


def weights_of(args):
    return {'acl_i': args.lambda_i, 'acl_f': args.lambda_f, 'reg': args.lambda_reg, 'acl_c': args.lambda_c}


@torch.no_grad()
def validate(model, dataset, args, device):
    """Eq. 5 on held-out pairs, without dropout, and how often a masked image finds its own sound. -> dict

    Paper: none is mentioned, and the release watches the VGG-SS test set. This looks at pairs of val.csv only.
    """
    model.eval()
    totals, count = {}, 0
    devices = [device] if device.type == 'cuda' else []
    loader = evaluation_loader(dataset, args.batch_size // rank_and_processes()[1], args.workers)
    with torch.random.fork_rng(devices):                    # the Gumbel noise of validation leaves training's alone
        torch.manual_seed(0)
        for batch in undisturbed(loader):
            if batch['errors'] and not args.skip_bad_samples:
                raise ValueError(f'{batch["errors"][0]}; or --skip-bad-samples leaves such pairs out')
            if len(batch['id']) < 2:                        # one pair has no negatives
                continue
            out = model(batch['image'].to(device), batch['wav'].to(device), args.image_mask, args.feature_mask)
            terms = loss_terms(out, args)
            found = losses.cosine_similarities(out.v_I, out.A).argmax(1).cpu() == torch.arange(len(out.A))
            B = len(out.A)
            values = {**terms, 'loss': losses.total_loss(terms, weights_of(args)), 'retrieval': found.float().mean()}
            totals = {k: totals.get(k, 0) + float(v) * B for k, v in values.items()}
            count += B
    return {**{f'val_{k}': v / count for k, v in totals.items()}, 'val_n': count}


# ============ training ============

def train(args):
    began, device = time.time(), start_processes()
    rank, processes = rank_and_processes()
    if args.batch_size % processes:
        raise ValueError(f'--batch-size {args.batch_size} does not divide among {processes} processes')
    if args.batch_size // processes < 2:
        raise ValueError('every process needs at least 2 pairs: a contrastive loss has no negatives otherwise')
    if rank == 0:
        lock = claim_folder(args)                           # until the process ends
        if args.preset == 'miniature' and not args.data_root_given:
            from miniature import world as miniature_world
            miniature_world.build(args.data_root)
            if args.lambda_c and not args.captions and not captions_path(args.data_root, args.captions_from).exists():
                make_captions(args.captions_from)
    if dist.is_initialized():
        dist.barrier()

    # ------------ data ------------
    config = PRESETS[args.preset]
    make = lambda split, **more: VGGSound(args.data_root, split, config.image_size, config.seconds, seed=args.seed,
                                          skip_bad=args.skip_bad_samples, **more)
    dataset = make('train', augmented=True)
    has_val = Path(args.data_root, 'vggsound/val.csv').exists()
    validation = make('val') if has_val and rank == 0 else None
    validated = largest(int(validation is not None))        # by the first process, for all
    agree(zlib.crc32(' '.join(dataset.ids).encode()), f'{dataset.list}: process {rank} finds {len(dataset)} samples with files, '
          'and not all processes find the same: give every machine the same data')
    if rank == 0:
        tell_other_splits(dataset.list)
    if dataset.absent and rank == 0:
        print(f'left out {len(dataset.absent)} samples of {dataset.list} without files, e.g. {dataset.absent[0]}')
    if rank == 0 and not has_val:
        print(f'no {args.data_root}/vggsound/val.csv: training without validation')
    N = args.accumulate                                     # batches of a step; an epoch's last incomplete step is dropped
    per_epoch = len(epoch_batches(len(dataset), args.batch_size, args.seed, 0, rank, processes)) // N
    if not per_epoch:
        raise ValueError(f'{dataset.list} has {len(dataset)} samples, fewer than {N} batch(es) of '
                         f'{args.batch_size}: add samples or lower --batch-size')
    last_step = args.steps or args.epochs * per_epoch

    # ------------ model ------------
    torch.manual_seed(args.seed)
    model, tokenizer = load_model(args.preset, prompt=args.prompt, audio_tokens=args.audio_tokens,
                                  clipseg=args.clipseg, beats=args.beats)
    model.to(device)
    open_caches(args, dataset, model.beats)
    # Some ablations never use w and b; DistributedDataParallel would wait for their gradients.
    # Paper: silent on what such a model (Table 13, rows 2 and 3) shows in the end. As everywhere,
    # it is sigmoid(M_G + b/w), here with the initial b/w = 1.4.
    model.masker_i.requires_grad_(args.image_mask == 'hard' and bool(
        args.lambda_i or args.lambda_reg or args.lambda_f and args.feature_mask == 'image'))
    parameters = [p for p in model.parameters() if p.requires_grad]
    C, answer_of = load_answers(args, model, tokenizer, dataset.ids, device) if args.lambda_c else (None, {})
    # Paper: Adam with weight decay 1e-4, that is, as a part of the gradient, on w and b too (released code)
    optimiser = torch.optim.Adam(parameters, args.lr, weight_decay=args.weight_decay,
                                 fused=True if device.type == 'cuda' else None)     # one kernel instead of hundreds
    scaler = torch.amp.GradScaler(device.type, enabled=args.precision == 'fp16')
    low = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(args.precision)
    torch.manual_seed(hash((args.seed, rank, 0)) % 2**63)   # processes differ in Gumbel noise and dropout
    state = resume(args.out, model, optimiser, scaler, args) if args.resume else None
    mine = f'step {state["step"]}' if state else 'no checkpoint'
    agree(state['step'] if state else 0, f'process {rank} finds {mine} in {args.out}, and not all processes find the '
          'same: on several machines --out must lie on a disk that they share')
    if args.resume and rank == 0:
        print(f'resuming at step {state["step"]}' if state else f'nothing to resume in {args.out}: starting afresh')
        if state and args.lr_schedule == 'linear' and state.get('last_step', last_step) != last_step:
            print(f'the rate was to reach 0 after step {state["last_step"]}: now it does after step {last_step}')
    if state:
        state['last_step'] = last_step
    else:
        state = {'step': 0, 'last_step': last_step, 'seconds': 0.0, 'skipped': 0, 'untrained': None, 'unvalidated': False}
        if rank == 0:
            state['untrained'] = held_out(model, tokenizer, args.preset, args.data_root)[0].get('ours')
    # The wrapper reduces the gradients of the trainable part over the processes. Paper: the release calls the bare
    # module inside its wrapper, so each of its two processes trains alone.
    parallel = (DistributedDataParallel(model, device_ids=[device.index] if device.type == 'cuda' else None,
                                        broadcast_buffers=False) if processes > 1 else model)

    # ------------ steps ------------
    if rank == 0:
        set_aside(args)
    alarm = Alarm(args)
    log = Log(args.out / 'log.jsonl', state['step'], state.get('unvalidated'), alarm, enabled=rank == 0)
    earlier, random = state['seconds'], random_states()
    bar = tqdm(total=last_step, initial=state['step'], disable=rank > 0, unit=' steps', dynamic_ncols=True)
    with asked_to_stop() as asked, bar:
        while True:
            if stop := largest(max(asked, default=0)):
                leave(args, state['step'], stop)
            if validated and state.get('unvalidated'):      # the weights are saved already: this may take long
                state['unvalidated'] = False
                if rank == 0:
                    scores = validate(model, validation, args, device)
                    log.write({'step': state['step'], 'epoch': (state['step'] - 1) // per_epoch, **scores})
                    save_checkpoint(args.out, model, optimiser, scaler, args, state, random)
                continue
            if state['step'] >= last_step:
                break
            saved_at = time.time()
            epoch, first = divmod(state['step'], per_epoch)
            dataset.epoch = epoch
            batches = epoch_batches(len(dataset), args.batch_size, args.seed, epoch, rank, processes)
            batches = batches[first * N:min(per_epoch, first + last_step - state['step']) * N]
            for k, batch in enumerate(undisturbed(training_loader(dataset, batches, args.workers)), 1):
                if k % N == 1 or N == 1:
                    optimiser.zero_grad()
                    loss, mean_terms, ids = 0.0, {}, []
                if count := usable(batch, state, args):
                    model.train()
                    image, wav = (batch[k][:count].to(device, non_blocking=True) for k in ('image', 'wav'))
                    known = complete(batch['features'][:count], wav, model.beats) if dataset.features else None
                    with torch.autocast(device.type, low, enabled=low is not None):
                        out = parallel(image, wav, args.image_mask, args.feature_mask, with_v_I=args.lambda_i > 0,
                                       features=known, pair_chunk=args.pair_chunk, negatives=args.negatives)
                    answers = torch.tensor([answer_of.get(i, -1) for i in batch['id'][:count]])
                    terms = loss_terms(out, args, C, answers, *[everyone] * (args.negatives == 'global'))
                    part = losses.total_loss(terms, weights_of(args)) / N
                    # processes share the gradients at each of the N, so that one whose last batch is unusable has them too
                    scaler.scale(part).backward()
                    loss, ids = loss + part.detach(), ids + batch['id'][:count]
                    for name, value in terms.items():
                        mean_terms[name] = mean_terms.get(name, 0.0) + value.detach() / N
                if k % N:
                    continue
                if ids:
                    # fp16 gradients overflow now and then by design, and the scaler leaves such a step out
                    gradients = [p.grad.norm() for p in parameters if args.precision != 'fp16']
                    alarm.set(torch.stack([loss, *gradients]), ids, state['step'])
                    lr = args.lr * ((last_step - state['step']) / last_step if args.lr_schedule == 'linear' else 1.0)
                    for group in optimiser.param_groups:
                        group['lr'] = lr
                    scaler.step(optimiser)
                    scaler.update()
                    log.step(state['step'], epoch, loss, mean_terms, out, model, args, bar, lr)
                state['step'] += 1
                state['seconds'] = earlier + time.time() - began
                bar.update()
                within = state['step'] % per_epoch and state['step'] < last_step
                due = rank == 0 and time.time() - saved_at > args.save_seconds
                if wish := within and largest(max([*asked, int(due)])):         # a signal's number, or 1: a checkpoint
                    random = random_states()
                    if rank == 0:
                        alarm.check()
                        save_checkpoint(args.out, model, optimiser, scaler, args, state, random)
                        saved_at = time.time()
                    if wish > 1:
                        leave(args, state['step'], wish)
            alarm.check()
            random, state['unvalidated'] = random_states(), bool(validated)
            if rank == 0:
                save_checkpoint(args.out, model, optimiser, scaler, args, state, random)
    if state['skipped'] and not optimiser.state:
        raise ValueError(f'not one step was taken: all {state["skipped"]} pairs that were read are unusable')
    if rank == 0:
        finish(model.eval(), tokenizer, args, state, len(dataset.absent), began - earlier)
    del parallel                                            # before its processes: see processes.exit_now
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def open_caches(args, dataset, beats):
    """--prepared and --cache-audio: hand the dataset what need not be computed again; the first process makes it."""
    rank, _ = rank_and_processes()
    if args.prepared:
        dataset.prepared = Prepared(args.prepared, dataset)
        if rank == 0:
            print(f'{args.prepared}: {len(dataset.prepared.rows)} of {len(dataset)} pairs are prepared')
    if args.cache_audio is not None:
        folder = args.cache_audio or Path(args.data_root, 'cache/beats')
        if rank == 0:
            dataset.features = build_features(folder, dataset, beats, args.cache_share, skip_bad=args.skip_bad_samples)
        if dist.is_initialized():
            dist.barrier()
        dataset.features = dataset.features or AudioFeatures(folder, dataset, beats)


def usable(batch, state, args):
    """How many of a batch's pairs to use, 0 where some process has fewer than two; names and counts the unreadable."""
    if batch['errors'] and not args.skip_bad_samples:
        raise ValueError(f'{batch["errors"][0]}; or --skip-bad-samples leaves such pairs out')
    for error in batch['errors']:
        state['skipped'] += 1
        tqdm.write(f'skipped ({state["skipped"]} so far): {error}')
    mine = len(batch['id'])
    fewest = smallest(mine) if args.skip_bad_samples else mine
    state['lost'] = state.get('lost', 0) + 1 if fewest < 2 else 0
    if state['lost'] == LOST_BATCHES:
        raise ValueError(f'{LOST_BATCHES} batches in a row have no two readable pairs, {state["skipped"]} pairs are skipped '
                         'so far: mend the files or their disk; --resume goes on')
    if fewest < 2:                                          # none or all: a process alone would wait for ever
        return 0
    # global negatives are gathered in equal parts: no process uses more pairs than the one that lost most
    return fewest if args.negatives == 'global' else mine


# ============ what a finished run leaves ============

def finish(model, tokenizer, args, state, absent, began):
    """Scores on held-out scenes, the table, the pictures and, last, summary.json, the mark of a finished run."""
    scores, counts = held_out(model, tokenizer, args.preset, args.data_root)
    summary = {'untrained': state['untrained'], 'trained': scores.get('ours'), 'oracle': scores.get('oracle'),
               'ceiling': scores.get('ceiling'), 'seconds': None, 'seed': args.seed, 'n': counts,
               'skipped': {'without_files': absent, 'unreadable': state['skipped']}}
    summary['seconds'] = round(time.time() - began, 1)
    shown = [('cIoU', 1), ('AUC', 1), ('mIoU', 1), ('mIoU_multi', 1), ('both_right', 1), ('area_silence', 100),
             ('area_noise', 100)]                           # areas: fractions in the file, per cent in the table
    columns = ['untrained', 'trained', 'oracle', 'ceiling']
    value = lambda column, k: (summary[column] or {}).get(k)
    rows = [[None if value(c, k) is None else value(c, k) * factor for c in columns] for k, factor in shown]
    print(figures.tables.table(rows, columns, [f'{k}, %' for k, _ in shown]))
    print(f'{args.out}: seed {args.seed}, {state["step"]} steps, {summary["seconds"]:.0f} s in all, n = {counts}')
    log = args.out / 'log.jsonl'
    curve = args.out / 'loss.png'
    figures.attempt(curve, figures.curves.loss_curve, log, curve, args.p_pos, args.p_neg)
    sheet = args.out / 'before_after.png'
    figures.attempt(sheet, draw_before_and_after, model, tokenizer, args, sheet)
    summary['seconds'] = round(time.time() - began, 1)
    write_whole(args.out / 'summary.json', json.dumps(summary, indent=1))


def draw_before_and_after(model, tokenizer, args, path):
    """Held-out frames under the weights that this run began with and those that it ended with."""
    torch.manual_seed(args.seed)                            # the weights this run began with
    untrained, _ = load_model(args.preset, prompt=args.prompt, audio_tokens=args.audio_tokens,
                              clipseg=args.clipseg, beats=args.beats)
    untrained.to(next(model.parameters()).device)
    before_after_sheet(untrained, model, tokenizer, args.preset, args.data_root, path)


if __name__ == '__main__':
    try:
        train(parse_args())
    except (OSError, ValueError) as problem:
        if os.environ.get('ACL_DEBUG'):     # ACL_DEBUG=1 shows where it happened
            raise
        if getattr(problem, 'filename', None):
            problem = f'cannot use {problem.filename} ({problem.strerror}): name another place'
        end(f'train.py: {problem}')
    except RuntimeError as problem:
        if lost := lost_process(problem):
            end(f'train.py: {lost}. If it was killed, the same command with --resume goes on from the last checkpoint')
        if 'DataLoader worker' not in str(problem):
            raise
        reason = str(problem).splitlines()[0].rstrip('. ')
        end(f'train.py: a loading process died ({reason}): free memory or lower --workers; --resume goes on')
    except KeyboardInterrupt:
        end('train.py: interrupted; the same command with --resume goes on from the last checkpoint', 128 + signal.SIGINT)
