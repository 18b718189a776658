"""Section 4.4: text inversion. GPT-2 describes in words what an audio-driven embedding A encodes.

    python inversion.py train                       # the miniature: half a minute on one core
    python inversion.py say --figure figure12.png   # sentences for the sounds of VGG-SS, Figure 12
    python inversion.py say --audio sound.wav       # for your own sound; --image: for pictures
    python inversion.py train --condition text      # as CapDec does it, from captions alone
    python inversion.py train --preset paper        # GPT-2 on VGGSound's frames; takes a GPU

CapDec (Nukrai et al., 2022) turns one CLIP embedding e into a prefix that GPT-2 continues:

    train:  e = E_CLIP_v(frame)  -Mapper->  K prefix embeddings  -GPT-2->  the caption of its sound
    say:    e = A                -Mapper->  K prefix embeddings  -GPT-2->  a sentence

The captioner is never trained on A. So if its sentence fits the sound, A is close to CLIP's
embeddings of frames, or texts, of the sounding object. As in the paper, `say` takes A from the AV
variant and the sounds of VGG-SS, unless --checkpoint, --audio or --image names others.

Shapes: B embeddings, D their width, K prefix embeddings, C width of GPT-2, L tokens of a caption.
"""

import argparse
import io
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (AutoTokenizer, GPT2Config, GPT2LMHeadModel,
                          get_linear_schedule_with_warmup)

from benchmarks.lists import csv_lines, files_of_root
from captions import captions_path, read_texts
from data import VGGSound, draw_miniature, epoch_batches
from evaluate import load, open_benchmarks, readable
from figures.report import sheet_of_samples
from figures.tables import table
from launch import (between, check_outputs, overwritten, pick_device, read_weights, run_script,
                    some_path, write_file)
from localise import embed_names, localise
from media import PICTURES, evaluation_image, read_own_audio, read_own_image
from model import PRESETS, ROOT, embed_image, from_pretrained, load_pretrained

NOISE = 0.016       # variance per dimension, added to a text embedding of length 1 (CapDec)
BEAM = 5            # width of the beam search (CapDec)
LONGEST = 67        # tokens of a sentence (CapDec)


# ============ CapDec ============

class Mapper(nn.Module):
    """e (B, D) -> prefix (B, K, C): a transformer over K projections of e and K learnt queries.

    Paper [79]: silent on the mapper. This is the default of CapDec's release, with 8 layers;
    its other one, an MLP, would have half a billion parameters at K = 40.
    """

    def __init__(self, dim, width, prefix, layers, heads):
        super().__init__()
        self.split = nn.Linear(dim, prefix * width)
        self.queries = nn.Parameter(torch.randn(prefix, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True,
                                           norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, e):
        K = len(self.queries)
        parts = rearrange(self.split(e), 'b (k c) -> b k c', k=K)       # (B, K, C)
        queries = self.queries.expand(len(e), -1, -1)                   # (B, K, C)
        return self.transformer(torch.cat([parts, queries], 1))[:, K:]


class Captioner(nn.Module):
    """A Mapper before GPT-2; both are trained. dim: D. tokenizer: GPT-2's.

    Paper [80]: silent on the length of the embeddings. All have length 1, A too (CapDec).
    """

    def __init__(self, scale, dim, tokenizer):
        super().__init__()
        end = tokenizer.eos_token_id
        self.gpt2 = GPT2LMHeadModel(GPT2Config(
            vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, pad_token_id=end,
            **scale.gpt2))
        width = self.gpt2.config.n_embd
        self.mapper = Mapper(dim, width, scale.prefix, scale.layers, scale.heads)

    def forward(self, e, tokens, mask):
        """Cross-entropy of the captions. e (B, D); tokens, mask (B, L), 0 at padding -> scalar"""
        prefix = self.mapper(F.normalize(e, dim=1))                     # (B, K, C)
        K = prefix.shape[1]
        x = torch.cat([prefix, self.gpt2.transformer.wte(tokens)], 1)   # (B, K + L, C)
        attended = F.pad(mask, (K, 0), value=1)                         # (B, K + L)
        logits = self.gpt2(inputs_embeds=x, attention_mask=attended).logits
        logits = logits[:, K - 1:-1]                                    # (B, L, vocabulary)
        return F.cross_entropy(logits.transpose(1, 2), tokens.masked_fill(mask == 0, -100))

    @torch.no_grad()
    def say(self, e, tokenizer, beam=BEAM):
        """e (B, D) -> B sentences, by beam search."""
        prefix = self.mapper(F.normalize(e, dim=1))                     # (B, K, C)
        attended = torch.ones(prefix.shape[:2], dtype=torch.long, device=e.device)  # (B, K)
        tokens = self.gpt2.generate(inputs_embeds=prefix, attention_mask=attended, num_beams=beam,
                                    do_sample=False, max_new_tokens=LONGEST)        # (B, L)
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [' '.join(text.split()) for text in texts]


def take_steps(captioner, E, tokens, mask, batches, lr, warmup, noise):
    """Train the captioner on N pairs. E: (N, D). tokens, mask: (N, L). -> the last loss

    batches: lists of rows of E, one per step. noise: its variance.
    Paper [82]: "image-text pairs", so e is the frame's embedding, without noise (the default).
    In CapDec itself e is the caption's text embedding plus noise: --condition text.
    """
    # CapDec uses the AdamW of transformers, whose default weight decay is 0
    optimiser = torch.optim.AdamW(captioner.parameters(), lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimiser, warmup, len(batches))
    E = F.normalize(E, dim=1)                                           # (N, D)
    captioner.train()
    bar = tqdm(batches, 'training')
    for step, batch in enumerate(bar):
        e = E[batch] + noise ** 0.5 * torch.randn_like(E[batch])        # (B, D)
        loss = captioner(e, tokens[batch], mask[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 10 == 0:
            bar.set_postfix(loss=f'{loss.item():.3f}')
    captioner.eval()
    return loss.item()


def tokenise(tokenizer, captions):
    """-> tokens (N, L), each caption with an end-of-text token; their mask (N, L), 0 at padding

    Paper [81]: silent on where a sentence ends. Here GPT-2 learns to end it by its end-of-text
    token. CapDec's captions lack that token; its beam search stops at the first full stop.
    """
    end = tokenizer.eos_token_id
    ids = tokenizer(captions, add_special_tokens=False).input_ids
    ids = [torch.tensor(one[:LONGEST - 1] + [end]) for one in ids]
    mask = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=end), mask


# ============ train ============

@dataclass(frozen=True)
class Scale:
    """Sizes, weights and training of one scale; those of 'paper' are CapDec's."""
    tokenizer: str              # hub name or folder
    pretrained: str | None      # GPT-2's first weights; None: random
    prefix: int                 # K
    layers: int                 # of the Mapper
    heads: int                  # of the Mapper
    lr: float                   # after the warm-up; then it falls to 0
    warmup: int                 # steps
    epochs: int
    batch_size: int
    gpt2: dict = field(default_factory=dict)        # sizes, where they are not GPT-2's


SCALES = {
    'miniature': Scale(str(ROOT / 'miniature/weights/qwen2_audio'), None, prefix=4, layers=1,
                       heads=4, lr=2e-3, warmup=20, epochs=6, batch_size=64,
                       gpt2={'n_embd': 128, 'n_layer': 2, 'n_head': 4, 'n_positions': 128}),
    'paper': Scale('gpt2', 'gpt2', prefix=40, layers=8, heads=8, lr=2e-5, warmup=5000, epochs=10,
                   batch_size=34),
}


def train(args):
    """Train a captioner and write it to args.out. OSError, ValueError: unusable files."""
    if args.out.exists() and not args.overwrite:
        raise FileExistsError(f'{args.out} is there: choose another --out, or --overwrite it')
    check_outputs([args.out], [])
    config = PRESETS[args.preset]
    scale = SCALES[args.preset]
    device = pick_device(args.device)
    if args.preset == 'miniature' and not args.data_root:
        draw_miniature(config.data_root)
    pairs = VGGSound(args.data_root or config.data_root, 'train', config.image_size,
                     config.seconds, skip_bad=True)
    caption_of = read_captions(args.captions, pairs, args.preset, args.seed)
    ids = [i for i in pairs.ids if i in caption_of]
    batch_size = args.batch_size or scale.batch_size
    if len(ids) < batch_size:
        raise ValueError(f'{len(ids)} of {len(pairs)} pairs of {pairs.list} have a caption, less '
                         f'than a batch of {batch_size}: name other --captions or --batch-size')
    captions = [caption_of[i] for i in ids]
    model, clip_tokenizer, *_ = load(device, None, 'av', args.preset, untrained=True,
                                     clipseg=args.clipseg, beats=args.beats)
    torch.manual_seed(args.seed)
    tokenizer = from_pretrained(AutoTokenizer, scale.tokenizer, '--preset')
    captioner = Captioner(scale, model.clipseg.config.projection_dim, tokenizer)
    if scale.pretrained:
        gpt2 = load_pretrained(GPT2LMHeadModel, scale.pretrained, '--preset')
        captioner.gpt2 = gpt2.requires_grad_(True)
    if args.condition == 'image':
        E = embed_frames(model, [pairs.files_of(i)[0] for i in ids], config.image_size)
    else:
        E = torch.cat([model.embed_text(clip_tokenizer, captions[k:k + 256], '<*>')
                       for k in range(0, len(ids), 256)])               # (N, D)
    batches = [batch for epoch in range(args.epochs or scale.epochs)
               for batch in epoch_batches(len(ids), batch_size, args.seed, epoch)]
    noise = NOISE if args.condition == 'text' else 0.0
    tokens, mask = tokenise(tokenizer, captions)                        # (N, L)
    loss = take_steps(captioner.to(device), E, tokens.to(device), mask.to(device), batches,
                      scale.lr, scale.warmup, noise)
    buffer = io.BytesIO()
    torch.save({'preset': args.preset, 'captioner': captioner.state_dict()}, buffer)
    write_file(args.out, buffer.getvalue())
    print(f'{args.out}: {len(batches)} steps of {batch_size} from {len(ids)} pairs, last loss '
          f'{loss:.3f}')


def read_captions(path, pairs, preset, seed):
    """-> {id: caption}, where there is one in a file of captions.py, or of GAMA's captions

    Paper [83]: GAMA's captions. GAMA needs an old fork of transformers (docs/captions.md), so the
    default is the data root's captions.jsonl. The miniature's audio captioner is vague by design,
    so there the default is one of two phrases in which the miniature describes each class.
    """
    if preset == 'miniature' and not path:
        from miniature.sounds import DESCRIPTIONS
        rng = np.random.default_rng(seed)
        lines = csv_lines(pairs.list)
        phrases = {fields[0]: DESCRIPTIONS.get(fields[-1]) for _, fields in lines}
        return {i: phrases[i][rng.integers(2)] for i in pairs.ids if phrases.get(i)}
    found = read_texts(path or captions_path(pairs.list.parent.parent), 'audio_caption')
    return {i: text for i, text in found.items() if text}


@torch.no_grad()
def embed_frames(model, files, image_size):
    """The CLIP embeddings of N image files -> (N, D). SampleError names an unreadable one."""
    device = next(model.parameters()).device
    E = []
    with ThreadPoolExecutor() as readers:
        for k in tqdm(range(0, len(files), 64), 'frames', leave=False):
            pictures = readers.map(read_own_image, files[k:k + 64])     # upright
            image = torch.stack([evaluation_image(one, image_size) for one, _ in pictures])
            E.append(embed_image(model.clipseg, image.to(device)))      # (64, D)
    return torch.cat(E)


# ============ say ============

# what e is the embedding of; the last three are there to compare
SOURCES = ('A of the sound', 'A, untrained', 'the frame', 'the class name')
ROWS = 6            # of Figure 12, at most


def say(args):
    """Print sentences: for args.audio and args.image, or for the sounds of VGG-SS."""
    check_outputs([args.figure], [])
    device = pick_device(args.device)
    load_av = partial(load, device, variant='av', preset=args.preset, clipseg=args.clipseg,
                      beats=args.beats)
    model, clip_tokenizer, *_ = load_av(checkpoint=args.checkpoint, untrained=False)
    tokenizer = from_pretrained(AutoTokenizer, SCALES[args.preset].tokenizer, '--preset')
    dim = model.clipseg.config.projection_dim
    captioner = read_captioner(args.captioner, args.preset, dim, tokenizer).to(device)
    describe = partial(captioner.say, tokenizer=tokenizer, beam=args.beam)
    if args.audio or args.image:
        say_own(model, describe, PRESETS[args.preset], args.audio, args.image)
        return
    dataset = open_benchmarks({'single': ['vggss']}, args.preset, args.data_root, None)['vggss']
    untrained, *_ = load_av(checkpoint=None, untrained=True)
    words = embed_names(model, clip_tokenizer, dataset)
    sentences = {source: {} for source in SOURCES}          # {source: {id: sentence}}
    for batch in tqdm(dataset.batches(SCALES[args.preset].batch_size), dataset.name, leave=False):
        if samples := readable(dataset, [dataset[i] for i in batch]):
            ids = [sample['id'] for sample in samples]
            for source, e in zip(SOURCES, embed_samples(model, untrained, samples, words)):
                sentences[source] |= zip(ids, describe(e))
    print(shares(sentences, {sample.id: sample.label for sample in dataset.samples}) + '\n')
    labels = [sample.label for sample in dataset.samples]
    first = [labels.index(label) for label in dict.fromkeys(labels)]        # of each class
    step = math.ceil(len(first) / ROWS)
    shown = readable(dataset, [dataset[i] for i in first[::step]])
    said = [sentences[SOURCES[0]][sample['id']] for sample in shown]
    for sample, sentence in zip(shown, said):
        print(f'{sample["label"]}: {sentence}')
    if args.figure:
        draw_figure_12(args.figure, shown, said, localise(model, shown, words))
        print(f'{args.figure}: in the manner of Figure 12')


def draw_figure_12(path, samples, sentences, maps):
    """Contact sheet: of each sample both maps (see localise), by class name and by sound."""
    columns = ['frame', 'ground truth', 'class name', 'sound']
    labels = [f'{said}\nclass: {s["label"]}' for s, said in zip(samples, sentences)]
    sheet_of_samples(path, samples, zip(maps['oracle'], maps['ours']), columns, labels,
                     'What the sound says, and the maps of the class name and of the sound')


@torch.no_grad()
def say_own(model, describe, config, audio, image):
    """Print the sentence of a sound file, and of a picture or of each picture in a folder.

    describe: (B, D) -> B sentences. audio, image: paths, or None.
    """
    device = next(model.parameters()).device
    if audio:
        wav = read_own_audio(audio, config.seconds)                     # (samples,)
        print(f'{audio}: {describe(model.embed_audio(wav[None].to(device)))[0]}')
    if image:
        files = [Path(image)]
        if files[0].is_dir():
            files = sorted(file for file in files[0].iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise FileNotFoundError(f'no picture ({", ".join(PICTURES)}) in {image}: correct '
                                    '--image')
        for file, e in zip(files, embed_frames(model, files, config.image_size)):
            print(f'{file}: {describe(e[None])[0]}')


@torch.no_grad()
def embed_samples(model, untrained, samples, words):
    """The embeddings e of B samples, in the order of SOURCES. -> four times (B, D)"""
    device = next(model.parameters()).device
    wav = torch.stack([sample['wav'] for sample in samples]).to(device)         # (B, samples)
    image = torch.stack([sample['image'] for sample in samples]).to(device)     # (B, 3, H, W)
    return (model.embed_audio(wav), untrained.embed_audio(wav), embed_image(model.clipseg, image),
            torch.stack([words[sample['label']] for sample in samples]))


def shares(sentences, label_of):
    """The share of sentences that name the class, by source, as a table. ValueError: none at all

    sentences: {source: {id: sentence}}. label_of: {id: class name}
    """
    rows = []
    for source, sentence_of in sentences.items():
        if not sentence_of:
            raise ValueError('no sample of VGG-SS can be read: make its files readable')
        named = [names_class(sentence, label_of[i]) for i, sentence in sentence_of.items()]
        rows.append([source, 100 * float(np.mean(named)), len(named)])
    return table(rows, ['sentences from', 'name the class, %', 'n'])


def names_class(sentence, label):
    """Whether a sentence names a class: "birds chirping" names bird, "a phone rings" telephone.

    Paper [84]: judges by eye. Here, for each word of the class name, some word of the sentence has
    to begin with it, or to be its ending and have four letters or more.
    """
    words = re.findall(r'\w+', sentence.lower())
    ends = tuple(word for word in words if len(word) > 3)
    for part in re.findall(r'\w+', label.lower()):
        begins = any(word.startswith(part) for word in words)
        if not begins and not part.endswith(ends):
            return False
    return True


def read_captioner(path, preset, dim, tokenizer):
    """Load the file that train wrote. -> Captioner, eval mode. OSError, ValueError: unusable"""
    remedy = 'make one by inversion.py train, or correct --captioner'
    saved = read_weights(path, remedy)
    captioner = Captioner(SCALES[preset], dim, tokenizer)
    try:
        captioner.load_state_dict(saved['captioner'])
        if not all(value.isfinite().all() for value in captioner.parameters()):
            raise ValueError
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError):
        raise ValueError(f'{path} is no captioner of --preset {preset} and this CLIP: '
                         f'{remedy}') from None
    return captioner.eval()


# ============ the command line ============

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    both = argparse.ArgumentParser(add_help=False)
    add = both.add_argument
    add('--preset', choices=list(SCALES), default='miniature', help='scale (default: miniature)')
    add('--data-root', type=some_path, help='folder of the datasets (default: the preset\'s)')
    add('--condition', choices=['image', 'text'], default='image', help='what the captioner is '
        'trained on: frames (the paper, default), or captions with noise (CapDec)')
    add('--seed', type=between(int, 0), default=0)
    add('--clipseg', type=some_path, help='hub name or folder instead of the preset\'s')
    add('--beats', type=some_path, help='BEATs file instead of the preset\'s')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    default = 'runs/inversion-<preset>-<condition>-seed<seed>.pt'
    commands = parser.add_subparsers(dest='command', required=True)
    add = commands.add_parser('train', help='train a captioner', parents=[both]).add_argument
    add('--captions', type=some_path, help='lines {"id", "audio_caption"}, or csv of id,caption '
        '(default: captions.jsonl in the data root; in the miniature its own phrases)')
    add('--epochs', type=between(int, 1), help='default: miniature 6, paper 10')
    add('--batch-size', type=between(int, 1), help='default: miniature 64, paper 34')
    add('--out', type=some_path, help=f'file to write (default: {default})')
    add('--overwrite', action='store_true', help='replace an --out that is there')
    add = commands.add_parser('say', help='sentences for sounds', parents=[both]).add_argument
    add('--captioner', type=some_path, help=f'file that train wrote (default: {default})')
    add('--checkpoint', type=some_path, help='of train.py, or the authors\' (default: shipped)')
    add('--audio', type=some_path, help='a sound of your own, in place of VGG-SS')
    add('--image', type=some_path, help='a picture of your own, or a folder of them')
    add('--figure', type=some_path, help='write Figure 12 here, as a .png')
    add('--beam', type=between(int, 1), default=BEAM, help='width of the beam search (default: 5)')
    args = parser.parse_args(argv)
    file = Path(f'runs/inversion-{args.preset}-{args.condition}-seed{args.seed}.pt')
    if args.command == 'train':
        args.out = Path(args.out or file)
    else:
        args.captioner = Path(args.captioner or file)
        if args.figure and (args.audio or args.image):
            parser.error('--figure shows VGG-SS: leave it out, or --audio and --image')
    outputs = [(f'--{name}', getattr(args, name, None)) for name in ('out', 'figure')]
    inputs = [(f'--{name}', getattr(args, name, None))
              for name in ('captions', 'captioner', 'checkpoint', 'clipseg', 'beats')]
    inputs.append(('the weights that ship', ROOT / 'miniature/weights'))
    inputs += files_of_root(args.data_root or PRESETS[args.preset].data_root)
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.command == 'train':
        train(args)
    else:
        say(args)


if __name__ == '__main__':
    run_script('inversion.py', main, 'interrupted; train starts again from its first step')
