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
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import transformers         # imports each class at its first use: train.py uses no captioner
from tqdm import tqdm

from benchmarks.lists import WHERE, csv_lines, unique, utf8_text
from checkpoint import (gather_lists, given_options, overwritten, pick_device, rank_and_processes,
                        run_script, some_path, start_processes, wait_for_all, write_file)
from data import FORMS, FRAMES, read_ids, tell_other_splits
from media import SAMPLE_RATE, SampleError, file_of, read_audio, read_image, sound_file
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
    """The object that a language model's answer names: lower case, at most 3 words.

    -> (object, how). how: 'plain'; 'cleaned', if taken out of a sentence, quotes or too many words;
    or, with the object '', 'refused' ("I cannot determine ...") or 'empty'
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
    """Run all stages on the miniature, without other processes. ValueError if a pair fails."""
    args = parse_args(['all', '--captions-from', captions_from])
    if failed := caption(args, pick_device(device)):
        raise ValueError(f'{len(failed)} pairs could not be captioned: {min(failed.values())}')


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


# ============ the three stages ============

def caption(args, device, rank=0, processes=1):
    """Run the stages that args name. -> {id: sentence} of failed pairs"""
    transformers.utils.logging.disable_progress_bar()                   # that of loading weights
    args.device = device
    args.dtype = args.dtype or ('float32' if device.type == 'cpu' else 'bfloat16')
    prepared = prepare(args) if rank == 0 else []
    ids, args.given = gather_lists(prepared) if processes > 1 else prepared
    failed = {}
    for stage in args.stages:
        lines = [{'id': i} for i in ids]
        if stage == 'object':
            lines, models = read_both_captions(args, ids)
        lines = run_stage(stage, args, lines, rank, processes)
        failed |= {line['id']: line['error'] for line in lines if line['error']}
        if stage == 'object' and rank == 0:
            write_captions(args.out, lines, models)
    return failed


def prepare(args):
    """Check all inputs before hours of work. -> [ids, {id: caption} of --audio-captions or None]"""
    if args.preset == 'miniature' and not args.data_root_given:
        from miniature import world
        world.build(args.data_root)
    ids = pairs_to_caption(args)
    given = None
    models = {}
    for stage in args.stages:
        if stage == 'audio' and args.audio_captions:
            given = read_audio_captions(args.audio_captions, ids)
            models[stage] = f'{args.audio_captions.name}@{file_hash([args.audio_captions])}'
        else:
            models[stage] = check_model(stage, args.models[stage])
    answers = stage_folder('object', args.out)
    if 'object' in args.stages and args.out.exists() and not (args.overwrite or answers.exists()):
        raise FileExistsError(f'{args.out} is there without {answers.name}, so it was made '
                              'elsewhere: choose another --out, or start over with --overwrite')
    for stage in args.stages:
        note_settings(stage, args, models[stage], ids)
    return [ids, given]


def pairs_to_caption(args):
    """The ids of the list. ValueError where it names one twice or is another dataset's."""
    folder = args.data_root / 'vggsound'
    path = Path(args.ids or folder / 'train.csv')
    ids = read_ids(path, training=True)
    tell_other_splits(path)
    frames = any(file_of(folder / 'frames', i, FRAMES).is_file() for i in ids)
    sounds = args.audio_captions or any(sound_file(folder / 'audio', i).is_file() for i in ids)
    for stage, found in (('image', frames), ('audio', sounds)):
        if stage in args.stages and not found:
            raise ValueError(f'none of the {len(ids)} pairs of {path} has its {stage} below '
                             f'{folder}: a line is {FORMS}; {WHERE}, --ids another list')
    return ids


def run_stage(stage, args, lines, rank, processes):
    """Caption the batches that have no file yet. -> all lines, each with the model's text

    Which pairs make a batch depends on --batch-size alone, so several processes, or a run that was
    killed and restarted, write the same files as a single uninterrupted one.
    """
    folder = stage_folder(stage, args.out)
    size = args.batch_sizes[stage]
    key = 'answer' if stage == 'object' else f'{stage}_caption'
    batches = {folder / f'{k // size:06d}.json': lines[k:k + size]
               for k in range(0, len(lines), size)}
    again = args.retry_failed and stage != 'object'
    todo = [file for file in list(batches)[rank::processes]
            if not is_finished(file, batches[file], key, again)]
    if todo:
        describe = load_captioner(stage, args)
    bar = tqdm(total=sum(len(batches[file]) for file in todo), desc=folder.name, unit=' pairs',
               disable=rank > 0 or not todo, dynamic_ncols=True)
    with ThreadPoolExecutor(args.workers) as readers, bar:
        for file in todo:
            inputs = list(readers.map(partial(read_input, stage, args), batches[file]))
            readable = [content for content, error in inputs if not error]
            texts = iter(describe(readable) if readable else [])
            captioned = [{**line, key: None if error else next(texts), 'error': error}
                         for line, (_, error) in zip(batches[file], inputs)]
            write_file(file, as_bytes(captioned, indent=1), GO_ON)
            bar.update(len(inputs))
    if processes > 1:
        wait_for_all()
    return [line for file in batches for line in read_batch(file, key)]


def read_input(stage, args, line):
    """Read what the stage's model needs of a pair. -> (image, wav or text), (None or an error)"""
    folder = args.data_root / 'vggsound'
    try:
        if stage == 'image':
            return read_image(file_of(folder / 'frames', line['id'], FRAMES)), None
        if stage == 'audio' and args.given:
            return args.given[line['id']], None
        if stage == 'audio':
            file = sound_file(folder / 'audio', line['id'])
            return read_audio(file, PRESETS[args.preset].seconds), None
    except SampleError as error:
        return None, str(error)
    prompt = OBJECT_PROMPTS[args.captions_from]
    return prompt.format(image=line['image_caption'], audio=line['audio_caption']), line['error']


def read_both_captions(args, ids):
    """Join a pair's two captions. -> a line per pair, {'image', 'audio', 'llm': model or None}"""
    lines = [{'id': i, 'image_caption': None, 'audio_caption': None, 'error': None} for i in ids]
    models = {'image': None, 'audio': None}
    for stage in [s for s in models if args.captions_from in ('both', s)]:
        folder = stage_folder(stage, args.out)
        key = f'{stage}_caption'
        rows = [row for file in sorted(folder.glob('[0-9]*.json')) for row in read_batch(file, key)]
        if not rows:
            raise FileNotFoundError(f'no captions in {folder}: run the {stage} stage first, '
                                    f'captions.py {stage} or all')
        models[stage] = read_json(folder / 'settings.json', dict).get('model')
        for line, row in zip(lines, by_id(folder, rows, 'id', ids).values()):
            line[key] = row[key]
            line['error'] = line['error'] or row['error']
    models['llm'] = read_json(stage_folder('object', args.out) / 'settings.json', dict)['model']
    return lines, models


def write_captions(out, lines, models):
    """Join captions and parsed answers in --out, and count them."""
    counts = Counter()
    written = []
    for line in lines:
        answer, how = ('', 'failed') if line['error'] else parse_answer(line['answer'])
        counts[how] += 1
        captions = {name: line[name] for name in ('id', 'image_caption', 'audio_caption')}
        written.append({**captions, 'object': answer, 'models': models, 'error': line['error']})
    write_file(out, b''.join(map(as_bytes, written)), GO_ON)
    print(f'{out}: {len(lines)} pairs, {counts["plain"] + counts["cleaned"]} with an object '
          f'({counts["cleaned"]} of them cleaned), {counts["refused"]} refused, '
          f'{counts["empty"]} empty, {counts["failed"]} failed')


# ============ a stage's folder: its settings, a JSON file per batch ============

GO_ON = 'free some space; the same command then goes on from the last finished batch'


def stage_folder(stage, out):
    """The folder of a stage's settings and batches, beside --out."""
    return out.with_name(f'{out.stem}.answers' if stage == 'object' else f'{stage}_captions')


def note_settings(stage, args, model, ids):
    """Write a stage's settings.json. ValueError if its folder has batches of other settings."""
    folder = stage_folder(stage, args.out)
    file = folder / 'settings.json'
    leftovers = list(folder.glob('*.partial*'))             # of a killed run
    if args.overwrite:
        leftovers += [file, *folder.glob('[0-9]*.json')]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    prompts = {'image': None, 'audio': AUDIO_PROMPT, 'object': OBJECT_PROMPTS[args.captions_from]}
    settings = {'stage': stage, 'model': model, 'prompt': prompts[stage],
                'max_new_tokens': args.max_new_tokens[stage],
                'batch_size': args.batch_sizes[stage], 'dtype': args.dtype, 'pairs': len(ids),
                'list of pairs': hashlib.sha256('\n'.join(ids).encode()).hexdigest()[:16]}
    begun = any(folder.glob('[0-9]*.json'))
    if begun and not file.exists():
        raise ValueError(f'{folder} has batches and no settings.json that says how they were made: '
                         'start over with --overwrite')
    if not begun:
        write_file(file, as_bytes(settings, indent=1), GO_ON)
    before = read_json(file, dict)
    for name, now in settings.items():
        if before.get(name) != now:
            raise ValueError(f'{folder} was begun with {name} {str(before.get(name))[:60]!r}, not '
                             f'{str(now)[:60]!r}: rerun with the same settings, choose an --out in '
                             'another folder, or start over with --overwrite')


def is_finished(file, batch, key, retry_failed):
    """Whether a batch's file exists and was made from these lines (captions may have changed)."""
    found = read_batch(file, key) if file.exists() else []
    if retry_failed and any(line['error'] for line in found):
        return False
    same = [line.items() <= new.items() for line, new in zip(batch, found)]
    return len(found) == len(batch) and all(same)


def as_bytes(content, indent=None):
    """JSON in UTF-8 that ends in a newline."""
    return json.dumps(content, ensure_ascii=False, indent=indent).encode('utf-8', 'replace') + b'\n'


def read_batch(file, key):
    """A batch's lines, each with its id, its text under key, or an error. ValueError: damaged."""
    lines = read_json(file, list)
    for line in lines:
        if not (isinstance(line, dict) and isinstance(line.get('id'), str) and 'error' in line
                and (isinstance(line.get(key), str) or line['error'])):
            raise ValueError(f'{file} is damaged: delete it, and run its stage again')
        line.setdefault(key, None)
    return lines


def read_json(path, kind):
    """The dict or list in a JSON file. ValueError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        content = None
    if not isinstance(content, kind):
        remedy = 'delete it, and run its stage again' if kind is list else 'start over: --overwrite'
        raise ValueError(f'{path} is damaged: {remedy}')
    return content


# ============ the models ============

def load_captioner(stage, args):
    """-> a function from a list of the stage's inputs to a list of texts"""
    if stage == 'audio' and args.given:
        return list                         # --audio-captions: the inputs are the captions
    hub = transformers
    describe, *classes = {
        'image': (caption_images, hub.Blip2ForConditionalGeneration, hub.Blip2Processor),
        'audio': (caption_sounds, hub.Qwen2AudioForConditionalGeneration, hub.AutoProcessor),
        'object': (answer_prompts, hub.AutoModelForCausalLM, hub.AutoTokenizer)}[stage]
    name = args.models[stage]
    model, processor = load_model(*classes, name, getattr(torch, args.dtype), args.device)
    if stage == 'object' and not processor.chat_template:
        raise ValueError(f'the tokenizer at {name} has no chat template: name an instructed model '
                         'with --llm')
    return partial(describe, model, processor, max_new_tokens=args.max_new_tokens[stage])


def load_model(model_class, processor_class, name, dtype, device):
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
    """Look at the configuration alone: is it a model of the stage's type?

    -> 'name@revision', the revision being the hub's commit or, for a folder, a hash of its files
    """
    option, wanted, _ = STAGES[stage]
    config = from_pretrained(transformers.AutoConfig, name)
    kind = config.model_type
    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = 'causal language model'
    if kind != wanted:
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

def read_captions(path, ids):
    """The lines of a captions file for the given ids. -> {id: line}"""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no captions at {path}: make them by captions.py all with this '
                                '--data-root and --captions-from, or name others by --captions')
    lines = json_lines(path, 'rerun captions.py, which completes it')
    return by_id(path, lines, 'object', ids)


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
            raise ValueError(f'{path}: line {number} is not a JSON object, or is truncated: '
                             f'{remedy}') from None
    return found


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
        names = ', '.join(f'{preset}: {Path(c[stage][0]).name}' for preset, c in CAPTIONERS.items())
        add(option, type=some_path, dest=f'{stage}_model', help=f'hub name or folder ({names})')
        add(f'--{stage}-tokens', type=int, default=tokens, help='longest text (%(default)s tokens)')
    add('--device', choices=['cpu', 'cuda', 'mps'], help='default: the best that is there')
    add('--dtype', choices=['float32', 'bfloat16', 'float16'],
        help='default: float32 on the CPU, else bfloat16')
    sizes = '; '.join(f'{preset}: {", ".join(str(c[stage][1]) for stage in STAGES)}'
                      for preset, c in CAPTIONERS.items())
    add('--batch-size', type=int, help=f'pairs at once (of image, audio, object {sizes})')
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
    defaults = CAPTIONERS[args.preset]
    args.models = {s: getattr(args, f'{s}_model') or defaults[s][0] for s in STAGES}
    args.max_new_tokens = {s: getattr(args, f'{s}_tokens') for s in STAGES}
    args.batch_sizes = {s: defaults[s][1] for s in STAGES}
    if args.batch_size is not None:
        args.batch_sizes = dict.fromkeys(STAGES, args.batch_size)
    refuse(parser, argv, args)
    return args


def refuse(parser, argv, args):
    """parser.error for an option that no stage reads, or an output that is also an input."""
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
    if 'object' in args.stages:
        outputs.append(('--out', args.out))
    inputs = [(option, args.models[stage]) for stage, (option, *_) in STAGES.items()]
    inputs += [('--ids', args.ids or args.data_root / 'vggsound/train.csv'),
               ('--audio-captions', args.audio_captions)]
    if sentence := overwritten(outputs, inputs):
        parser.error(sentence)
    if min(args.workers, *args.batch_sizes.values(), *args.max_new_tokens.values()) < 1:
        parser.error('--batch-size, --workers and the numbers of tokens must be at least 1')


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
