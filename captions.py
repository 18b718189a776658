"""Captions and the language model's answer, section 3.6: T_image = {G_I2T(x_i)}, T_audio = {G_A2T(x_i)} and
C_object = {LLM(p, t_i, t_a)} of a dataset's pairs, which Eq. 6 aligns the audio with.

    python captions.py all                                              # the miniature, its own tiny models
    python captions.py all --preset paper                               # BLIP-2, Qwen2-Audio, Mistral; 24 GB of GPU memory
    torchrun --nproc_per_node=8 captions.py all --preset paper          # each process takes every eighth batch
    python captions.py audio --preset paper --audio-captions gama.jsonl # audio captions made elsewhere (README)
    python captions.py object --captions-from image                     # Table 10; writes captions-image.jsonl

Next to --out lie the stages' own files, image_captions.jsonl, audio_captions.jsonl and <out>.answers.jsonl: a first line
with the settings, then a line per pair (resumable.py): a killed run, started again, leaves what an undisturbed one
leaves, byte for byte. --out is made of them at the end, {"id", "image_caption", "audio_caption", "object", "models",
"error"} per pair, with "object" "" where there is no answer.
"""

import argparse
import hashlib
import os
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torchaudio
from transformers import (MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer,
                          Blip2ForConditionalGeneration, Blip2Processor, Qwen2AudioForConditionalGeneration)
from transformers.utils.logging import disable_progress_bar

from answers import captions_path
from data import (FORMS, SAMPLE_RATE, SampleError, read_audio, read_ids, read_image, sound_file,
                  tell_other_splits)
from model import PRESETS
from processes import end, lost_process, rank_and_processes, survive_signals
from resumable import (GO_ON, as_bytes, file_hash, fill, given_options, json_lines, overwritten,
                       parts_of, read_audio_captions, refuse_missing, some_path, write_whole)

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Captioners:
    """Hub name or folder of each stage's model, and the pairs per batch of each stage."""
    image: str
    audio: str
    object: str
    batch_sizes: tuple


CAPTIONERS = {
    # Paper: "BLIP-2", without a size: the one with OPT-2.7B, which most people mean. Its captions are unprompted.
    # Paper: GAMA captions the sounds. It lives in a fork of transformers 4 that cannot be installed beside this one, so
    # the default is one that transformers has and that, like GAMA, is an audio encoder before a 7B language model, trained
    # to describe sounds of every kind; GAMA's own captions come in by --audio-captions.
    'paper': Captioners('Salesforce/blip2-opt-2.7b', 'Qwen/Qwen2-Audio-7B-Instruct',
                        'mistralai/Mistral-7B-Instruct-v0.2', (32, 8, 16)),
    'miniature': Captioners(str(ROOT / 'miniature/weights/blip2'), str(ROOT / 'miniature/weights/qwen2_audio'),
                            str(ROOT / 'miniature/weights/mistral'), (60, 60, 60)),
}
STAGES = ('image', 'audio', 'object')
MAX_NEW_TOKENS = {'image': 30, 'audio': 60, 'object': 12}
# Paper: silent on decoding. Greedy, so that a caption depends on its pair alone: a checkpoint's own sampling is off, and
# its repetition penalty, which counts a batch's padding as said.
GREEDY = dict(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0)

# ------------------------------------------------------------------------------------------------
# The prompts
# ------------------------------------------------------------------------------------------------

# Paper: does not print what it asks the audio captioner
AUDIO_PROMPT = 'Describe the sound in one sentence.'
# 'both' is section 3.6's, word for word. Paper: Table 10 asks with one caption and does not print how: the same prompt
# with every clause about the other caption left out.
OBJECT_PROMPTS = {
    'both': 'Identify the primary object in the ‘image caption’ most likely producing the sound like given ‘audio '
            'caption’, excluding background sounds which is hard to infer from given ‘image caption’. Keep the answer '
            'concise and focused on general concepts, such as type. Limit the response to no more than 3 words.\n'
            'Image caption: {image}, Audio caption: {audio}',
    'image': 'Identify the primary object in the ‘image caption’ most likely producing the sound, excluding background '
             'sounds which is hard to infer from given ‘image caption’. Keep the answer concise and focused on general '
             'concepts, such as type. Limit the response to no more than 3 words.\nImage caption: {image}',
    'audio': 'Identify the primary object most likely producing the sound like given ‘audio caption’, excluding '
             'background sounds. Keep the answer concise and focused on general concepts, such as type. Limit the '
             'response to no more than 3 words.\nAudio caption: {audio}',
}

MOST_WORDS = 3
REFUSAL = re.compile(r"\b(can ?not|can't|could not|couldn't|unable|unknown|unclear|uncertain|undetermined|indeterminate|"
                     r"unspecified|unidentif\w+|impossible|insufficient|sorry|as an ai|don't know|none|n/a|nothing|"
                     r"(not|isn't|doesn't) (possible|clear|sure|certain|specif\w+|mention\w*|given|provide\w*|enough)|"
                     r"no (specific|clear|identifiable|particular|primary|visible|obvious|such|sound|object|answer)\w*)\b")
# what may stand before the object: "Based on the captions, ", "Answer: ", "The sound is most likely coming from "
OPENING = re.compile(
    r'^((based on|according to|given|from)\b[^,]*,\s*)?([a-z -]{0,30}\b(object|answer|source|sound|response|type)\s*:\s*)?'
    r'(((the|a|an|most|likely|primary|main|correct|final|sounding|sound-producing|producing|making|sound|noise|object|'
    r'source|answer|response|this|it|that|in|of|for|image|audio|caption)\s+)+'
    r'(is|are|was|would be|could be|may be|might be|must be|seems to be|appears to be|comes from|belongs to)\s*:?\s+'
    r'((most likely|likely|probably|possibly|coming|produced|made|caused|being|by|from|that of|of|the sound of)\s+)*)?')
ARTICLE = re.compile(r'^((a|an|the|some|this|that)\s+|(sounds?|noises?) of\s+)+')
CLAUSE = re.compile(r'\s+(in|on|at|with|that|which|who|is|are|producing|making|because|due|from|as|near|while)\s.*$')
LOOSE_END = re.compile(r'(\s+(a|an|the|of|and|or|in|on|at|with|to|by|is|are|that|which))+$')


def parse_answer(text):
    """The object in a language model's answer: lower case, at most 3 words, '' where it names none.

    -> (object, how), how being 'plain', 'mended' (a sentence around it, quotes, an article, too many words), 'refused'
    ("I cannot determine ...") or 'empty'.
    """
    plain = text.strip().lower()
    words = plain.translate(str.maketrans({'’': "'", '‘': "'", '“': '', '”': '', '"': '', '_': ' ', '`': '', '*': ''}))
    words = re.sub(r"\b(it|that|there)'s\b", r'\1 is', words)
    if REFUSAL.search(words):
        return '', 'refused'
    words = next((line.strip() for line in words.splitlines() if re.search(r'\w', line)), '')
    words = OPENING.sub('', re.sub(r'^([-•]|\d+[.)])\s+', '', words).strip(" '"))
    words = re.split(r"[.,;:!?/()\[\]<]|\s[-–—]\s|\s'|'\s", words.strip(" '.,;:!?"))[0].strip(" '")
    words = CLAUSE.sub('', ARTICLE.sub('', words)).split()
    if len(words) > MOST_WORDS:             # "man playing an electric guitar", "barking of a dog", "big red fire truck"
        verb = next((k for k, word in enumerate(words) if k and word.endswith('ing')), None)
        words = words[:verb][:MOST_WORDS] if verb or 'of' in words else words[-MOST_WORDS:]
    words = LOOSE_END.sub('', ' '.join(words))
    if not re.search(r'\w', words):
        return '', 'empty'
    return words, 'plain' if words == plain else 'mended'


# ------------------------------------------------------------------------------------------------
# The models
# ------------------------------------------------------------------------------------------------

def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_model(stage, name):
    """Whether a hub name or folder holds a model of the stage's kind; OSError or ValueError, one sentence, if not.

    -> 'name@revision', the revision being the hub's commit or, for a folder, a hash of its files
    """
    option = '--llm' if stage == 'object' else f'--{stage}-model'
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:          # transformers, its hub client and json each raise their own
        raise OSError(f'no usable model at {name!r} ({first_line(error)}): put its folder there or name another with '
                      f'{option}') from None
    fits = {'image': config.model_type == 'blip-2', 'audio': config.model_type == 'qwen2_audio',
            'object': type(config) in MODEL_FOR_CAUSAL_LM_MAPPING}
    if not fits[stage]:
        kind = {'image': 'a BLIP-2', 'audio': 'a Qwen2-Audio', 'object': 'a causal language model'}[stage]
        raise ValueError(f'{name} holds a model of type {config.model_type!r}, but the {stage} stage takes {kind}: name one '
                         f'with {option}')
    folder = Path(name).resolve()
    if not folder.is_dir():
        return f'{name}@{getattr(config, "_commit_hash", None) or "unknown"}'
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith('.'))
    return f'{folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else name}@{file_hash(files)}'


def load_model(model_class, processor_class, name, dtype, device):
    """-> (model in eval mode, its processor or tokenizer). ValueError, one sentence, when a part is missing or misfits."""
    try:
        processor = processor_class.from_pretrained(name, trust_remote_code=False)
        model, report = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    except Exception as error:          # as above, and safetensors' own
        raise ValueError(f'the model at {name} cannot be loaded ({first_line(error)}): fetch it again or name '
                         'another') from None
    if lost := sorted(map(str, [*report['missing_keys'], *report['mismatched_keys']])):
        raise ValueError(f'the model at {name} lacks {len(lost)} of its weights, the first {lost[0]}: fetch it again')
    return model.to(device).eval(), processor


def caption_images(model, processor, images, max_new_tokens):
    """G_I2T: BLIP-2 without a prompt. images: list of PIL -> list of captions"""
    inputs = processor(images=images, return_tensors='pt').to(model.device, model.dtype)    # pixel_values (B, 3, H, W)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens)      # (B, up to max_new_tokens + start)
    return [' '.join(text.split()) for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def caption_sounds(model, processor, wavs, max_new_tokens):
    """G_A2T: Qwen2-Audio asked for a description. wavs: list of (samples,) at 16 kHz in -1..1 -> list of captions"""
    rate = processor.feature_extractor.sampling_rate
    if rate != SAMPLE_RATE:
        wavs = [torchaudio.functional.resample(wav, SAMPLE_RATE, rate) for wav in wavs]
    question = [{'role': 'user', 'content': [{'type': 'audio', 'audio_url': ''}, {'type': 'text', 'text': AUDIO_PROMPT}]}]
    text = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    processor.tokenizer.padding_side = 'left'
    inputs = processor(text=[text] * len(wavs), audio=[wav.numpy() for wav in wavs], sampling_rate=rate, padding=True,
                       return_tensors='pt').to(model.device, model.dtype)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens)                      # (B, prompt + new)
    new = tokens[:, inputs['input_ids'].shape[1]:]
    return [' '.join(text.split()) for text in processor.batch_decode(new, skip_special_tokens=True)]


def answer_prompts(model, tokenizer, prompts, max_new_tokens):
    """The language model's raw answers, in its own chat template. prompts: list of texts -> list of texts"""
    texts = [tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}], add_generation_prompt=True,
                                           tokenize=False) for prompt in prompts]
    tokenizer.padding_side = 'left'     # a decoder goes on from the last token, which padding must not be
    if tokenizer.pad_token is None:     # Mistral's has none; the attention mask hides whatever stands in for it
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(texts, padding=True, add_special_tokens=False, return_token_type_ids=False,
                       return_tensors='pt').to(model.device)                                        # (B, prompt)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.batch_decode(tokens[:, inputs['input_ids'].shape[1]:], skip_special_tokens=True)


# ------------------------------------------------------------------------------------------------
# The three stages
# ------------------------------------------------------------------------------------------------

def stage_file(stage, args):
    """Where a stage keeps its lines: the captions for every --out of a folder, the answers for each --out."""
    return args.out.with_name(f'{args.out.stem}.answers.jsonl' if stage == 'object' else f'{stage}_captions.jsonl')


def settings_of(stage, args, ids, model):
    listed = hashlib.sha256('\n'.join(ids).encode()).hexdigest()[:16]
    prompt = {'image': None, 'audio': AUDIO_PROMPT, 'object': OBJECT_PROMPTS[args.captions_from]}[stage]
    return {'stage': stage, 'model': model, 'prompt': prompt, 'max_new_tokens': args.max_new_tokens[stage],
            'batch_size': args.batch_sizes[stage], 'dtype': args.dtype, 'pairs': len(ids), 'list of pairs': listed}


def caption_stage(stage, args, ids, model_name):
    """T_image or T_audio. An unreadable file is its pair's error. -> lines {'id', '<stage>_caption', 'error'}"""
    folder, key = args.data_root / 'vggsound', f'{stage}_caption'
    if stage == 'image':
        read = lambda i: read_image(folder / f'frames/{i}.jpg')
        classes, describe = (Blip2ForConditionalGeneration, Blip2Processor), caption_images
    else:
        read = lambda i: read_audio(sound_file(folder / 'audio', i), PRESETS[args.preset].seconds)
        classes, describe = (Qwen2AudioForConditionalGeneration, AutoProcessor), caption_sounds

    def attempt(i):
        try:
            return read(i)
        except SampleError as error:
            return error

    def load():
        model, processor = load_model(*classes, args.models[stage], getattr(torch, args.dtype), args.device)

        def work(batch):
            with ThreadPoolExecutor(args.workers) as readers:
                inputs = list(readers.map(attempt, batch))
            good = [x for x in inputs if not isinstance(x, SampleError)]
            captions = iter(describe(model, processor, good, args.max_new_tokens[stage]) if good else ())
            return [{'id': i, key: None, 'error': str(x)} if isinstance(x, SampleError) else
                    {'id': i, key: next(captions), 'error': None} for i, x in zip(batch, inputs)]
        return work

    if stage == 'audio' and args.audio_captions:
        elsewhere = read_audio_captions(args.audio_captions, ids)
        load = lambda: lambda batch: [{'id': i, key: elsewhere[i], 'error': None} for i in batch]
    keep = lambda line: not (args.retry_failed and line['error'])
    return fill(stage_file(stage, args), settings_of(stage, args, ids, model_name), ids, load, keep, f'{stage} captions')


def object_stage(args, ids, model_name):
    """C_object: asks the language model, then writes --out. -> {id: sentence} of the pairs that failed"""
    captions, failed = {i: {'image_caption': None, 'audio_caption': None} for i in ids}, {}
    models = {'image': None, 'audio': None}
    for stage in models:
        path, key = stage_file(stage, args), f'{stage}_caption'
        if args.captions_from not in ('both', stage):
            continue
        if not path.is_file():
            raise FileNotFoundError(f'no {path}: run the {stage} stage first, captions.py {stage} or all')
        header, *lines = json_lines(path)[0] or [{}]
        lines = {line.get('id'): line for line in lines}
        refuse_missing(path, lines, ids)
        models[stage] = header.get('settings', {}).get('model')
        for i in ids:
            captions[i][key] = lines[i].get(key)
            if captions[i][key] is None:
                failed.setdefault(i, lines[i].get('error') or f'{path} has neither a caption nor an error')
    prompt = OBJECT_PROMPTS[args.captions_from]

    def load():
        llm = args.models['object']
        model, tokenizer = load_model(AutoModelForCausalLM, AutoTokenizer, llm, getattr(torch, args.dtype), args.device)
        if not tokenizer.chat_template:
            raise ValueError(f'the tokenizer at {llm} has no chat template: name an instructed model with --llm')

        def work(batch):
            asked = [i for i in batch if i not in failed]
            prompts = [prompt.format(image=captions[i]['image_caption'], audio=captions[i]['audio_caption']) for i in asked]
            said = iter(answer_prompts(model, tokenizer, prompts, args.max_new_tokens['object']) if asked else ())
            return [{'id': i, **captions[i], 'answer': None if i in failed else next(said)} for i in batch]
        return work

    path = stage_file('object', args)
    if args.out.exists() and not path.exists():
        raise FileExistsError(f'{args.out} is there without {path.name}, so it was made elsewhere: choose another --out, '
                              'or start over with --overwrite')
    # an answer to captions that have been made anew since is not kept
    keep = lambda line: all(line.get(k) == v for k, v in captions[line['id']].items()) and (
        isinstance(line.get('answer'), str) or line['id'] in failed)
    lines = fill(path, settings_of('object', args, ids, model_name), ids, load, keep, 'answers')
    if rank_and_processes()[0] > 0:
        return failed
    counts, written = Counter(), []
    for line in lines:
        answer, how = ('', 'failed') if line['id'] in failed else parse_answer(line['answer'])
        counts[how] += 1
        written.append({'id': line['id'], **captions[line['id']], 'object': answer,
                        'models': {**models, 'llm': model_name}, 'error': failed.get(line['id'])})
    write_whole(args.out, b''.join(map(as_bytes, written)), GO_ON)
    print(f'{args.out}: {len(lines)} pairs, {counts["plain"] + counts["mended"]} with an object ({counts["mended"]} of them '
          f'mended), {counts["refused"]} refused, {counts["empty"]} empty, {counts["failed"]} failed')
    return failed


# ------------------------------------------------------------------------------------------------
# The command line
# ------------------------------------------------------------------------------------------------

STAGES_OF = {       # options that only some stages read; those of the models may always be given
    'captions_from': ('object',), 'audio_captions': ('audio',), 'retry_failed': ('image', 'audio')}


def refuse_ignored(parser, given, stages):
    """An option that none of the stages reads, or that --overwrite makes useless, is an error."""
    for name, readers in STAGES_OF.items():
        if name in given and not set(readers) & set(stages):
            parser.error(f'{given[name]} is for the stage {" or ".join(readers)}, which does not '
                         'run: leave it out')
    if 'retry_failed' in given and 'overwrite' in given:
        parser.error('--overwrite captions every pair anew: leave out --retry-failed')


def refuse_overwriting(parser, args):
    """The file of a stage in the place of an input is an error."""
    outputs = [(f'the file of the {stage} stage', stage_file(stage, args)) for stage in args.stages]
    outputs += [('--out', args.out)] if 'object' in args.stages else []
    inputs = [('--ids', args.ids or args.data_root / 'vggsound/train.csv'),
              ('--audio-captions', args.audio_captions), ('--image-model', args.image_model),
              ('--audio-model', args.audio_model), ('--llm', args.llm)]
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('stage', choices=[*STAGES, 'all'], help='all: the stages one after the other, one model at a time')
    add('--preset', choices=list(PRESETS), default='miniature', help='models and data (default: miniature)')
    add('--data-root', type=some_path, help="folder of the datasets (default: the preset's)")
    add('--out', type=some_path, help='result (default: <data root>/captions.jsonl, or by '
        '--captions-from captions-<kind>.jsonl)')
    add('--ids', type=some_path,
        help='list of pairs, any subset (default: <data root>/vggsound/train.csv)')
    add('--captions-from', choices=list(OBJECT_PROMPTS), default='both',
        help='what the language model is told (Table 10; default: both); with image or audio, '
             '"all" leaves out the other captioner')
    add('--audio-captions', type=some_path,
        help='jsonl or csv of id and audio_caption made elsewhere, for the audio stage')
    for option, stage in (('--image-model', 'image'), ('--audio-model', 'audio'), ('--llm', 'object')):
        models = ', '.join(f'{preset}: {Path(getattr(c, stage)).name}' for preset, c in CAPTIONERS.items())
        add(option, type=some_path, help=f'hub name or folder ({models})')
    add('--device', help='default: cuda where there is one, else cpu')
    add('--dtype', choices=['float32', 'bfloat16', 'float16'], help='default: bfloat16 on a GPU, else float32')
    sizes = ', '.join(f'{preset}: {c.batch_sizes}' for preset, c in CAPTIONERS.items())
    add('--batch-size', type=int, help=f'pairs at once in every stage that runs (for image, audio, object {sizes})')
    for stage, tokens in MAX_NEW_TOKENS.items():
        add(f'--{stage}-tokens', type=int, default=tokens, help=f'longest {stage} text, in tokens ({tokens})')
    add('--workers', type=int, default=4, help='threads that read files (default: 4)')
    add('--retry-failed', action='store_true', help='caption the batches of failed pairs once more')
    add('--overwrite', action='store_true', help='start over with the stages that run')
    args = parser.parse_args(argv)
    args.stages = [s for s in STAGES if s == args.stage or args.stage == 'all' and (
        s == 'object' or args.captions_from in ('both', s))]
    args.data_root_given, args.data_root = bool(args.data_root), Path(args.data_root or PRESETS[args.preset].data_root)
    args.out = Path(args.out or captions_path(args.data_root, args.captions_from))
    if args.out.is_dir():
        parser.error(f'--out {args.out} is a folder: name a file in it')
    refuse_ignored(parser, given_options(parser, argv), args.stages)
    args.audio_captions = args.audio_captions and Path(args.audio_captions)
    refuse_overwriting(parser, args)
    captioners, given = CAPTIONERS[args.preset], (args.image_model, args.audio_model, args.llm)
    args.models = {stage: name or getattr(captioners, stage) for stage, name in zip(STAGES, given)}
    batches = captioners.batch_sizes if args.batch_size is None else [args.batch_size] * len(STAGES)
    args.batch_sizes = dict(zip(STAGES, batches))
    args.max_new_tokens = {s: getattr(args, f'{s}_tokens') for s in STAGES}
    if min(args.workers, *args.batch_sizes.values(), *args.max_new_tokens.values()) < 1:
        parser.error('--batch-size, --workers and the numbers of tokens must be at least 1')
    try:
        args.device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f'--device {args.device} is not to be had here ({str(error).splitlines()[0]})')
    if args.device.type == 'cuda' and args.device.index is None:
        args.device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    args.dtype = args.dtype or ('float32' if args.device.type == 'cpu' else 'bfloat16')
    return args


def pairs_to_caption(args):
    """The ids of the list. ValueError when it names one twice or is another dataset's."""
    path = Path(args.ids or args.data_root / 'vggsound/train.csv')
    ids = read_ids(path, training=True)
    tell_other_splits(path)
    folder = args.data_root / 'vggsound'
    for stage, has in (('image', lambda i: (folder / f'frames/{i}.jpg').is_file()),
                       ('audio', lambda i: bool(args.audio_captions) or sound_file(folder / 'audio', i).is_file())):
        if stage in args.stages and not any(map(has, ids)):
            raise ValueError(f'none of the {len(ids)} pairs of {path} has its {stage} below '
                             f'{folder}: a line is {FORMS}; README.md, "Real data", says what goes '
                             'where; --data-root and --ids name others')
    return ids


def main(args):
    """-> {id: sentence} of the pairs that failed"""
    survive_signals()
    disable_progress_bar()                                              # of loading; ours stays
    if 'RANK' in os.environ:
        dist.init_process_group('gloo', timeout=timedelta(hours=24))    # nothing but waiting: gloo does it on GPUs too
    rank, processes = rank_and_processes()
    if rank == 0 and args.preset == 'miniature' and not args.data_root_given:
        from miniature import world as miniature_world
        miniature_world.build(args.data_root)
    prepared = [None, None]
    if rank == 0:                       # everything that can be refused is, before hours of work
        ids, names = pairs_to_caption(args), {}
        for stage in args.stages:
            if stage == 'audio' and args.audio_captions:
                read_audio_captions(args.audio_captions, ids)
                names[stage] = f'{args.audio_captions.name}@{file_hash([args.audio_captions])}'
            else:
                names[stage] = check_model(stage, args.models[stage])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for stage in args.stages if args.overwrite else ():
            file = stage_file(stage, args)
            result = [args.out] if stage == 'object' else []
            for old in (file, *parts_of(file), *result):
                # a link stays, and will lead to the new file
                Path(os.path.realpath(old)).unlink(missing_ok=True)
        prepared = [ids, names]
    if processes > 1:
        dist.broadcast_object_list(prepared)
    (ids, names), failed = prepared, {}
    for stage in args.stages:
        if stage == 'object':
            failed = object_stage(args, ids, names[stage])
        else:
            failed |= {line['id']: line['error'] for line in caption_stage(stage, args, ids, names[stage]) if line['error']}
    if processes > 1:
        dist.destroy_process_group()
    return failed if rank == 0 else {}


if __name__ == '__main__':
    try:
        wrong = main(parse_args())
    except (OSError, ValueError, torch.OutOfMemoryError) as problem:
        if os.environ.get('ACL_DEBUG'):     # ACL_DEBUG=1 shows where it happened
            raise
        if isinstance(problem, torch.OutOfMemoryError):
            problem = 'the GPU has too little memory: lower --batch-size'
        elif getattr(problem, 'filename', None):
            problem = f'cannot use {problem.filename} ({problem.strerror}): name another place or mend it'
        end(f'captions.py: {problem}')
    except RuntimeError as problem:
        if lost := lost_process(problem):
            end(f'captions.py: {lost}. If it was killed, the same command goes on from the last finished batch')
        raise
    except KeyboardInterrupt:
        end('captions.py: interrupted; the same command goes on from the last finished batch', 128 + signal.SIGINT)
    if wrong:
        end(f'captions.py: {len(wrong)} pairs failed and are marked in the file, which is whole otherwise, the first '
            f'{next(iter(wrong))}: {next(iter(wrong.values()))}; mended ones are captioned by --retry-failed')
