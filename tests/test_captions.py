"""captions.py: three stages through the classes of the paper's models, tiny and untrained."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (Blip2Config, Blip2ForConditionalGeneration, Blip2Processor,
                          BlipImageProcessor, MistralConfig, MistralForCausalLM,
                          PreTrainedTokenizerFast, Qwen2AudioConfig,
                          Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor,
                          WhisperFeatureExtractor)

import captions
from data import read_ids
from media import SAMPLE_RATE, read_audio, read_image
from stand_ins import contents, lines_of

WORDS = ('dog cat bell red blue a the of sound is on left right drum frog car house tree with and '
         'small ringing barking loud soft quiet wall sky').split()
CHAT = ("{{ bos_token }}{% for message in messages %}"
        "[INST] {{ message['content'] }} [/INST]{% endfor %}")


# ------------------------------------------------------------------------------------------------
# Tiny untrained models of the paper's classes, saved as transformers folders
# ------------------------------------------------------------------------------------------------

LAYERS = {'num_hidden_layers': 2, 'num_attention_heads': 2}
SMALL = {'hidden_size': 32, 'intermediate_size': 48, **LAYERS}


def word_tokenizer(specials, **named):
    prompts = set(' '.join(captions.OBJECT_PROMPTS.values()).split())
    known = dict.fromkeys([*specials, *WORDS, *sorted(prompts)])
    numbers = {word: k for k, word in enumerate(known)}
    words = Tokenizer(models.WordLevel(numbers, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', **named)


def talkative(model):
    """Random weights large enough for captions that differ from pair to pair."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            scale = 1.0 if 'embed' in name or 'query' in name else 0.3
            weight.data = torch.randn(weight.shape, generator=generator) * scale
    return model.eval()


def save_blip2(folder):
    tokenizer = word_tokenizer(('<pad>', '<s>', '</s>', '<unk>', '<image>'), pad_token='<pad>',
                               bos_token='<s>', eos_token='</s>')
    pixels = BlipImageProcessor(size={'height': 32, 'width': 32})
    Blip2Processor(pixels, tokenizer, num_query_tokens=4).save_pretrained(folder)
    config = Blip2Config(
        vision_config={**SMALL, 'image_size': 32, 'patch_size': 8},
        qformer_config={**SMALL, 'vocab_size': 8},
        text_config={'model_type': 'opt', 'vocab_size': len(tokenizer), 'hidden_size': 32,
                     'ffn_dim': 48, 'word_embed_proj_dim': 32, **LAYERS, 'pad_token_id': 0,
                     'max_position_embeddings': 64, 'bos_token_id': 1, 'eos_token_id': 2},
        num_query_tokens=4, image_token_index=4)
    talkative(Blip2ForConditionalGeneration(config)).save_pretrained(folder)


def save_qwen2_audio(folder):
    tokenizer = word_tokenizer(
        ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<unk>', '<|audio_bos|>', '<|AUDIO|>',
         '<|audio_eos|>'), pad_token='<|endoftext|>', eos_token='<|im_end|>')
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, hop_length=160)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={'model_type': 'qwen2_audio_encoder', 'num_mel_bins': 16, 'd_model': 32,
                      'encoder_ffn_dim': 48, 'encoder_layers': 2, 'encoder_attention_heads': 2,
                      'max_source_positions': 100},
        text_config={'model_type': 'qwen2', 'vocab_size': len(tokenizer), **SMALL,
                     'num_key_value_heads': 2, 'pad_token_id': 0, 'bos_token_id': 0,
                     'eos_token_id': 2}, audio_token_index=5)
    model = talkative(Qwen2AudioForConditionalGeneration(config))
    # what the real checkpoint brings along, and greedy decoding must switch off
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.5,
                                   repetition_penalty=1.1)
    model.save_pretrained(folder)


def save_mistral(folder, chat_template=CHAT):
    tokenizer = word_tokenizer(('<unk>', '<s>', '</s>', '[INST]', '[/INST]'), bos_token='<s>',
                               eos_token='</s>', chat_template=chat_template)
    tokenizer.save_pretrained(folder)
    config = MistralConfig(vocab_size=len(tokenizer), **SMALL, num_key_value_heads=1,
                           bos_token_id=1, eos_token_id=2)
    talkative(MistralForCausalLM(config)).save_pretrained(folder)


@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    """A folder with blip2, qwen2_audio and mistral in it."""
    folder = tmp_path_factory.mktemp('captioners')
    save_blip2(folder / 'blip2')
    save_qwen2_audio(folder / 'qwen2_audio')
    save_mistral(folder / 'mistral')
    return folder


# ------------------------------------------------------------------------------------------------
# Running it
# ------------------------------------------------------------------------------------------------

PAIRS, BATCH = 12, 4


@pytest.fixture(scope='module')
def pairs(small_world, tmp_path_factory):
    """A list of the first pairs of the small world, as a file."""
    path = tmp_path_factory.mktemp('list') / 'ids.csv'
    path.write_text('\n'.join(read_ids(small_world / 'vggsound/train.csv')[:PAIRS]))
    return path


@pytest.fixture(scope='module')
def command(small_world, tiny, pairs):
    """The command line of a stage with the tiny models."""
    def command(stage, out, *more, root=small_world, ids=pairs):
        hear = ['--audio-model', str(tiny / 'qwen2_audio')]
        return [stage, '--data-root', str(root), '--ids', str(ids), '--out', str(out),
                '--batch-size', str(BATCH), '--device', 'cpu',
                '--image-model', str(tiny / 'blip2'), '--llm', str(tiny / 'mistral'),
                *([] if '--audio-captions' in more else hear), '--image-tokens', '8',
                '--audio-tokens', '8', '--object-tokens', '6', *map(str, more)]
    return command


@pytest.fixture(scope='module')
def run(command):
    """captions.py within this process. -> {id: sentence} of the pairs that failed"""
    def run(*arguments, **more):
        args = captions.parse_args(command(*arguments, **more))
        return captions.caption_pairs(args, torch.device('cpu'))
    return run


@pytest.fixture(scope='module')
def undisturbed(run, tmp_path_factory):
    """The folder of one run over the pairs."""
    folder = tmp_path_factory.mktemp('undisturbed')
    assert run('all', folder / 'captions.jsonl') == {}
    return folder


# ------------------------------------------------------------------------------------------------
# The answer, the models
# ------------------------------------------------------------------------------------------------

REFUSALS = (    # each by another of the words of captions.REFUSAL
    'I cannot determine the object.|I can’t tell|It couldn’t be told|It is unable to tell|'
    'Unknown|Unclear|Uncertain|Undetermined|Unspecified|Unidentifiable object|Indeterminate|'
    'Impossible|Insufficient|I’m sorry|None|N/A|Nothing|As an AI model|The image does not show it|'
    'It isn’t clear|It doesn’t mention it|It doesn’t provide it|I don’t know|Not possible|'
    'Not sure|Not certain|Not specified|Not given|Not enough|There is no clear object|'
    'No specific one|No primary one|No particular one|No identifiable one|No visible one|'
    'No obvious one|No such thing|No sound|No object|No answer').split('|')
ANSWERS = {
    'words': {'dog': 'dog', 'Ice cream truck': 'ice cream truck',
              'guitar or violin': 'guitar or violin', '3 dogs': '3 dogs',
              'A man’s voice': "man's voice"},
    'sentences': {
        '"Siren".': 'siren', '“Fire truck”': 'fire truck', '**Bird**': 'bird',
        'The sound is a dog barking.': 'dog barking', 'It’s a cat': 'cat',
        'The primary object is a "guitar".': 'guitar', 'The answer is: drum': 'drum',
        'The sound is most likely coming from a car engine.': 'car engine',
        'Based on the captions, the primary object is the bell.': 'bell',
        'Dog\n\nExplanation: the caption mentions a dog.': 'dog', '1. Drum': 'drum',
        'Object: Lawn mower': 'lawn mower', 'Musical instrument (guitar)': 'musical instrument',
        'Car/vehicle': 'car', 'a big red fire truck': 'red fire truck',
        'man playing an electric guitar': 'man', 'barking of a dog': 'barking',
        'flock of seagulls flying': 'flock of seagulls', 'dog in the background': 'dog',
        'children’s choir': "children's choir", '[dog]': 'dog', '- Bird – chirping': 'bird',
        'Given the audio caption: a dog': 'dog', 'It could be a machine gun': 'machine gun',
        'Dog\n\nIt is not clear whether there is a cat.': 'dog',
        'Dog (not visible in the image)': 'dog', 'a cat, not a dog': 'cat'},
    'cut off': {'flock of the': 'flock', 'cat and an': 'cat', 'cow or a': 'cow', 'car to': 'car',
                'drum by': 'drum'},
    'refusals': dict.fromkeys(REFUSALS, ''),
    'nothing': dict.fromkeys(['', '\n \n', '...', '</s>', 'The object is'], '')}


@pytest.mark.parametrize('kind', ANSWERS)
def test_an_answer_is_cut_to_three_words_and_a_refusal_is_none(kind):
    for text, wanted in ANSWERS[kind].items():
        assert captions.parse_answer(text) == wanted, text


def test_the_papers_models_fit_a_24_gb_gpu_one_at_a_time_in_16_bits():
    """Their classes at full size, on no device: 3.7, 8.4 and 7.2 billion parameters."""
    qwen = Qwen2AudioConfig(text_config={
        'model_type': 'qwen2', 'vocab_size': 156032, 'hidden_size': 4096,
        'intermediate_size': 11008, 'num_hidden_layers': 32, 'num_attention_heads': 32,
        'num_key_value_heads': 32})
    opt = {'model_type': 'opt', 'vocab_size': 50304, 'hidden_size': 2560, 'ffn_dim': 10240,
           'word_embed_proj_dim': 2560, 'num_hidden_layers': 32, 'num_attention_heads': 32}
    with torch.device('meta'):
        models = [Blip2ForConditionalGeneration(Blip2Config(text_config=opt)),
                  Qwen2AudioForConditionalGeneration(qwen), MistralForCausalLM(MistralConfig())]
    billions = [sum(p.numel() for p in model.parameters()) / 1e9 for model in models]
    assert billions == pytest.approx([3.74, 8.40, 7.24], abs=0.03)
    assert max(billions) * 2 < 24 * 0.75                    # room for caches and activations


# ------------------------------------------------------------------------------------------------
# The three models
# ------------------------------------------------------------------------------------------------

STAGE_OF = {'blip2': 'image', 'qwen2_audio': 'audio', 'mistral': 'object'}


def load(folder, name):
    return captions.load_captioner(STAGE_OF[name], str(folder / name), torch.float32, 'cpu')


def test_a_caption_does_not_depend_on_the_pairs_it_shares_a_batch_with(small_world, tiny, pairs):
    ids, folder = read_ids(pairs)[:5], small_world / 'vggsound'
    images = [read_image(folder / f'frames/{i}.jpg') for i in ids]
    wavs = [read_audio(folder / f'audio/{i}.wav', 2.0) for i in ids]
    ask = captions.OBJECT_PROMPTS['both'].format
    prompts = [ask(image='a red dog ' * k, audio='a sound') for k in range(5)]
    for name, describe, inputs in (('blip2', captions.caption_images, images),
                                   ('qwen2_audio', captions.caption_sounds, wavs),
                                   ('mistral', captions.answer_prompts, prompts)):
        model, processor = load(tiny, name)
        alone = [describe(model, processor, [x], 8)[0] for x in inputs]
        assert describe(model, processor, inputs, 8) == alone, name
        assert len(set(alone)) > 1 and all(alone), (name, alone)


def test_the_language_model_is_asked_in_its_chat_template_and_decodes_greedily(tiny):
    model, tokenizer = load(tiny, 'mistral')
    seen, generate = {}, model.generate
    model.generate = lambda **given: seen.update(given) or generate(**given)
    answers = captions.answer_prompts(model, tokenizer, ['red dog', 'a blue bell on the wall'], 5)
    assert tokenizer.batch_decode(seen['input_ids']) == [
        '</s> </s> </s> </s> <s> [INST] red dog [/INST]',
        '<s> [INST] a blue bell on the wall [/INST]']
    assert seen['attention_mask'].tolist() == [[0] * 4 + [1] * 5, [1] * 9]
    assert seen['do_sample'] is False and seen['num_beams'] == 1 and seen['max_new_tokens'] == 5
    assert all(len(answer.split()) <= 5 and 'INST' not in answer for answer in answers)


def test_the_audio_captioner_hears_the_whole_clip_and_reads_the_prompt(tiny):
    model, processor = load(tiny, 'qwen2_audio')
    seen, generate = {}, model.generate
    model.generate = lambda **given: seen.update(given) or generate(**given)
    captions.caption_sounds(model, processor, [torch.rand(2 * SAMPLE_RATE)] * 2, 4)
    assert seen['input_features'].shape == (2, 16, 200) and seen['feature_attention_mask'].all()
    # 200 frames, halved by a convolution and a pooling
    assert (seen['input_ids'] == 5).sum(1).tolist() == [50, 50]
    assert seen['do_sample'] is False and seen['repetition_penalty'] == 1.0
    assert seen['temperature'] is None


# ------------------------------------------------------------------------------------------------
# The three stages
# ------------------------------------------------------------------------------------------------

def test_three_stages_lead_from_pixels_and_waveforms_to_answers(undisturbed, pairs, tiny):
    lines = lines_of(undisturbed / 'captions.jsonl')
    assert [line['id'] for line in lines] == read_ids(pairs)
    for line in lines:
        assert list(line) == ['id', 'image_caption', 'audio_caption', 'object', 'models', 'error']
        assert line['error'] is None and len(line['object'].split()) <= 3
        assert line['image_caption'] and line['audio_caption']
        assert set(line['models']) == {'image', 'audio', 'llm'}
        assert line['models']['llm'] == captions.model_revision('object', str(tiny / 'mistral'))
    for key in ('image_caption', 'audio_caption'):
        assert len({line[key] for line in lines}) > 3
    assert captions.read_texts(undisturbed / 'captions.jsonl', 'object') == {
        line['id']: line['object'] for line in lines}


def test_kinds_of_one_caption_share_the_captioners_files(undisturbed, run, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / 'kinds')
    complete = lines_of(folder / 'captions.jsonl')
    for kind, other in (('image', 'audio'), ('audio', 'image')):
        out = folder / f'captions-{kind}.jsonl'
        run('all', out, '--captions-from', kind)
        for line, both in zip(lines_of(out), complete, strict=True):
            assert line[f'{kind}_caption'] == both[f'{kind}_caption']
            assert line[f'{other}_caption'] is None and line['models'][other] is None
        begun = json.loads((folder / f'captions-{kind}.answers/settings.json').read_bytes())
        assert begun['prompt'] == captions.OBJECT_PROMPTS[kind]


def test_two_processes_of_torchrun_finish_what_one_began(undisturbed, command, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / 'begun')
    for name in ('captions.jsonl', 'image_captions/000000.json', 'image_captions/000002.json',
                 'captions.answers/000001.json'):
        (folder / name).unlink()
    shutil.rmtree(folder / 'audio_captions')
    (folder / 'image_captions/000002.json.partial9').write_bytes(b'[{"id": "tr')    # killed there
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         str(ROOT / 'captions.py'), *command('all', folder / 'captions.jsonl')],
        capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert contents(folder) == contents(undisturbed)
    assert done.stdout.count(f'of {PAIRS} pairs ') == 1


# ------------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------------

def test_unreadable_files_fail_their_pairs_alone_and_are_retried(
        undisturbed, small_world, command, run, pairs, tmp_path, capsys):
    root, ids = shutil.copytree(small_world, tmp_path / 'root'), read_ids(pairs)
    frame, wav = root / f'vggsound/frames/{ids[2]}.jpg', root / f'vggsound/audio/{ids[9]}.wav'
    frame.write_bytes(b'no picture')
    wav.write_bytes(wav.read_bytes()[:1000])
    out = tmp_path / 'out/captions.jsonl'
    with pytest.raises(ValueError, match=f'^2 pairs failed, .*{frame.name}.* --retry-failed'):
        captions.main(command('all', out, root=root))
    assert f'{PAIRS - 2} of {PAIRS} pairs have an object' in capsys.readouterr().out
    complete = lines_of(undisturbed / 'captions.jsonl')
    for k, line in enumerate(lines_of(out)):
        if k in (2, 9):
            assert line['object'] == ''
            assert line[f'{"image" if k == 2 else "audio"}_caption'] is None
            assert (frame.name if k == 2 else wav.name) in line['error']
        else:
            assert line == complete[k]
    shutil.copyfile(small_world / f'vggsound/frames/{ids[2]}.jpg', frame)
    shutil.copyfile(small_world / f'vggsound/audio/{ids[9]}.wav', wav)
    assert len(run('all', out, root=root)) == 2             # not by itself
    assert run('all', out, '--retry-failed', root=root) == {}
    assert contents(out.parent) == contents(undisturbed)


def test_other_settings_or_other_pairs_are_not_mixed_in(undisturbed, run, pairs, tmp_path, capsys):
    folder = shutil.copytree(undisturbed, tmp_path / 'begun')
    out = folder / 'captions.jsonl'
    with pytest.raises(ValueError, match="max_new_tokens, '8': .*--overwrite"):
        run('image', out, '--image-tokens', 9)
    with pytest.raises(ValueError, match='begun with another prompt'):
        run('object', out, '--captions-from', 'image')
    fewer = tmp_path / 'fewer.csv'
    fewer.write_text('\n'.join(read_ids(pairs)[:9]))
    with pytest.raises(ValueError, match=f"begun with another pairs, '{PAIRS}'"):
        run('audio', out, ids=fewer)
    # but answers may be for fewer pairs
    assert run('object', folder / 'nine.jsonl', ids=fewer) == {}
    assert len(lines_of(folder / 'nine.jsonl')) == 9
    shutil.rmtree(folder / 'captions.answers')
    with pytest.raises(SystemExit):
        run('object', out)
    assert 'captions.jsonl was made elsewhere' in capsys.readouterr().err
    run('object', out, '--overwrite')
    assert out.read_bytes() == (undisturbed / 'captions.jsonl').read_bytes()
    with pytest.raises(ValueError, match=f'image_captions lacks {PAIRS} .* run captions.py image'):
        run('object', tmp_path / 'elsewhere/captions.jsonl')


def test_audio_captions_made_elsewhere_replace_the_audio_captioner(undisturbed, run, pairs,
                                                                   tmp_path):
    ids = read_ids(pairs)
    said = [f'sound, number {k}' for k in range(PAIRS)]
    made, table = tmp_path / 'gama.jsonl', tmp_path / 'gama.CSV'
    text = ''.join(json.dumps({'id': i, 'audio_caption': caption}) + '\n'
                   for i, caption in zip(ids, said))
    made.write_text(text)
    rows = [f'{i},"{caption}"\n' for i, caption in zip(ids, said)]
    table.write_text('id,audio_caption\n' + ''.join(rows))
    for file in (made, table):
        folder = tmp_path / file.suffix[1:]
        shutil.copytree(undisturbed / 'image_captions', folder / 'image_captions')
        run('all', folder / 'captions.jsonl', '--audio-captions', file)
        lines = lines_of(folder / 'captions.jsonl')
        assert [line['audio_caption'] for line in lines] == said
        assert lines[0]['models']['audio'].startswith(f'{file.name}@')
    made.write_text(text.replace('sound, number 3', ' '))
    with pytest.raises(ValueError, match=f'lacks 1 of the {PAIRS} pairs, the first {ids[3]}: add'):
        run('audio', tmp_path / 'bad/captions.jsonl', '--audio-captions', made)
    with pytest.raises(FileNotFoundError, match='no captions at .*none.csv'):
        run('audio', tmp_path / 'bad/captions.jsonl', '--audio-captions', tmp_path / 'none.csv')
    assert not (tmp_path / 'bad').exists()


def test_a_list_with_a_pair_twice_or_not_utf8_is_refused(run, pairs, tmp_path):
    ids, bad = read_ids(pairs), tmp_path / 'ids.csv'
    for content, words in (('\n'.join(ids + ids[:1]).encode(), f'names {ids[0]} twice'),
                           (b'x\xff_1\n', 'UTF-8')):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            run('image', tmp_path / 'captions.jsonl', ids=bad)


def test_a_list_of_other_data_is_refused_before_a_model_is_loaded(run, tmp_path):
    other = tmp_path / 'ids.csv'
    other.write_text('elsewhere_000000\n')
    for stage, kind in (('image', 'frames'), ('audio', 'audio')):
        with pytest.raises(ValueError, match=f'none of the 1 pairs has a file in .*{kind}'):
            run(stage, tmp_path / 'captions.jsonl', ids=other)
    assert not list(tmp_path.glob('*_captions'))


def test_a_model_that_is_absent_or_does_not_fit_is_named_with_its_option(run, tiny, tmp_path):
    out = tmp_path / 'captions.jsonl'
    file = tiny / 'mistral/model.safetensors'               # in place of its folder
    for option, name in (('--llm', tmp_path / 'nowhere'), ('--llm', file), ('--image-model', file),
                         ('--audio-model', file)):
        with pytest.raises(OSError, match=f'no usable AutoConfig at .*{name}.* by {option}'):
            run('all', out, option, name)
    assert not list(tmp_path.iterdir())                     # before hours of work, not after
    for stage, option, wrong in (('image', '--image-model', 'mistral'),
                                 ('audio', '--audio-model', 'blip2')):
        kept = tmp_path / f'{stage}_captions/000000.json'
        kept.parent.mkdir()
        kept.touch()
        with pytest.raises(ValueError, match=f'cannot use: correct {option}') as said:
            run(stage, out, option, tiny / wrong, '--overwrite')
        assert wrong in str(said.value) and kept.exists()
        shutil.rmtree(kept.parent)
    lacking = shutil.copytree(tiny / 'mistral', tmp_path / 'mistral')
    config = json.loads((lacking / 'config.json').read_text())
    (lacking / 'config.json').write_text(json.dumps({**config, 'num_hidden_layers': 3}))
    with pytest.raises(ValueError, match='9 weights are missing'):
        load(tmp_path, 'mistral')
    (lacking / 'model.safetensors').write_bytes(b'damaged')
    with pytest.raises(OSError, match='no usable AutoModelForCausalLM at .*mistral'):
        load(tmp_path, 'mistral')
    save_mistral(tmp_path / 'plain', chat_template=None)
    run('image', out)
    run('audio', out)
    with pytest.raises((OSError, ValueError), match='qwen2_audio'):
        run('object', out, '--llm', tiny / 'qwen2_audio')
    with pytest.raises(ValueError, match='no chat template'):
        run('object', out, '--llm', tmp_path / 'plain')


def test_what_is_wrong_with_a_file_of_captions_is_named(undisturbed, pairs, tmp_path):
    text = (undisturbed / 'captions.jsonl').read_text(encoding='utf-8')
    ids, bad = read_ids(pairs), tmp_path / 'captions.jsonl'
    with pytest.raises(FileNotFoundError, match='captions.py all'):
        captions.read_texts(bad, 'object')
    for content, words in (
            (text + text.splitlines()[2] + '\n', f'{ids[2]} twice'),
            (text[:-9], 'line 12 is not a JSON object, or is truncated: make the file again'),
            ('[1]\n' + text, 'line 1 is not a JSON object'),
            (text.encode() + b'\xff\n', 'not a UTF-8 text'),
            ('{"id": "x_1", "object": 1}\n', 'both texts'),
            ('{"id": "x_1", "label": "dog"}\n', 'both texts')):
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=words) as said:
            captions.read_texts(bad, 'object')
        assert str(bad) in str(said.value) and '\n' not in str(said.value)
