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
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile, takewhile
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (AutoConfig, AutoModelForCausalLM, AutoProcessor, AutoTokenizer,
                          Blip2ForConditionalGeneration, Blip2Processor,
                          Qwen2AudioForConditionalGeneration)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from benchmarks.lists import files_of_root, json_lines, read_rows, unique
from benchmarks.pairs import FRAMES, read_ids
from data import draw_miniature
from launch import (between, overwritten, pick_device, rank_and_processes, run_script, some_path,
                    start_processes, wait_for_all, write_file)
from media import SAMPLE_RATE, SOUNDS, SampleError, file_of, read_audio, read_image
from model import PRESETS, ROOT, from_pretrained, load_pretrained

KEYS = {'image': 'image_caption', 'audio': 'audio_caption', 'object': 'answer'}  # of its texts
CAPTIONS_OF = {'both': ['image', 'audio'], 'image': ['image'], 'audio': ['audio']}     # Table 10
# Paper [33]: silent on decoding. Here greedily, so that a caption depends on its pair alone; a
# checkpoint's repetition penalty would count the padding of its batch.
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


# Paper [34]: the paper does not print what it asks the audio captioner.
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
    # Paper [35]: Table 10 gives one caption, and the paper does not print that prompt. Here it is
    # the same, without the clauses about the other caption.
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


# Typographic quotes become plain ones, markup goes
LETTERS = str.maketrans({'’': "'", '‘': "'", '_': ' ', **dict.fromkeys('“”"`*', '')})
REFUSAL = re.compile(
    r"\b(can ?not|can't|could ?n[o']t|unable|"
    r'un(known|clear|certain|determined|specified|identif\w+)|'
    r'indeterminate|impossible|insufficient|sorry|none|n/a|nothing|as an ai|'
    r"(not|isn't|doesn't|don't) (possible|clear|sure|certain|specif\w+|mention\w*|given|provide\w*|"
    r'enough|know|show\w*)|'
    r'no (specific|clear|primary|particular|identifiable|visible|obvious|such|sound|object|'
    r'answer)\w*)\b')
# The object follows words of BEFORE and ends at one of AFTER:
# "The sound is most likely coming from a dog barking in the background." -> dog barking
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
    is_word = re.compile(r'\w').match           # not a punctuation mark
    words = dropwhile(lambda word: word in BEFORE or not is_word(word), words)
    words = list(takewhile(lambda word: word not in AFTER and is_word(word), words))
    if len(words) > MOST_WORDS:
        at = next((k for k, word in enumerate(words) if k and word.endswith('ing')), None)
        if at or 'of' in words:                 # "man playing an electric guitar", "flock of ..."
            words = words[:at][:MOST_WORDS]
        else:                                   # "big red fire truck"
            words = words[-MOST_WORDS:]
    while words and words[-1] in ('a', 'an', 'the', 'of', 'and', 'or', 'to', 'by'):
        words.pop()                             # "flock of the" -> "flock"
    return ' '.join(words)


# ============ C of Eq. 6, for train.py ============

def load_answers(path, model, tokenizer, ids):
    """CLIP's embedding of each different answer to the given pairs.

    -> C (texts, D), {id: row of C} of the pairs with an answer, a hash of their ids and answers
    (for --resume)
    """
    answers = read_texts(path, 'object')
    check_complete(path, answers, ids, 'add them, or name the file of this dataset')
    object_of = {i: answers[i] for i in ids if answers[i]}
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


def captions_path(root, captions_from='both'):
    """A data root's captions.jsonl, or Table 10's captions-image.jsonl and captions-audio.jsonl."""
    kind = '' if captions_from == 'both' else f'-{captions_from}'
    return Path(root) / f'captions{kind}.jsonl'


def read_texts(path, key):
    """The texts under `key` in JSON lines that have an 'id', or in a csv of id,text.

    -> {id: text}, '' where it is null. ValueError where one is there twice, or is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no captions at {path}: name another file, or make them by '
                                'captions.py all with this --data-root and --captions-from')
    if path.suffix.lower() == '.csv':
        rows = [{'id': i, key: text} for i, text in read_rows(path, ('id', key))]
    else:
        rows = json_lines(path, 'make the file again')
    texts = []
    for row in rows:
        known = isinstance(row.get('id'), str) and key in row
        if not known or not isinstance(row[key], str | None):
            raise ValueError(f'{path}: {str(row)[:80]} needs an id and an {key}, both texts')
        text = (row[key] or '').encode('utf-8', 'replace').decode('utf-8')  # lone surrogates -> ?
        texts.append((row['id'], ' '.join(text.split())))
    return unique(texts, path)


def check_complete(path, found, ids, remedy):
    """ValueError if pairs are missing from what was found in a file or folder."""
    if missing := [i for i in ids if i not in found]:
        raise ValueError(f'{path} lacks {len(missing)} of the {len(ids)} pairs, the first '
                         f'{missing[0]}: {remedy}')


# ============ the three models ============

@dataclass(frozen=True)
class Stage:
    """The model of a stage, and how it is asked."""
    option: str             # names another model
    describe: Callable      # images, waveforms or prompts -> captions or answers, above
    model_class: type       # of transformers
    processor_class: type   # the model's processor or tokenizer
    types: Collection       # of models that the model class can load
    tokens: int             # of the longest text
    models: dict            # {preset: (hub name or folder, pairs per batch)}


# Paper [31]: "BLIP-2", without a size: the one with OPT-2.7B, unprompted.
# Paper [32]: GAMA captions the sounds, in a fork of transformers 4 (for its captions there is
# --audio-captions). The default, too, is an audio encoder before a 7B language model.
WEIGHTS = ROOT / 'miniature/weights'
STAGES = {
    'image': Stage('--image-model', caption_images, Blip2ForConditionalGeneration, Blip2Processor,
                   types=['blip-2'], tokens=30,
                   models={'paper': ('Salesforce/blip2-opt-2.7b', 32),
                           'miniature': (f'{WEIGHTS}/blip2', 60)}),
    'audio': Stage('--audio-model', caption_sounds, Qwen2AudioForConditionalGeneration,
                   AutoProcessor, types=['qwen2_audio'], tokens=60,
                   models={'paper': ('Qwen/Qwen2-Audio-7B-Instruct', 8),
                           'miniature': (f'{WEIGHTS}/qwen2_audio', 60)}),
    'object': Stage('--llm', answer_prompts, AutoModelForCausalLM, AutoTokenizer,
                    types=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, tokens=12,
                    models={'paper': ('mistralai/Mistral-7B-Instruct-v0.2', 16),
                            'miniature': (f'{WEIGHTS}/mistral', 60)}),
}


def load_captioner(stage, name, dtype, device):
    """-> a stage's model and its processor or tokenizer. OSError, ValueError: see model.py"""
    option = STAGES[stage].option
    processor = from_pretrained(STAGES[stage].processor_class, name, option)
    if stage == 'object' and not processor.chat_template:
        raise ValueError(f'{name} has no chat template: name an instructed model with {option}')
    model = load_pretrained(STAGES[stage].model_class, name, option, dtype)
    return model.to(device), processor


def model_revision(stage, name):
    """'name@revision': the commit of a hub's model, or a hash of a folder's files.

    ValueError where the model is of another kind than the stage's.
    """
    option = STAGES[stage].option
    config = from_pretrained(AutoConfig, name, option)
    if config.model_type not in STAGES[stage].types:
        raise ValueError(f'the model at {name} is a {config.model_type}, which captions.py {stage} '
                         f'cannot use: correct {option}')
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


# ============ the three stages over all pairs ============

def caption_pairs(args, device, rank=0, processes=1):
    """Run the stages that the command line names. -> {id: sentence} of the pairs that failed

    rank, processes: of torchrun, which share the batches. train.py's first process captions alone.
    Which pairs make a batch depends on the batch size alone, so several processes, or a run that
    was killed and restarted, write the same files as a single uninterrupted one.
    """
    wait = wait_for_all if processes > 1 else lambda: None
    dtype = args.dtype or ('bfloat16' if device.type == 'cuda' else 'float32')
    if rank == 0 and args.preset == 'miniature' and not args.data_root_given:
        draw_miniature(args.data_root)
    wait()
    ids = read_ids(args.ids, training=True)
    if rank == 0:
        begin_stages(args, ids, dtype)
    wait()                              # for the first process, which has checked everything
    failed = {}
    for stage, settings in args.settings.items():
        lines = [{'id': i} for i in ids]
        if stage == 'object':
            lines, models = join_captions(args.folders, args.captions_from, ids)
        retry = args.retry_failed and stage != 'object'     # answers have no errors of their own
        todo = unfinished_batches(args.folders[stage], stage, lines, settings['batch_size'], retry,
                                  rank, processes)
        if todo:
            read = partial(read_input, stage, args.data_root / 'vggsound',
                           PRESETS[args.preset].seconds, settings['prompt'])
            caption_batches(stage, settings, todo, read, getattr(torch, dtype), device, rank == 0)
        wait()
        done = finished_lines(args.folders[stage], stage)
        failed |= {i: done[i]['error'] for i in ids if done[i]['error']}
        if stage == 'object' and rank == 0:
            write_captions(args.out, [done[i] for i in ids], models)
    return failed


def begin_stages(args, ids, dtype):
    """Check files and models before hours of work; write settings.json.

    --audio-captions become finished batches, so that the audio stage has nothing left to do.
    """
    made = args.audio_captions and read_audio_captions(args.audio_captions, ids)
    stages = [stage for stage in args.settings if not (stage == 'audio' and made)]
    check_files(args.data_root / 'vggsound', ids, stages)
    models = {stage: model_revision(stage, args.settings[stage]['model']) for stage in stages}
    if made:
        file = Path(args.audio_captions)
        models['audio'] = f'{file.name}@{file_hash([file])}'
    listed = hashlib.sha256('\n'.join(ids).encode()).hexdigest()[:16]
    for stage, settings in args.settings.items():
        now = {**settings, 'model': models[stage], 'dtype': dtype, 'pairs': len(ids),
               'list of pairs': listed}
        begin_folder(args.folders[stage], now, args.overwrite)
    if made:
        size = args.settings['audio']['batch_size']
        todo = unfinished_batches(args.folders['audio'], 'audio', made, size)
        for file, lines in todo.items():
            write_json(file, lines)


def check_files(folder, ids, stages):
    """ValueError where no pair has a frame, or a sound: the list is of other data."""
    for stage, kind, suffixes in (('image', 'frames', FRAMES), ('audio', 'audio', SOUNDS)):
        there = (file_of(folder / kind, i, suffixes).is_file() for i in ids)
        if stage in stages and not any(there):
            raise ValueError(f'none of the {len(ids)} pairs has a file in {folder / kind}, the '
                             f'first being {ids[0][:60]!r}: name their data by --data-root, or '
                             'correct the list (--ids)')


def read_audio_captions(path, ids):
    """Captions of sounds that were made elsewhere. -> the audio stage's lines"""
    found = {i: text for i, text in read_texts(path, 'audio_caption').items() if text}
    check_complete(path, found, ids, 'add their captions, or name the file of this dataset')
    return [{'id': i, 'audio_caption': found[i], 'error': None} for i in ids]


def caption_batches(stage, settings, batches, read, dtype, device, show):
    """Write the files of batches {file: lines}. read: read_input, a function of a line

    The model is freed when this returns, so that no two of them have to fit the GPU.
    """
    describe = STAGES[stage].describe
    tokens = settings['max_new_tokens']
    model, processor = load_captioner(stage, settings['model'], dtype, device)
    for file, lines in tqdm(batches.items(), stage, unit=' batches', disable=not show):
        with ThreadPoolExecutor() as threads:
            inputs = list(threads.map(read, lines))
        readable = [content for content, error in inputs if not error]
        texts = iter(describe(model, processor, readable, tokens) if readable else [])
        write_json(file, [{**line, KEYS[stage]: None if error else next(texts), 'error': error}
                          for line, (_, error) in zip(lines, inputs)])


def read_input(stage, folder, seconds, prompt, line):
    """What a stage's model takes of a pair. -> an image, waveform or prompt; an error or None"""
    try:
        if stage == 'image':
            return read_image(file_of(folder / 'frames', line['id'], FRAMES)), None
        if stage == 'audio':
            return read_audio(file_of(folder / 'audio', line['id'], SOUNDS), seconds), None
    except SampleError as error:
        return None, str(error)
    return prompt.format(image=line['image_caption'], audio=line['audio_caption']), line['error']


def join_captions(folders, captions_from, ids):
    """Both captions of each pair, or the one that the language model is given.

    -> [{'id', 'image_caption', 'audio_caption', 'error'}], {'image', 'audio', 'llm': model or None}
    """
    lines = [{'id': i, 'image_caption': None, 'audio_caption': None, 'error': None} for i in ids]
    models = {'image': None, 'audio': None}
    for stage in CAPTIONS_OF[captions_from]:
        done = finished_lines(folders[stage], stage)
        check_complete(folders[stage], done, ids, f'run captions.py {stage} for them first')
        models[stage] = read_json(folders[stage] / 'settings.json')['model']
        for line in lines:
            captioned = done[line['id']]
            line[KEYS[stage]] = captioned[KEYS[stage]]
            line['error'] = line['error'] or captioned['error']
    models['llm'] = read_json(folders['object'] / 'settings.json')['model']
    return lines, models


def write_captions(out, lines, models):
    """Write --out, with the objects that the answers name."""
    for line in lines:
        error = line.pop('error')
        answer = line.pop('answer') or ''           # null where a caption failed
        line |= {'object': parse_answer(answer), 'models': models, 'error': error}
    text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
    write_file(out, text, GO_ON)
    named = sum(line['object'] != '' for line in lines)
    print(f'{out}: {named} of {len(lines)} pairs have an object')


# ============ files of batches, and resuming ============

GO_ON = ('free some space, and the same command, without --overwrite, goes on from the last '
         'finished batch; or write elsewhere by captions.py --out, which train.py --captions reads')


def begin_folder(folder, settings, overwrite):
    """Write a stage's settings.json. ValueError if its folder has batches of other settings."""
    old = list(folder.glob('*.partial*'))               # of processes killed in write_file
    if overwrite:
        old += folder.glob('[0-9]*.json')
    for file in old:
        file.unlink()
    file = folder / 'settings.json'
    if not any(folder.glob('[0-9]*.json')):
        write_json(file, settings)
    begun = read_json(file) if file.exists() else {}
    for name, value in settings.items():
        if begun.get(name) != value:
            raise ValueError(f'{folder} was begun with another {name}, '
                             f'{str(begun.get(name))[:60]!r}: rerun with the same, choose an '
                             '--out in another folder, or start over with --overwrite')


def unfinished_batches(folder, stage, lines, size, retry_failed=False, rank=0, processes=1):
    """A process's share of the batches to be made. -> {file of a batch: its lines}

    Answers are made again where the captions in their lines have changed.
    """
    done = finished_lines(folder, stage)
    todo = {}
    for k in range(0, len(lines), size)[rank::processes]:
        batch = lines[k:k + size]
        found = [done.get(line['id'], {'error': None}) for line in batch]       # of earlier runs
        finished = all(line.items() <= old.items() for line, old in zip(batch, found))
        if not finished or retry_failed and any(old['error'] for old in found):
            todo[folder / f'{k // size:06d}.json'] = batch
    return todo


def finished_lines(folder, stage):
    """-> {id: line} of a stage's finished batches"""
    names = 'id', 'error', KEYS[stage]
    files = sorted(folder.glob('[0-9]*.json'))
    return {line['id']: line for file in files for line in read_json(file, list, names)}


def write_json(file, content):
    write_file(file, json.dumps(content, ensure_ascii=False, indent=1) + '\n', GO_ON)


def read_json(file, kind=dict, names=('model',)):
    """settings.json, a dict, or a batch, a list of dicts. ValueError: damaged, or lacks a name

    names: of texts in each dict, which may be null.
    """
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        entries = content if kind is list else [content]
        valid = [isinstance(entry[name], str | None) for entry in entries for name in names]
        if not isinstance(content, kind) or not all(valid):
            raise TypeError
        return content
    except (ValueError, TypeError, LookupError):            # another program's, or edited
        raise ValueError(f'{file} is damaged: delete it, or start over with --overwrite') from None


# ============ the command line ============

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('stage', choices=[*STAGES, 'all'], help='all: one after the other, one model at a time')
    add('--preset', choices=list(PRESETS), default='miniature', help='models and data')
    add('--data-root', type=some_path, help="folder of the datasets (default: the preset's)")
    add('--out', type=some_path, help='result (default: captions[-<kind>].jsonl in the data root)')
    add('--ids', type=some_path, help='list of pairs, any subset (default: vggsound/train.csv)')
    add('--captions-from', choices=list(OBJECT_PROMPTS), default='both',
        help='captions that the language model is given (Table 10); "all" runs their stages only')
    add('--audio-captions', type=some_path, help='made elsewhere: jsonl, or csv of id,caption')
    for name, stage in STAGES.items():
        add(stage.option, type=some_path, dest=f'{name}_model', help='hub name or folder')
        add(f'--{name}-tokens', type=between(int, 1), default=stage.tokens,
            help='longest text (%(default)s tokens)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: cuda, else cpu')
    add('--dtype', choices=['float32', 'bfloat16', 'float16'],
        help='default: bfloat16 on CUDA, else float32')
    add('--batch-size', type=between(int, 1), help="pairs at once (default: each model's own)")
    add('--retry-failed', action='store_true', help='caption the batches of failed pairs once more')
    add('--overwrite', action='store_true', help='start over with the stages that run')
    args = parser.parse_args(argv)
    args.data_root_given = bool(args.data_root)
    args.data_root = Path(args.data_root or PRESETS[args.preset].data_root)
    args.out = Path(args.out or captions_path(args.data_root, args.captions_from))
    args.ids = Path(args.ids or args.data_root / 'vggsound/train.csv')
    args.folders = {'image': args.out.parent / 'image_captions',
                    'audio': args.out.parent / 'audio_captions',
                    'object': args.out.parent / f'{args.out.stem}.answers'}
    if args.audio_captions and args.audio_model:
        parser.error('--audio-captions and --audio-model do not go together: leave one out')
    stages = [args.stage]
    if args.stage == 'all':
        stages = [*CAPTIONS_OF[args.captions_from], 'object']
    prompts = {'image': None, 'audio': AUDIO_PROMPT, 'object': OBJECT_PROMPTS[args.captions_from]}
    args.settings = {}          # of each stage that runs: what its texts depend on
    for stage in stages:
        model, batch_size = STAGES[stage].models[args.preset]
        args.settings[stage] = {
            'stage': stage,
            'model': getattr(args, f'{stage}_model') or model,
            'prompt': prompts[stage],
            'max_new_tokens': getattr(args, f'{stage}_tokens'),
            'batch_size': args.batch_size or batch_size}
    for option, value, used_by in (
            ('--captions-from', args.captions_from != 'both', ['object']),
            ('--audio-captions', args.audio_captions, ['audio']),
            ('--retry-failed', args.retry_failed, ['image', 'audio'])):
        if value and not {*used_by} & {*stages}:
            parser.error(f'{option} is for the stage {" or ".join(used_by)}, which does not run: '
                         'leave it out')
    if args.out.is_dir() or args.out in args.folders.values():
        parser.error(f'--out {args.out} is a folder: name a file in it')
    inputs = [('--ids', args.ids), ('--audio-captions', args.audio_captions)]
    inputs += [(what, place) for what, place in files_of_root(args.data_root)
               if not place.name.startswith('captions')]        # captions.jsonl is the result
    if sentence := overwritten([('--out', args.out)], inputs):
        parser.error(sentence)
    begun = args.overwrite or args.folders['object'].exists()
    if 'object' in stages and args.out.exists() and not begun:
        parser.error(f'{args.out} was made elsewhere: choose another --out, or --overwrite it')
    return args


def make_captions(captions_from, device=None):
    """Run all stages on the miniature, without other processes. ValueError if a pair fails."""
    args = parse_args(['all', '--captions-from', captions_from])
    if failed := caption_pairs(args, pick_device(device)):
        raise ValueError(f'{len(failed)} pairs could not be captioned: {min(failed.values())}')


def main(argv=None):
    args = parse_args(argv)
    device = start_processes(args.device)
    rank, processes = rank_and_processes()
    failed = caption_pairs(args, device, rank, processes)
    if failed and rank == 0:
        i = next(iter(failed))
        raise ValueError(f'{len(failed)} pairs failed, the first {i}: {failed[i]}; once their '
                         'files are right, --retry-failed captions them')


if __name__ == '__main__':
    run_script('captions.py', main,
               'interrupted; the same command goes on, without --overwrite')
