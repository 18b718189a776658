"""Section 3.6: captions of all pairs, and the language model's answers that Eq. 6 aligns.

    python captions.py all                          # the miniature, with its own tiny models
    python captions.py all --preset paper           # BLIP-2, Qwen2-Audio, Mistral; a 24 GB GPU
    torchrun --nproc_per_node=8 captions.py all --preset paper      # batches shared by 8 processes
    python captions.py audio --preset paper --audio-captions gama.jsonl     # made elsewhere
    python captions.py object --captions-from image     # Table 10; writes captions-image.jsonl

Each stage has a folder beside --out: image_captions, audio_captions (shared by every --out there)
and <out>.answers. It holds settings.json and a JSON file per finished batch. A killed run, started
again, leaves what an undisturbed run leaves, byte for byte. --out is joined from them at the end:
{"id", "image_caption", "audio_caption", "object", "models", "error"}, a line per pair, with
"object" "" where there is no answer.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import transformers         # imports a class when it is first named: train.py needs none of these
from tqdm import tqdm

from benchmarks.lists import WHERE, csv_lines, unique, utf8_text
from checkpoint import (gather_lists, given_options, overwritten, pick_device, rank_and_processes,
                        run_script, some_path, start_processes, wait_for_all, write_file)
from data import FORMS, read_ids, tell_other_splits
from media import SAMPLE_RATE, SampleError, read_audio, read_image, sound_file
from model import PRESETS, ROOT

# Paper [31]: "BLIP-2", without a size: the one with OPT-2.7B, unprompted.
# Paper [32]: GAMA captions the sounds. It needs a fork of transformers 4. The default is one that
# transformers has and that, like GAMA, is an audio encoder before a 7B language model, trained to
# describe sounds of every kind; GAMA's own captions come in by --audio-captions.
CAPTIONERS = {      # preset: stage: hub name or folder of its model, pairs per batch
    'paper': {'image': ('Salesforce/blip2-opt-2.7b', 32),
              'audio': ('Qwen/Qwen2-Audio-7B-Instruct', 8),
              'object': ('mistralai/Mistral-7B-Instruct-v0.2', 16)},
    'miniature': {'image': (str(ROOT / 'miniature/weights/blip2'), 60),
                  'audio': (str(ROOT / 'miniature/weights/qwen2_audio'), 60),
                  'object': (str(ROOT / 'miniature/weights/mistral'), 60)},
}
STAGES = {'image': '--image-model', 'audio': '--audio-model', 'object': '--llm'}
MAX_NEW_TOKENS = {'image': 30, 'audio': 60, 'object': 12}
# Paper [33]: silent on decoding. Greedy, so that a caption depends on its pair alone. A
# checkpoint's own sampling is off, and its repetition penalty, which counts a batch's padding.
GREEDY = dict(do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
              repetition_penalty=1.0)


# ============ T_image and T_audio ============

def caption_images(model, processor, images, max_new_tokens):
    """G_I2T: BLIP-2 without a prompt. images: list of PIL -> list of captions"""
    inputs = processor(images=images, return_tensors='pt')          # pixel_values (B, 3, H, W)
    inputs = inputs.to(model.device, model.dtype)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens)  # (B, start + new)
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    return [' '.join(text.split()) for text in texts]


# Paper [34]: does not print what it asks the audio captioner
AUDIO_PROMPT = 'Describe the sound in one sentence.'


def caption_sounds(model, processor, wavs, max_new_tokens):
    """G_A2T: Qwen2-Audio. wavs: list of (samples,) at 16 kHz in -1..1 -> list of captions"""
    content = [{'type': 'audio', 'audio_url': ''}, {'type': 'text', 'text': AUDIO_PROMPT}]
    text = processor.apply_chat_template([{'role': 'user', 'content': content}],
                                         add_generation_prompt=True, tokenize=False)
    processor.tokenizer.padding_side = 'left'
    inputs = processor(text=[text] * len(wavs), audio=[wav.numpy() for wav in wavs],
                       sampling_rate=SAMPLE_RATE, padding=True, return_tensors='pt')
    inputs = inputs.to(model.device, model.dtype)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens)  # (B, prompt + new)
    new = tokens[:, inputs['input_ids'].shape[1]:]                              # (B, new)
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return [' '.join(text.split()) for text in texts]


# ============ C_object ============

SHORT = ('Keep the answer concise and focused on general concepts, such as type. Limit the '
         'response to no more than 3 words.\n')
OBJECT_PROMPTS = {      # 'both' is the paper's, word for word
    'both': 'Identify the primary object in the ‘image caption’ most likely producing the sound '
            'like given ‘audio caption’, excluding background sounds which is hard to infer from '
            f'given ‘image caption’. {SHORT}Image caption: {{image}}, Audio caption: {{audio}}',
    # Paper [35]: Table 10 asks with one caption and does not print how: the same prompt, without
    # every clause about the other caption.
    'image': 'Identify the primary object in the ‘image caption’ most likely producing the sound, '
             'excluding background sounds which is hard to infer from given ‘image caption’. '
             f'{SHORT}Image caption: {{image}}',
    'audio': 'Identify the primary object most likely producing the sound like given ‘audio '
             f'caption’, excluding background sounds. {SHORT}Audio caption: {{audio}}',
}


def answer_prompts(model, tokenizer, prompts, max_new_tokens):
    """The language model's raw answers, in its own chat template. -> list of texts"""
    texts = [tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}],
                                           add_generation_prompt=True, tokenize=False)
             for prompt in prompts]
    tokenizer.padding_side = 'left'         # generation continues from the last token
    if tokenizer.pad_token is None:         # as Mistral's; the attention mask hides what is padded
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(texts, padding=True, add_special_tokens=False,
                       return_token_type_ids=False, return_tensors='pt').to(model.device)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens,
                            pad_token_id=tokenizer.pad_token_id)                # (B, prompt + new)
    new = tokens[:, inputs['input_ids'].shape[1]:]                              # (B, new)
    return tokenizer.batch_decode(new, skip_special_tokens=True)


MOST_WORDS = 3
LETTERS = str.maketrans({'’': "'", '‘': "'", '_': ' ', **dict.fromkeys('“”"`*', '')})
REFUSAL = re.compile(
    r"\b(can ?not|can't|could not|couldn't|unable|unknown|unclear|uncertain|undetermined|"
    r"indeterminate|unspecified|unidentif\w+|impossible|insufficient|sorry|as an ai|don't know|"
    r"none|n/a|nothing|(not|isn't|doesn't) (possible|clear|sure|certain|specif\w+|mention\w*|given|"
    r"provide\w*|enough)|no (specific|clear|identifiable|particular|primary|visible|obvious|such|"
    r"sound|object|answer)\w*)\b")
OPENING = re.compile(       # "Based on the captions, ", "Answer: ", "The sound is coming from "
    r'^((based on|according to|given|from)\b[^,]*,\s*)?'
    r'([a-z -]{0,30}\b(object|answer|source|sound|response|type)\s*:\s*)?'
    r'(((the|a|an|most|likely|primary|main|correct|final|sounding|sound-producing|producing|'
    r'making|sound|noise|object|source|answer|response|this|it|that|in|of|for|image|audio|'
    r'caption)\s+)+'
    r'(is|are|was|would be|could be|may be|might be|must be|seems to be|appears to be|comes from|'
    r'belongs to)\s*:?\s+((most likely|likely|probably|possibly|coming|produced|made|caused|being|'
    r'by|from|that of|of|the sound of)\s+)*)?')
ARTICLE = re.compile(r'^((a|an|the|some|this|that)\s+|(sounds?|noises?) of\s+)+')
CLAUSE = re.compile(r'\s+(in|on|at|with|that|which|who|is|are|producing|making|because|due|from|'
                    r'as|near|while)\s.*$')
LOOSE_END = re.compile(r'(\s+(a|an|the|of|and|or|in|on|at|with|to|by|is|are|that|which))+$')


def parse_answer(text):
    """The object in a language model's answer: lower case, at most 3 words, '' where it names none.

    -> (object, how), how being 'plain', 'cleaned' (of a sentence around it, quotes, an article,
    too many words), 'refused' ("I cannot determine ...") or 'empty'.
    """
    plain = text.strip().lower()
    words = re.sub(r"\b(it|that|there)'s\b", r'\1 is', plain.translate(LETTERS))
    if REFUSAL.search(words):
        return '', 'refused'
    words = next((line.strip() for line in words.splitlines() if re.search(r'\w', line)), '')
    words = re.sub(r'^([-•]|\d+[.)])\s+', '', words).strip(" '")            # "1. ", "- "
    words = OPENING.sub('', words).strip(" '.,;:!?")
    words = re.split(r"[.,;:!?/()\[\]<]|\s[-–—]\s|\s'|'\s", words)[0].strip(" '")
    words = CLAUSE.sub('', ARTICLE.sub('', words)).split()
    if len(words) > MOST_WORDS:
        verb = next((k for k, word in enumerate(words) if k and word.endswith('ing')), None)
        if verb or 'of' in words:               # "man playing an electric guitar", "flock of ..."
            words = words[:verb][:MOST_WORDS]
        else:                                   # "big red fire truck"
            words = words[-MOST_WORDS:]
    words = LOOSE_END.sub('', ' '.join(words))
    if not re.search(r'\w', words):
        return '', 'empty'
    return words, 'plain' if words == plain else 'cleaned'


# ============ C of Eq. 6, for train.py ============

def captions_path(root, captions_from='both'):
    """A data root's captions.jsonl, or Table 10's captions-image.jsonl and captions-audio.jsonl."""
    return Path(root) / f'captions-{captions_from}.jsonl'.replace('-both', '')


def make_captions(captions_from, device=None):
    """Caption the miniature's own pairs, in the calling process alone."""
    args = parse_args(['all', '--captions-from', captions_from])
    if failed := caption(args, pick_device(device)):
        raise ValueError(f'{len(failed)} pairs could not be captioned: {min(failed.values())}')


def load_answers(path, model, tokenizer, ids):
    """The language model's answers to the given pairs, each text encoded once.

    -> C (different answers, D), {id: row of C}, a digest of who was given which answer
    """
    lines = read_captions(path, ids)
    object_of = {i: line['object'] for i, line in lines.items() if line['object']}
    digest = hashlib.sha256(json.dumps(sorted(object_of.items())).encode()).hexdigest()[:12]
    texts = sorted(set(object_of.values()))
    if len(texts) < 2:
        raise ValueError(f'{path} holds {len(texts)} different answers: L_ACL_C needs two; run '
                         'captions.py again')
    # Paper [29]: c_i goes through CLIP's text encoder as it is, without "A photo of a" around it
    C = torch.cat([model.embed_text(tokenizer, texts[k:k + 256], template='<*>')
                   for k in range(0, len(texts), 256)])                         # (texts, D)
    if rank_and_processes()[0] == 0:
        print(f'{path}: {len(object_of)} of {len(ids)} pairs have an answer, '
              f'{len(texts)} different ones')
    row_of = {text: row for row, text in enumerate(texts)}
    return C.float().cpu(), {i: row_of[text] for i, text in object_of.items()}, digest


# ============ files of captions ============

def read_captions(path, ids):
    """The lines of a captions file for the given ids. -> {id: line}"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no captions at {path}: make them by captions.py all with this '
                                '--data-root and --captions-from, or name others by --captions')
    found = by_id(path, json_lines(path, 'rerun captions.py, which completes it'), 'object', ids)
    for i, line in found.items():
        if re.search('[\ud800-\udfff]', line['object']):
            raise ValueError(f'{path}: the object of {i} holds half a character (a lone '
                             'surrogate): write that line again')
    return found


def read_audio_captions(path, ids):
    """Audio captions made elsewhere: lines {"id", "audio_caption"}, or a csv. -> {id: caption}"""
    if not path.is_file():
        raise FileNotFoundError(f'no file of audio captions at {path}: correct --audio-captions')
    if path.suffix == '.csv':
        remedy = 'write each caption on one line, in quotes if it holds commas'
        lines = csv_lines(path, utf8_text(path, remedy), remedy)
        rows = [{'id': fields[0], 'audio_caption': fields[1]} if len(fields) == 2
                else {f'line {number}, with {len(fields)} fields, not 2': ','.join(fields)}
                for number, fields in lines if fields != ['id', 'audio_caption']]
    else:
        rows = json_lines(path, 'write it again')
    found = by_id(path, rows, 'audio_caption', ids)
    return {i: ' '.join(row['audio_caption'].split()) for i, row in found.items()}


def json_lines(path, remedy):
    """The JSON objects of a text file, one a line. ValueError names the line."""
    found = []
    for number, line in enumerate(utf8_text(path, remedy).split('\n'), 1):
        try:
            if line.strip():
                found.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            wrong = 'is not a JSON object, or is truncated'
            raise ValueError(f'{path}: line {number} {wrong}: {remedy}') from None
    return found


def by_id(path, rows, key, ids):
    """{id: row} for the given ids. ValueError where a pair is missing, twice, or has no text."""
    for row in rows:
        texts = [text for text in (row.get('id'), row.get(key)) if isinstance(text, str)]
        if len(texts) < 2 or (key == 'audio_caption' and not texts[1].strip()):
            raise ValueError(f'{path}: the entry {str(row)[:80]} needs an id and an {key}, both '
                             'texts; in a csv, one with commas stands in quotes')
    found = unique([(row['id'], row) for row in rows], path)
    if missing := [i for i in ids if i not in found]:
        cause = 'it is of another dataset' if len(missing) == len(ids) else 'caption them too'
        raise ValueError(f'{path} lacks {len(missing)} of the {len(ids)} pairs, the first '
                         f'{missing[0]}: {cause}')
    return {i: found[i] for i in ids}


def as_bytes(content, indent=None):
    return json.dumps(content, ensure_ascii=False, indent=indent).encode('utf-8', 'replace') + b'\n'


def read_json(path):
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        raise ValueError(f'{path} is damaged: delete it, and run its stage again') from None


# ============ the models ============

def check_model(stage, name):
    """Whether a hub name or folder holds a model of the stage's kind; one sentence, if not.

    -> 'name@revision', the revision being the hub's commit or, for a folder, a hash of its files
    """
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:          # transformers, its hub client and json each raise their own
        raise OSError(f'no usable model at {name!r} ({first_line(error)}): put its folder there '
                      f'or name another with {STAGES[stage]}') from None
    kind = config.model_type
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = 'causal language model'
    wanted = {'image': 'blip-2', 'audio': 'qwen2_audio', 'object': 'causal language model'}[stage]
    if kind != wanted:
        raise ValueError(f'{name} holds a model of type {config.model_type!r}, but the {stage} '
                         f'stage takes a {wanted}: name one with {STAGES[stage]}')
    files = sorted(file for file in Path(name).glob('[!.]*') if file.is_file())
    revision = file_hash(files) if files else getattr(config, '_commit_hash', None) or 'unknown'
    return Path(name).as_posix().removeprefix(f'{ROOT.as_posix()}/') + f'@{revision}'


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def file_hash(paths):
    """Twelve hexadecimal digits that change with the names or the content of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, 'rb') as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:12]


def load_model(model_class, processor_class, name, dtype, device):
    """-> (model in eval mode, its processor or tokenizer). ValueError where a part is missing."""
    try:
        processor = processor_class.from_pretrained(name, trust_remote_code=False)
        model, report = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True,
                                                    trust_remote_code=False)
    except Exception as error:          # as above, and safetensors' own
        raise ValueError(f'the model at {name} cannot be loaded ({first_line(error)}): fetch it '
                         'again or name another') from None
    if lost := sorted(map(str, [*report['missing_keys'], *report['mismatched_keys']])):
        raise ValueError(f'the model at {name} lacks {len(lost)} of its weights, the first '
                         f'{lost[0]}: fetch it again')
    return model.to(device).eval(), processor


def load_captioner(stage, args):
    """-> a function from a list of inputs of the stage's model to a list of texts"""
    describe, *classes = {
        'image': (caption_images, transformers.Blip2ForConditionalGeneration,
                  transformers.Blip2Processor),
        'audio': (caption_sounds, transformers.Qwen2AudioForConditionalGeneration,
                  transformers.AutoProcessor),
        'object': (answer_prompts, transformers.AutoModelForCausalLM,
                   transformers.AutoTokenizer)}[stage]
    name = args.models[stage]
    model, processor = load_model(*classes, name, getattr(torch, args.dtype), args.device)
    if stage == 'object' and not processor.chat_template:
        raise ValueError(f'the tokenizer at {name} has no chat template: name an instructed model '
                         'with --llm')
    return partial(describe, model, processor, max_new_tokens=args.max_new_tokens[stage])


# ============ the stages: a JSON file per batch ============

GO_ON = 'free some space; the same command then goes on from the last finished batch'


def stage_folder(stage, out):
    return out.with_name(f'{out.stem}.answers' if stage == 'object' else f'{stage}_captions')


def caption(args, device, rank=0, processes=1):
    """T_image, T_audio and C_object, as far as asked for. -> {id: sentence} of failed pairs"""
    transformers.utils.logging.disable_progress_bar()                   # of loading; ours stays
    args.device = device
    args.dtype = args.dtype or ('float32' if device.type == 'cpu' else 'bfloat16')
    prepared = prepare(args) if rank == 0 else []
    ids, names, elsewhere = gather_lists(prepared) if processes > 1 else prepared
    failed = {}
    for stage in args.stages:
        lines = [{'id': i} for i in ids]
        if stage == 'audio' and elsewhere:
            lines = [{'id': i, 'audio_caption': elsewhere[i]} for i in ids]
        if stage == 'object':
            lines, models = read_stages(args, ids)
        lines = run_stage(stage, args, names[stage], lines, rank, processes)
        failed |= {line['id']: line['error'] for line in lines if line['error']}
        if stage == 'object' and rank == 0:
            write_captions(args.out, lines, {**models, 'llm': names[stage]})
    return failed


def prepare(args):
    """Refuse bad input before hours of work. -> [ids, {stage: model}, {id: given caption}]"""
    if args.preset == 'miniature' and not args.data_root_given:
        from miniature import world
        world.build(args.data_root)
    ids, names, elsewhere = pairs_to_caption(args), {}, None
    for stage in args.stages:
        if stage == 'audio' and args.audio_captions:
            elsewhere = read_audio_captions(args.audio_captions, ids)
            names[stage] = f'{args.audio_captions.name}@{file_hash([args.audio_captions])}'
        else:
            names[stage] = check_model(stage, args.models[stage])
    answers = stage_folder('object', args.out)
    if 'object' in args.stages and args.out.exists() and not (args.overwrite or answers.exists()):
        raise FileExistsError(f'{args.out} is there without {answers.name}, so it was made '
                              'elsewhere: choose another --out, or start over with --overwrite')
    for stage in args.stages if args.overwrite else ():
        folder = stage_folder(stage, args.out)
        result = [args.out.resolve()] if stage == 'object' else []  # a link stays
        for old in (*folder.glob('[0-9]*.json'), folder / 'settings.json', *result):
            old.unlink(missing_ok=True)
    return [ids, names, elsewhere]


def pairs_to_caption(args):
    """The ids of the list. ValueError when it names one twice or is another dataset's."""
    folder = args.data_root / 'vggsound'
    path = Path(args.ids or folder / 'train.csv')
    ids = read_ids(path, training=True)
    tell_other_splits(path)
    frames = any((folder / f'frames/{i}.jpg').is_file() for i in ids)
    sounds = args.audio_captions or any(sound_file(folder / 'audio', i).is_file() for i in ids)
    for stage, found in (('image', frames), ('audio', sounds)):
        if stage in args.stages and not found:
            raise ValueError(f'none of the {len(ids)} pairs of {path} has its {stage} below '
                             f'{folder}: a line is {FORMS}; {WHERE}, --ids another list')
    return ids


def run_stage(stage, args, model, lines, rank, processes):
    """Caption the batches that a stage's folder lacks. -> all lines, each with the model's text

    Batch k is lines[k B : (k + 1) B], whoever captions it and however often the run was killed.
    """
    folder, size = stage_folder(stage, args.out), args.batch_sizes[stage]
    key = 'answer' if stage == 'object' else f'{stage}_caption'
    batches = [lines[k:k + size] for k in range(0, len(lines), size)]
    files = [folder / f'{k:06d}.json' for k in range(len(batches))]
    todo = []
    if rank == 0:
        begin(folder, stage, args, model, [line['id'] for line in lines])
        again = args.retry_failed and stage != 'object'
        todo = [k for k, file in enumerate(files) if not is_finished(file, batches[k], again)]
    if processes > 1:
        todo = gather_lists(todo)
    if rank < len(todo):
        say = list if key in lines[0] else load_captioner(stage, args)
    read = partial(read_input, stage, args)
    done = len(lines) - sum(len(batches[k]) for k in todo)
    with ThreadPoolExecutor(args.workers) as readers, \
            tqdm(total=len(lines), initial=done, desc=folder.name, unit=' pairs',
                 disable=rank > 0 or not todo, dynamic_ncols=True) as bar:
        for first in range(0, len(todo), processes):
            now = todo[first:first + processes]             # a batch for each process
            for k in now[rank:rank + 1]:
                inputs = list(readers.map(read, batches[k]))
                good = [x for x in inputs if not isinstance(x, SampleError)]
                texts = iter(say(good) if good else [])
                found = [{**line, key: None, 'error': str(x)} if isinstance(x, SampleError)
                         else {**line, key: next(texts), 'error': None}
                         for line, x in zip(batches[k], inputs)]
                write_file(files[k], as_bytes(found, indent=1), GO_ON)
            bar.update(sum(len(batches[k]) for k in now))
    if processes > 1:
        wait_for_all()
    return [line for file in files for line in read_json(file)]


def begin(folder, stage, args, model, ids):
    """Note the settings of a new stage. ValueError where the folder was begun with others."""
    prompt = {'image': None, 'audio': AUDIO_PROMPT, 'object': OBJECT_PROMPTS[args.captions_from]}
    listed = hashlib.sha256('\n'.join(ids).encode()).hexdigest()[:16]
    settings = {'stage': stage, 'model': model, 'prompt': prompt[stage],
                'max_new_tokens': args.max_new_tokens[stage],
                'batch_size': args.batch_sizes[stage], 'dtype': args.dtype, 'pairs': len(ids),
                'list of pairs': listed}
    for leftover in folder.glob('*.partial*'):              # of a killed run
        leftover.unlink()
    file = folder / 'settings.json'
    if not file.exists():
        write_file(file, as_bytes(settings, indent=1), GO_ON)
    before = read_json(file)
    for name, now in settings.items():
        if before.get(name) != now:
            raise ValueError(f'{folder} was begun with {name} {str(before.get(name))[:60]!r}, not '
                             f'{str(now)[:60]!r}: rerun with the same settings, choose an --out in '
                             'another folder, or start over with --overwrite')


def is_finished(file, batch, retry_failed):
    """Whether a batch has its file. An answer to captions that have changed since is none."""
    found = read_json(file) if file.exists() else []
    if retry_failed and any(line['error'] for line in found):
        return False
    return [new | line for line, new in zip(batch, found)] == found and len(found) == len(batch)


def read_input(stage, args, line):
    """What the stage's model is given of a pair, or the SampleError that says why not."""
    folder, i = args.data_root / 'vggsound', line['id']
    try:
        if stage == 'image':
            return read_image(folder / f'frames/{i}.jpg')
        if stage == 'audio' and args.audio_captions:
            return line['audio_caption']
        if stage == 'audio':
            return read_audio(sound_file(folder / 'audio', i), PRESETS[args.preset].seconds)
    except SampleError as error:
        return error
    if line['error']:
        return SampleError(line['error'])
    prompt = OBJECT_PROMPTS[args.captions_from]
    return prompt.format(image=line['image_caption'], audio=line['audio_caption'])


def read_stages(args, ids):
    """What the captioners said. -> lines with both captions, {stage: model}"""
    lines = [{'id': i, 'image_caption': None, 'audio_caption': None, 'error': None} for i in ids]
    models = {'image': None, 'audio': None}
    for stage in [s for s in models if args.captions_from in ('both', s)]:
        folder = stage_folder(stage, args.out)
        if not (folder / 'settings.json').is_file():
            raise FileNotFoundError(f'no {folder}: run the {stage} stage first, captions.py '
                                    f'{stage} or all')
        models[stage] = read_json(folder / 'settings.json')['model']
        rows = [row for file in sorted(folder.glob('[0-9]*.json')) for row in read_json(file)]
        for line, row in zip(lines, by_id(folder, rows, 'id', ids).values()):
            line[f'{stage}_caption'] = row[f'{stage}_caption']
            line['error'] = line['error'] or row['error']
    return lines, models


def write_captions(out, lines, models):
    """Join captions and parsed answers in --out, and count them."""
    counts, written = Counter(), []
    for line in lines:
        answer, how = ('', 'failed') if line['error'] else parse_answer(line['answer'])
        counts[how] += 1
        captions = {name: line[name] for name in ('id', 'image_caption', 'audio_caption')}
        written.append({**captions, 'object': answer, 'models': models, 'error': line['error']})
    write_file(out, b''.join(map(as_bytes, written)), GO_ON)
    print(f'{out}: {len(lines)} pairs, {counts["plain"] + counts["cleaned"]} with an object '
          f'({counts["cleaned"]} of them cleaned), {counts["refused"]} refused, '
          f'{counts["empty"]} empty, {counts["failed"]} failed')


# ============ the command line ============

def refuse(parser, argv, args):
    """An option that no stage reads, or an output in the place of an input, is an error."""
    given = given_options(parser, argv)
    for name, readers in (('captions_from', ('object',)), ('audio_captions', ('audio',)),
                          ('retry_failed', ('image', 'audio'))):
        if name in given and not set(readers) & set(args.stages):
            parser.error(f'{given[name]} is for the stage {" or ".join(readers)}, which does not '
                         'run: leave it out')
    if args.retry_failed and args.overwrite:
        parser.error('--overwrite captions every pair anew: leave out --retry-failed')
    if args.out.is_dir():
        parser.error(f'--out {args.out} is a folder: name a file in it')
    outputs = [(f'the folder of the {s} stage', stage_folder(s, args.out)) for s in args.stages]
    outputs += [('--out', args.out)] if 'object' in args.stages else []
    inputs = [('--ids', args.ids or args.data_root / 'vggsound/train.csv'),
              ('--audio-captions', args.audio_captions)]
    inputs += [(option, args.models[stage]) for stage, option in STAGES.items()]
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)
    if min(args.workers, *args.batch_sizes.values(), *args.max_new_tokens.values()) < 1:
        parser.error('--batch-size, --workers and the numbers of tokens must be at least 1')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('stage', choices=[*STAGES, 'all'], help='all: one after the other, one model at a time')
    add('--preset', choices=list(PRESETS), default='miniature', help='models and data')
    add('--data-root', type=some_path, help="folder of the datasets (default: the preset's)")
    add('--out', type=some_path,
        help='result (default: captions.jsonl or, by --captions-from, captions-<kind>.jsonl)')
    add('--ids', type=some_path, help='list of pairs, any subset (default: vggsound/train.csv)')
    add('--captions-from', choices=list(OBJECT_PROMPTS), default='both',
        help='what the language model is told (Table 10); "all" leaves out the other captioner')
    add('--audio-captions', type=some_path, help='made elsewhere: jsonl, or csv of id,caption')
    for stage, option in STAGES.items():
        names = ', '.join(f'{preset}: {Path(c[stage][0]).name}' for preset, c in CAPTIONERS.items())
        add(option, type=some_path, dest=f'{stage}_model', help=f'hub name or folder ({names})')
        add(f'--{stage}-tokens', type=int, default=MAX_NEW_TOKENS[stage],
            help='longest text, in tokens (default: %(default)s)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: the best that is there')
    add('--dtype', choices=['float32', 'bfloat16', 'float16'],
        help='default: float32 on the CPU, else bfloat16')
    sizes = {preset: [c[stage][1] for stage in STAGES] for preset, c in CAPTIONERS.items()}
    add('--batch-size', type=int, help=f'pairs at once (default of the three stages: {sizes})')
    add('--workers', type=int, default=4, help='threads that read files (default: 4)')
    add('--retry-failed', action='store_true', help='caption the batches of failed pairs once more')
    add('--overwrite', action='store_true', help='start over with the stages that run')
    args = parser.parse_args(argv)
    args.stages = list(STAGES) if args.stage == 'all' else [args.stage]
    if args.stage == 'all' and args.captions_from != 'both':
        args.stages = [args.captions_from, 'object']
    args.data_root_given = bool(args.data_root)
    args.data_root = Path(args.data_root or PRESETS[args.preset].data_root)
    args.out = Path(args.out or captions_path(args.data_root, args.captions_from))
    args.audio_captions = args.audio_captions and Path(args.audio_captions)
    args.models, args.batch_sizes, args.max_new_tokens = {}, {}, {}
    for stage, (name, size) in CAPTIONERS[args.preset].items():
        args.models[stage] = getattr(args, f'{stage}_model') or name
        args.batch_sizes[stage] = size if args.batch_size is None else args.batch_size
        args.max_new_tokens[stage] = getattr(args, f'{stage}_tokens')
    refuse(parser, argv, args)
    return args


def main(argv=None):
    args = parse_args(argv)
    device = start_processes(args.device)
    failed = caption(args, device, *rank_and_processes())
    if failed and rank_and_processes()[0] == 0:
        print(f'captions.py: {len(failed)} pairs failed and are marked in the file, which is '
              'complete otherwise, the first {}: {}; '.format(*next(iter(failed.items()))) +
              '--retry-failed captions them once their files are right', file=sys.stderr)
        return 1


if __name__ == '__main__':
    run_script('captions.py', main, 'interrupted; the same command goes on from the last finished '
                                    'batch')
