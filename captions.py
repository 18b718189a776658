"""Section 3.6: captions of all pairs, and the language model's answers that Eq. 6 aligns.

    T_image = {G_I2T(x)}            caption_images      BLIP-2
    T_audio = {G_A2T(x)}            caption_sounds      Qwen2-Audio
    C_object = {LLM(p, t_i, t_a)}   answer_prompts      Mistral, asked OBJECT_PROMPTS (p)
    C_i = E_CLIP(c_i)               load_answers        for Eq. 6 (losses.py, acl_c)

    python captions.py all                          # the miniature, with its own tiny models
    python captions.py all --preset paper           # the models above; a 24 GB GPU
    torchrun --nproc_per_node=8 captions.py all --preset paper      # batches shared by 8 processes
    python captions.py audio --preset paper --audio-captions gama.jsonl     # made elsewhere
    python captions.py object --captions-from image     # Table 10; writes captions-image.jsonl

Each stage writes one JSON file per finished batch into a folder beside --out: image_captions,
audio_captions (both shared by all --out in that place) and <out>.answers. After a crash the same
command goes on, with the same result to the byte. The object stage then writes --out, a line per
pair: {"id", "image_caption", "audio_caption", "object", "models", "error"}; "object" is "" where
the language model gave no answer.
"""

import argparse
import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import transformers         # imports each class at its first use: train.py uses no captioner
from tqdm import tqdm

from benchmarks.lists import WHERE, csv_lines, json_lines, unique, utf8_text
from benchmarks.pairs import FORMS, FRAMES, print_other_splits, read_ids
from checkpoint import (gather_lists, given_options, overwritten, pick_device, rank_and_processes,
                        run_script, some_path, start_processes, wait_for_all, write_file)
from data import draw_miniature
from media import SAMPLE_RATE, SOUNDS, SampleError, file_of, read_audio, read_image
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
STAGES = {          # stage: option that names its model, the model's type, longest text in tokens
    'image': ('--image-model', 'blip-2', 30),
    'audio': ('--audio-model', 'qwen2_audio', 60),
    'object': ('--llm', 'causal language model', 12),
}
# Paper [33]: silent on decoding. Greedy, so that a caption depends on its pair alone. Sampling and
# the repetition penalty (it would count a batch's padding) of a checkpoint are switched off.
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
    processor.tokenizer.padding_side = 'left'       # generation continues from the last token
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
    'both': 'Identify the primary object in the ‘image caption’ most likely producing the '
            'sound like given ‘audio caption’, excluding background sounds which is hard to '
            f'infer from given ‘image caption’. {SHORT}'
            'Image caption: {image}, Audio caption: {audio}',
    # Paper [35]: Table 10 asks with one caption and does not print how: the same prompt, without
    # every clause about the other caption.
    'image': 'Identify the primary object in the ‘image caption’ most likely producing the '
             'sound, excluding background sounds which is hard to infer from given ‘image '
             f'caption’. {SHORT}Image caption: {{image}}',
    'audio': 'Identify the primary object most likely producing the sound like given ‘audio '
             f'caption’, excluding background sounds. {SHORT}Audio caption: {{audio}}',
}


def answer_prompts(model, tokenizer, prompts, max_new_tokens):
    """LLM: each prompt in the model's own chat template. -> list of raw answers"""
    texts = [tokenizer.apply_chat_template([{'role': 'user', 'content': prompt}],
                                           add_generation_prompt=True, tokenize=False)
             for prompt in prompts]
    tokenizer.padding_side = 'left'         # generation continues from the last token
    if tokenizer.pad_token is None:         # Mistral has none; the attention mask hides padding
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(texts, padding=True, add_special_tokens=False,
                       return_token_type_ids=False, return_tensors='pt').to(model.device)
    tokens = model.generate(**inputs, **GREEDY, max_new_tokens=max_new_tokens,
                            pad_token_id=tokenizer.pad_token_id)                # (B, prompt + new)
    new = tokens[:, inputs['input_ids'].shape[1]:]                              # (B, new)
    return tokenizer.batch_decode(new, skip_special_tokens=True)


LETTERS = str.maketrans({'’': "'", '‘': "'", '_': ' ', **dict.fromkeys('“”"`*', '')})
REFUSAL = re.compile(
    r"\b(not|can ?not|\w+n't|unable|un(known|clear|certain|determined|specified|identif\w+)|"
    r'indeterminate|impossible|insufficient|sorry|none|n/a|nothing|no (specific|clear|primary|'
    r'particular|identifiable|visible|obvious|such|sound|object|answer)\w*)\b')
# "The sound is most likely coming from a dog barking in the background.": dog barking
BEFORE = set("""
    a an the some this that it it's that's there's is are was be could would may might must seems
    appears to most likely probably possibly primary main correct final sounding sound-producing
    producing making sound sounds noise noises object source answer response type image audio
    caption captions based on according given from in for of by coming comes belongs produced made
    caused being""".split())
AFTER = set('in on at with that which who is are producing making because due from as near while'
            .split())
MOST_WORDS = 3


def parse_answer(text):
    """The object that a language model's answer names: lower case, at most 3 words.

    -> '' for a refusal ("I cannot determine ...") and for an answer without a word
    """
    lines = text.lower().translate(LETTERS).splitlines()
    line = next((line for line in lines if re.search(r'\w', line)), '')
    if REFUSAL.search(line):
        return ''
    line = re.sub(r'^\s*\d+[.)]\s|</?\w+>', '', line)                   # "1. ", "</s>"
    words = [word.strip("'") for word in re.findall(r"[\w'-]+|\S", line)]
    while words and (words[0] in BEFORE or not re.match(r'\w', words[0])):
        words.pop(0)
    end = next((k for k, word in enumerate(words) if word in AFTER or not re.match(r'\w', word)),
               None)
    words = words[:end]
    if len(words) > MOST_WORDS:
        verb = next((k for k, word in enumerate(words) if k and word.endswith('ing')), None)
        if verb or 'of' in words:               # "man playing an electric guitar", "flock of ..."
            words = words[:verb][:MOST_WORDS]
        else:                                   # "big red fire truck"
            words = words[-MOST_WORDS:]
    while words and words[-1] in ('a', 'an', 'the', 'of', 'and', 'or', 'to', 'by'):
        words.pop()
    return ' '.join(words)


# ============ C of Eq. 6, for train.py ============

def load_answers(path, model, tokenizer, ids):
    """CLIP's embedding of each different answer to the given pairs.

    -> C (texts, D), {id: row of C}, a hash of all ids with their answers (for --resume)
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


# ============ the three stages over all pairs ============

def caption(args, device, rank=0, processes=1):
    """Run the stages that the command line names. -> {id: sentence} of failed pairs"""
    transformers.utils.logging.disable_progress_bar()                   # that of loading weights
    dtype = args.dtype or ('float32' if device.type == 'cpu' else 'bfloat16')
    prepared = prepare(args, dtype) if rank == 0 else []
    ids, given = gather_lists(prepared) if processes > 1 else prepared  # given: --audio-captions
    failed = {}
    for stage in args.stages:
        lines = [{'id': i} for i in ids]
        if stage == 'object':
            lines, models = join_captions(args.folders, args.captions_from, ids)
        read = partial(read_input, stage, args.data_root / 'vggsound',
                       PRESETS[args.preset].seconds, given, OBJECT_PROMPTS[args.captions_from])
        load = partial(load_captioner, stage, given, args.models[stage], getattr(torch, dtype),
                       device, args.max_new_tokens[stage])
        key = 'answer' if stage == 'object' else f'{stage}_caption'
        again = args.retry_failed and stage != 'object'
        lines = run_stage(args.folders[stage], key, lines, read, load, args.batch_sizes[stage],
                          args.workers, again, rank, processes)
        failed |= {line['id']: line['error'] for line in lines if line['error']}
        if stage == 'object' and rank == 0:
            write_captions(args.out, lines, models)
    return failed


def run_stage(folder, key, lines, read, load, batch_size, workers, retry_failed, rank, processes):
    """Caption the batches that have no file yet. -> all lines, each with a text under `key`

    read: read_input of a line; load() -> a function from a list of inputs to a list of texts.
    Which pairs make a batch depends on the batch size alone, so several processes, or a run that
    was killed and restarted, write the same files as a single uninterrupted one.
    """
    batches = {folder / f'{k // batch_size:06d}.json': lines[k:k + batch_size]
               for k in range(0, len(lines), batch_size)}
    todo = [file for file in list(batches)[rank::processes]
            if not is_finished(file, batches[file], retry_failed)]
    if todo:
        describe = load()
    with ThreadPoolExecutor(workers) as readers:
        for file in tqdm(todo, folder.name, unit=' batches', disable=rank > 0 or not todo):
            inputs = list(readers.map(read, batches[file]))
            readable = [content for content, error in inputs if not error]
            texts = iter(describe(readable) if readable else [])
            captioned = [{**line, key: None if error else next(texts), 'error': error}
                         for line, (_, error) in zip(batches[file], inputs)]
            write_file(file, json.dumps(captioned, ensure_ascii=False, indent=1) + '\n', GO_ON)
    if processes > 1:
        wait_for_all()
    return [line for file in batches for line in read_json(file)]


def read_input(stage, folder, seconds, given, prompt, line):
    """What a stage's model takes of a pair. -> (image, wav or text), (None or an error)"""
    try:
        if stage == 'image':
            return read_image(file_of(folder / 'frames', line['id'], FRAMES)), None
        if stage == 'audio' and given:
            return given[line['id']], None
        if stage == 'audio':
            return read_audio(file_of(folder / 'audio', line['id'], SOUNDS), seconds), None
    except SampleError as error:
        return None, str(error)
    return prompt.format(image=line['image_caption'], audio=line['audio_caption']), line['error']


def join_captions(folders, captions_from, ids):
    """Both captions of each pair, or the one that the language model is told of.

    -> [{'id', 'image_caption', 'audio_caption', 'error'}], {'image', 'audio', 'llm': model or None}
    """
    lines = [{'id': i, 'image_caption': None, 'audio_caption': None, 'error': None} for i in ids]
    models = {'image': None, 'audio': None}
    for stage in ('image', 'audio') if captions_from == 'both' else (captions_from,):
        folder = folders[stage]
        rows = [row for file in sorted(folder.glob('[0-9]*.json')) for row in read_json(file)]
        if not rows:
            raise FileNotFoundError(f'no captions in {folder}: run the {stage} stage first, '
                                    f'captions.py {stage} or all')
        models[stage] = read_json(folder / 'settings.json')['model']
        for line, row in zip(lines, by_id(folder, rows, 'id', ids).values()):
            line[f'{stage}_caption'] = row[f'{stage}_caption']
            line['error'] = line['error'] or row['error']
    models['llm'] = read_json(folders['object'] / 'settings.json')['model']
    return lines, models


def write_captions(out, lines, models):
    """Write --out, with the objects that the answers name, and count them."""
    named = 0
    written = []
    for line in lines:
        answer = '' if line['error'] else parse_answer(line['answer'])
        named += answer != ''
        captions = {name: line[name] for name in ('id', 'image_caption', 'audio_caption')}
        rest = {'object': answer, 'models': models, 'error': line['error']}
        written.append(json.dumps(captions | rest, ensure_ascii=False) + '\n')
    write_file(out, ''.join(written), GO_ON)
    print(f'{out}: {named} of {len(lines)} pairs have an object')


# ============ the models ============

def load_captioner(stage, given, name, dtype, device, max_new_tokens):
    """-> a function from a list of the stage's inputs to a list of texts"""
    if stage == 'audio' and given:
        return list                     # the inputs are the captions
    hub = transformers
    describe, *classes = {
        'image': (caption_images, hub.Blip2ForConditionalGeneration, hub.Blip2Processor),
        'audio': (caption_sounds, hub.Qwen2AudioForConditionalGeneration, hub.AutoProcessor),
        'object': (answer_prompts, hub.AutoModelForCausalLM, hub.AutoTokenizer)}[stage]
    model, processor = load_pretrained(*classes, name, dtype, device)
    if stage == 'object' and not processor.chat_template:
        raise ValueError(f'the tokenizer at {name} has no chat template: name an instructed model '
                         'with --llm')
    return partial(describe, model, processor, max_new_tokens=max_new_tokens)


def load_pretrained(model_class, processor_class, name, dtype, device):
    """-> (model in eval mode, its processor or tokenizer). ValueError where weights are missing."""
    processor = from_pretrained(processor_class, name)
    model, report = from_pretrained(model_class, name, dtype=dtype, output_loading_info=True)
    if lost := sorted(map(str, [*report['missing_keys'], *report['mismatched_keys']])):
        raise ValueError(f'the model at {name} lacks {len(lost)} of its weights, the first '
                         f'{lost[0]}: fetch it again')
    return model.to(device).eval(), processor


def from_pretrained(part, name, **options):
    """A class of transformers from a hub name or a folder. OSError, one sentence"""
    try:
        return part.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:          # transformers, its hub client, json, safetensors: any kind
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise OSError(f'no usable model at {name!r} ({cause}): put its folder there, fetch it '
                      'again, or name another with --image-model, --audio-model or --llm') from None


def check_model(stage, name):
    """ValueError unless the configuration at `name` is of the type that the stage takes.

    -> 'name@revision', the revision being the hub's commit or, for a folder, a hash of its files
    """
    option, wanted, _ = STAGES[stage]
    config = from_pretrained(transformers.AutoConfig, name)
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if wanted != ('causal language model' if causal else config.model_type):
        raise ValueError(f'{name} holds a model of type {config.model_type!r}, but the {stage} '
                         f'stage takes a {wanted}: name one with {option}')
    files = sorted(file for file in Path(name).glob('[!.]*') if file.is_file())
    revision = file_hash(files) if files else getattr(config, '_commit_hash', None) or 'unknown'
    return Path(name).as_posix().removeprefix(f'{ROOT.as_posix()}/') + f'@{revision}'


def file_hash(paths):
    """Twelve hexadecimal digits of the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, 'rb') as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:12]


# ============ files of captions ============

def captions_path(root, captions_from='both'):
    """A data root's captions.jsonl, or Table 10's captions-image.jsonl and captions-audio.jsonl."""
    return Path(root) / f'captions-{captions_from}.jsonl'.replace('-both', '')


def read_captions(path, ids, key='object', remedy='rerun captions.py, which completes it'):
    """A file with a JSON object in each line. -> {id: object} for these ids; see by_id"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no captions at {path}: make them by captions.py all with this '
                                '--data-root and --captions-from, or name others by --captions')
    return by_id(path, json_lines(path, remedy), key, ids)


def read_audio_captions(path, ids):
    """Audio captions made elsewhere: lines {"id", "audio_caption"}, or a csv. -> {id: caption}"""
    if not path.is_file():
        raise FileNotFoundError(f'no file of audio captions at {path}: correct --audio-captions')
    if path.suffix == '.csv':
        remedy = 'write each caption on one line, in quotes if it holds commas'
        rows = []
        for number, fields in csv_lines(path, utf8_text(path, remedy), remedy):
            if len(fields) != 2:
                raise ValueError(f'{path}: line {number}, with {len(fields)} fields, not 2: '
                                 f'{remedy}')
            rows.append({'id': fields[0], 'audio_caption': fields[1]})
        found = by_id(path, rows, 'audio_caption', ids)
    else:
        found = read_captions(path, ids, 'audio_caption', 'write it again')
    return {i: ' '.join(row['audio_caption'].split()) for i, row in found.items()}


def by_id(path, rows, key, ids):
    """{id: row} for these ids. ValueError where one is missing, twice, or has no text under key."""
    for row in rows:
        text = row.get(key)
        blank = key == 'audio_caption' and not str(text).strip()
        if blank or not isinstance(text, str) or not isinstance(row.get('id'), str):
            raise ValueError(f'{path}: {str(row)[:80]} needs an id and an {key}, both texts')
        row[key] = text.encode('utf-8', 'replace').decode('utf-8')      # lone surrogates become ?
    found = unique([(row['id'], row) for row in rows], path)
    if missing := [i for i in ids if i not in found]:
        cause = 'it is of another dataset' if len(missing) == len(ids) else 'caption them too'
        raise ValueError(f'{path} lacks {len(missing)} of the {len(ids)} pairs, the first '
                         f'{missing[0]}: {cause}')
    return {i: found[i] for i in ids}


# ============ before the first batch, and resuming ============

GO_ON = 'free some space; the same command then goes on from the last finished batch'


def prepare(args, dtype):
    """Check all inputs before hours of work. -> [ids, {id: caption} of --audio-captions or None]"""
    if args.preset == 'miniature' and not args.data_root_given:
        draw_miniature(args.data_root)
    elsewhere = args.audio_captions
    ids = pairs_to_caption(args.data_root, args.ids, args.stages, elsewhere)
    given = elsewhere and read_audio_captions(elsewhere, ids)
    models = {stage: check_model(stage, args.models[stage]) for stage in args.stages
              if not (stage == 'audio' and given)}
    if given:
        models['audio'] = f'{elsewhere.name}@{file_hash([elsewhere])}'
    answers = args.folders['object']
    if 'object' in args.stages and args.out.exists() and not (args.overwrite or answers.exists()):
        raise FileExistsError(f'{args.out} is there without {answers.name}, so it was made '
                              'elsewhere: choose another --out, or start over with --overwrite')
    prompts = {'image': None, 'audio': AUDIO_PROMPT, 'object': OBJECT_PROMPTS[args.captions_from]}
    for stage in args.stages:
        begin_stage(args.folders[stage], args.overwrite, {
            'stage': stage, 'model': models[stage], 'prompt': prompts[stage],
            'max_new_tokens': args.max_new_tokens[stage], 'batch_size': args.batch_sizes[stage],
            'dtype': dtype, 'pairs': len(ids),
            'list of pairs': hashlib.sha256('\n'.join(ids).encode()).hexdigest()[:16]})
    return [ids, given]


def pairs_to_caption(data_root, path, stages, audio_captions=None):
    """The ids of a list. ValueError where it names one twice or is another dataset's."""
    folder = data_root / 'vggsound'
    ids = read_ids(path, training=True)
    print_other_splits(path)
    frames = any(file_of(folder / 'frames', i, FRAMES).is_file() for i in ids)
    sounds = audio_captions or any(file_of(folder / 'audio', i, SOUNDS).is_file() for i in ids)
    for stage, found in (('image', frames), ('audio', sounds)):
        if stage in stages and not found:
            raise ValueError(f'none of the {len(ids)} pairs of {path} has its {stage} below '
                             f'{folder}: a line is {FORMS}; {WHERE}, --ids another list')
    return ids


def begin_stage(folder, overwrite, settings):
    """Write a stage's settings.json. ValueError if its folder has batches of other settings."""
    file = folder / 'settings.json'
    old = list(folder.glob('*.partial*'))                   # of a killed run
    if overwrite:
        old += [file, *folder.glob('[0-9]*.json')]
    for path in old:
        path.unlink(missing_ok=True)
    if not any(folder.glob('[0-9]*.json')):
        write_file(file, json.dumps(settings, ensure_ascii=False, indent=1) + '\n', GO_ON)
    before = read_json(file)
    for name, now in settings.items():
        if before.get(name) != now:
            raise ValueError(f'{folder} was begun with {name} {str(before.get(name))[:60]!r}, not '
                             f'{str(now)[:60]!r}: rerun with the same settings, choose an --out in '
                             'another folder, or start over with --overwrite')


def is_finished(file, batch, retry_failed):
    """Whether a batch's file exists and was made from these lines (captions may have changed)."""
    found = read_json(file) if file.exists() else []
    same = [line.items() <= new.items() for line, new in zip(batch, found)]
    failed = any(line['error'] for line in found)
    return len(found) == len(batch) and all(same) and not (retry_failed and failed)


def read_json(file):
    """A stage's settings or a batch's lines. ValueError if the file is damaged."""
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except ValueError:
        of_all = file.name == 'settings.json'
        remedy = 'start over: --overwrite' if of_all else 'delete it, and run its stage again'
        raise ValueError(f'{file} is damaged: {remedy}') from None


# ============ the command line ============

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('stage', choices=[*STAGES, 'all'], help='all: one after the other, one model at a time')
    add('--preset', choices=list(PRESETS), default='miniature', help='models and data')
    add('--data-root', type=some_path, help="folder of the datasets (default: the preset's)")
    add('--out', type=some_path,
        help='result (default: captions.jsonl or captions-<kind>.jsonl in the data root)')
    add('--ids', type=some_path, help='list of pairs, any subset (default: vggsound/train.csv)')
    add('--captions-from', choices=list(OBJECT_PROMPTS), default='both',
        help='captions that the language model is given (Table 10); "all" runs their stages only')
    add('--audio-captions', type=some_path, help='made elsewhere: jsonl, or csv of id,caption')
    for stage, (option, _, tokens) in STAGES.items():
        names = ', '.join(f'{preset}: {Path(c[stage][0]).name}, {c[stage][1]} pairs at once'
                          for preset, c in CAPTIONERS.items())
        add(option, type=some_path, dest=f'{stage}_model', help=f'hub name or folder ({names})')
        add(f'--{stage}-tokens', type=int, default=tokens, help='longest text (%(default)s tokens)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    add('--dtype', choices=['float32', 'bfloat16', 'float16'],
        help='default: float32 on the CPU, else bfloat16')
    add('--batch-size', type=int, help='pairs at once (default: as many as the models above take)')
    add('--workers', type=int, default=4, help='threads that read files (default: 4)')
    add('--retry-failed', action='store_true', help='caption the batches of failed pairs once more')
    add('--overwrite', action='store_true', help='start over with the stages that run')
    args = parser.parse_args(argv)
    args.stages = [args.stage]
    if args.stage == 'all':
        told = ['image', 'audio'] if args.captions_from == 'both' else [args.captions_from]
        args.stages = [*told, 'object']
    args.data_root_given = bool(args.data_root)
    args.data_root = Path(args.data_root or PRESETS[args.preset].data_root)
    args.out = Path(args.out or captions_path(args.data_root, args.captions_from))
    args.folders = {'image': args.out.parent / 'image_captions',
                    'audio': args.out.parent / 'audio_captions',
                    'object': args.out.parent / f'{args.out.stem}.answers'}
    args.ids = Path(args.ids or args.data_root / 'vggsound/train.csv')
    args.audio_captions = args.audio_captions and Path(args.audio_captions)
    defaults = CAPTIONERS[args.preset]
    args.models = {s: getattr(args, f'{s}_model') or defaults[s][0] for s in STAGES}
    args.max_new_tokens = {s: getattr(args, f'{s}_tokens') for s in STAGES}
    args.batch_sizes = {s: defaults[s][1] if args.batch_size is None else args.batch_size
                        for s in STAGES}
    # an option that no stage reads, or an output that is also an input
    given = given_options(parser, argv)
    for name, readers in (('captions_from', ['object']), ('audio_captions', ['audio']),
                          ('retry_failed', ['image', 'audio'])):
        if name in given and not {*readers} & {*args.stages}:
            parser.error(f'{given[name]} is for the stage {" or ".join(readers)}, which does not '
                         'run: leave it out')
    if args.retry_failed and args.overwrite:
        parser.error('--overwrite captions every pair anew: leave out --retry-failed')
    if args.out.is_dir():
        parser.error(f'--out {args.out} is a folder: name a file in it')
    outputs = [(f'the folder of the {s} stage', args.folders[s]) for s in args.stages]
    outputs.append(('--out', args.out if 'object' in args.stages else None))
    inputs = [(STAGES[s][0], args.models[s]) for s in STAGES]
    inputs += [('--ids', args.ids), ('--audio-captions', args.audio_captions)]
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)
    if min(args.workers, *args.batch_sizes.values(), *args.max_new_tokens.values()) < 1:
        parser.error('--batch-size, --workers and the numbers of tokens must be at least 1')
    return args


def make_captions(captions_from, device=None):
    """Run all stages on the miniature, without other processes. ValueError if a pair fails."""
    args = parse_args(['all', '--captions-from', captions_from])
    if failed := caption(args, pick_device(device)):
        raise ValueError(f'{len(failed)} pairs could not be captioned: {min(failed.values())}')


def main(argv=None):
    args = parse_args(argv)
    device = start_processes(args.device)
    rank, processes = rank_and_processes()
    failed = caption(args, device, rank, processes)
    if failed and rank == 0:
        i, sentence = next(iter(failed.items()))
        print(f'captions.py: {len(failed)} pairs failed and are marked in the file, which is '
              f'complete otherwise, the first {i}: {sentence}; --retry-failed captions them once '
              'their files are right', file=sys.stderr)
        return 1


if __name__ == '__main__':
    run_script('captions.py', main, 'interrupted; the same command goes on from the last finished '
                                    'batch')
