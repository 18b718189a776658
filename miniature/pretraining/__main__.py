"""Train the miniature's models from random weights, or measure the weights that are there.

    python -m miniature.pretraining                  # two hours on two cores
    python -m miniature.pretraining --only beats     # ten minutes of it
    python -m miniature.pretraining --check          # quality on held-out scenes and sounds

Written to miniature/weights, in the formats of the real ones and in 16-bit floats: clipseg, blip2,
qwen2_audio, mistral, clap and owlv2 are transformers folders with their tokenizers; beats.pt is a
BEATs checkpoint {'cfg', 'model'} that keeps its predictor; wav2clip.pt, audioclip.pt and
imagebind.pth (the stage "spaces") are flat dicts, as the released files.
"""

import argparse
import time
from pathlib import Path

from launch import run_script, some_path
from miniature.pretraining.captioners import check_captioners, pretrain_captioners
from miniature.pretraining.tiny_beats import check_beats, pretrain_beats
from miniature.pretraining.tiny_clap import check_clap, pretrain_clap
from miniature.pretraining.tiny_clipseg import (STEPS, check_clipseg, pretrain_clipseg,
                                                tune_decoder)
from miniature.pretraining.tiny_owlv2 import check_owlv2, pretrain_owlv2
from miniature.pretraining.tiny_spaces import check_spaces, pretrain_spaces

WEIGHTS = Path(__file__).resolve().parent.parent / 'weights'
# BLIP-2, OWLv2 and WAV2CLIP see with the tiny CLIP
STAGES = ('beats', 'clipseg', 'decoder', 'captioners', 'clap', 'owlv2', 'spaces')


def parse_args():
    parser = argparse.ArgumentParser('python -m miniature.pretraining', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=STAGES,
                        help='one of the stages (default: all, in this order)')
    parser.add_argument('--check', action='store_true', help='measure, do not train')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--steps', type=int, default=STEPS,
                        help=f'of the CLIPSeg (default: {STEPS})')
    parser.add_argument('--out', type=some_path, default=WEIGHTS,
                        help='folder to write (default: miniature/weights)')
    return parser.parse_args()


def run_stage(name, check, folder, seed, steps):
    """-> {what was measured: value}"""
    if name == 'beats':
        return (check_beats if check else pretrain_beats)(folder / 'beats.pt', seed)
    if name == 'captioners':
        return (check_captioners if check else pretrain_captioners)(folder, seed)
    if name == 'clap':
        return (check_clap if check else pretrain_clap)(folder / 'clap', seed)
    if name == 'owlv2':
        return (check_owlv2 if check else pretrain_owlv2)(folder, seed)
    if name == 'spaces':
        return (check_spaces if check else pretrain_spaces)(folder, seed)
    if check:
        return check_clipseg(folder / 'clipseg', seed)
    if name == 'decoder':
        return tune_decoder(folder / 'clipseg', seed)
    return pretrain_clipseg(folder / 'clipseg', seed, steps)


def main():
    args = parse_args()
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    stages = [args.only] if args.only else list(STAGES)
    if args.check and not args.only:
        stages.remove('decoder')                # one check for CLIP and decoder
    for name in stages:
        began = time.time()
        quality = run_stage(name, args.check, folder, args.seed, args.steps)
        minutes = (time.time() - began) / 60
        print(f'\n{name} (seed {args.seed}, {minutes:.1f} minutes)', flush=True)
        for what, value in quality.items():
            shown = f'{value:.3f}' if isinstance(value, float) else value
            print(f'  {what}: {shown}', flush=True)


if __name__ == '__main__':
    run_script('miniature.pretraining', main, 'interrupted; the old weights are kept')
