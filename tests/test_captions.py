"""captions.py: the three stages through the very classes of the paper's models, tiny and untrained; parsing; restarts."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor,
                          MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast, Qwen2AudioConfig,
                          Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor, WhisperFeatureExtractor)

import answers
import captions
from data import SAMPLE_RATE, read_audio, read_ids, read_image

WORDS = ('dog cat bell red blue a the of sound is on left right drum frog car house tree with and small ringing barking '
         'loud soft quiet wall sky').split()
CHAT = ("{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}")


# ------------------------------------------------------------------------------------------------
# Tiny untrained models of the paper's classes, saved as transformers folders
# ------------------------------------------------------------------------------------------------

def word_tokenizer(specials, **named):
    known = [*specials, *WORDS, *sorted(set(' '.join(captions.OBJECT_PROMPTS.values()).split()))]
    words = Tokenizer(models.WordLevel({w: k for k, w in enumerate(dict.fromkeys(known))}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(list(specials))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', **named)


def talkative(model):
    """Random weights large enough for captions that differ from pair to pair."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * (1.0 if 'embed' in name or 'query' in name else 0.3)
    return model.eval()


def save_blip2(folder):
    tokenizer = word_tokenizer(('<pad>', '<s>', '</s>', '<unk>', '<image>'), pad_token='<pad>', bos_token='<s>',
                               eos_token='</s>')
    Blip2Processor(BlipImageProcessor(size={'height': 32, 'width': 32}), tokenizer, num_query_tokens=4).save_pretrained(folder)
    small = {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2, 'num_attention_heads': 2}
    config = Blip2Config(
        vision_config={**small, 'image_size': 32, 'patch_size': 8}, qformer_config={**small, 'vocab_size': 8},
        text_config={'model_type': 'opt', 'vocab_size': len(tokenizer), 'hidden_size': 32, 'ffn_dim': 48,
                     'word_embed_proj_dim': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2,
                     'max_position_embeddings': 64, 'pad_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2},
        num_query_tokens=4, image_token_index=4)
    talkative(Blip2ForConditionalGeneration(config)).save_pretrained(folder)


def save_qwen2_audio(folder, rate=16_000):
    tokenizer = word_tokenizer(('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<unk>', '<|audio_bos|>', '<|AUDIO|>',
                                '<|audio_eos|>'), pad_token='<|endoftext|>', eos_token='<|im_end|>')
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2, sampling_rate=rate, hop_length=rate // 100)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    config = Qwen2AudioConfig(
        audio_config={'model_type': 'qwen2_audio_encoder', 'num_mel_bins': 16, 'd_model': 32, 'encoder_ffn_dim': 48,
                      'encoder_layers': 2, 'encoder_attention_heads': 2, 'max_source_positions': 100},
        text_config={'model_type': 'qwen2', 'vocab_size': len(tokenizer), 'hidden_size': 32, 'intermediate_size': 48,
                     'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 2, 'pad_token_id': 0,
                     'bos_token_id': 0, 'eos_token_id': 2}, audio_token_index=5)
    model = talkative(Qwen2AudioForConditionalGeneration(config))
    # what the real checkpoint brings along, and greedy decoding must switch off
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.5, repetition_penalty=1.1)
    model.save_pretrained(folder)


def save_mistral(folder, chat_template=CHAT):
    tokenizer = word_tokenizer(('<unk>', '<s>', '</s>', '[INST]', '[/INST]'), bos_token='<s>', eos_token='</s>',
                               chat_template=chat_template)
    tokenizer.save_pretrained(folder)
    config = MistralConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                           num_attention_heads=2, num_key_value_heads=1, bos_token_id=1, eos_token_id=2)
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

PAIRS, BATCH = 24, 4
FILES = ('captions.jsonl', 'image_captions.jsonl', 'audio_captions.jsonl', 'captions.answers.jsonl')


@pytest.fixture(scope='module')
def pairs(small_world, tmp_path_factory):
    """A list of the first pairs of the small world, as a file."""
    path = tmp_path_factory.mktemp('list') / 'ids.csv'
    path.write_text('\n'.join(read_ids(small_world / 'vggsound/train.csv')[:PAIRS]))
    return path


def command(stage, root, tiny, pairs, out, *more):
    return [stage, '--data-root', str(root), '--ids', str(pairs), '--out', str(out),
            '--batch-size', str(BATCH), '--device', 'cpu', '--image-model', str(tiny / 'blip2'),
            '--audio-model', str(tiny / 'qwen2_audio'), '--llm', str(tiny / 'mistral'),
            '--image-tokens', '8', '--audio-tokens', '8', '--object-tokens', '6', *map(str, more)]


def run(*arguments):
    """captions.py within this process. -> {id: sentence} of the pairs that failed"""
    return captions.main(captions.parse_args(command(*arguments)))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def undisturbed(small_world, tiny, pairs, tmp_path_factory):
    """The folder of one whole run over the pairs."""
    folder = tmp_path_factory.mktemp('undisturbed')
    assert run('all', small_world, tiny, pairs, folder / 'captions.jsonl') == {}
    return folder


def same_files(folder, other):
    for name in FILES:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)       # no parts left lying about


# ------------------------------------------------------------------------------------------------
# The answer, the prompts
# ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text, wanted, how', [
    ('dog', 'dog', 'plain'), ('Ice cream truck', 'ice cream truck', 'plain'),
    ('guitar or violin', 'guitar or violin', 'plain'),
    ('"Siren".', 'siren', 'mended'), ('“Fire truck”', 'fire truck', 'mended'), ('**Bird**', 'bird', 'mended'),
    ('The sound is a dog barking.', 'dog barking', 'mended'), ('The primary object is a "guitar".', 'guitar', 'mended'),
    ('The sound is most likely coming from a car engine.', 'car engine', 'mended'), ('It’s a cat', 'cat', 'mended'),
    ('Based on the captions, the primary object is the bell.', 'bell', 'mended'), ('The answer is: drum', 'drum', 'mended'),
    ('Dog\n\nExplanation: the caption mentions a dog.', 'dog', 'mended'), ('Object: Lawn mower', 'lawn mower', 'mended'),
    ('1. Drum', 'drum', 'mended'), ('Musical instrument (guitar)', 'musical instrument', 'mended'),
    ('Car/vehicle', 'car', 'mended'),
    ('a big red fire truck', 'red fire truck', 'mended'), ('man playing an electric guitar', 'man', 'mended'),
    ('flock of seagulls flying', 'flock of seagulls', 'mended'), ('barking of a dog', 'barking', 'mended'),
    ('dog in the background', 'dog', 'mended'), ('children’s choir', "children's choir", 'mended'),
    ('I cannot determine the object.', '', 'refused'), ('Unknown', '', 'refused'), ('None', '', 'refused'),
    ('N/A', '', 'refused'),
    ('There is no clear object in the image', '', 'refused'), ("I'm sorry, but I can’t tell.", '', 'refused'),
    ('', '', 'empty'), ('\n \n', '', 'empty'), ('...', '', 'empty'), ('</s>', '', 'empty')])
def test_an_answer_is_mended_to_three_words_and_a_refusal_is_none(text, wanted, how):
    assert captions.parse_answer(text) == (wanted, how)


def test_the_prompt_is_the_papers_and_one_caption_prompts_leave_the_other_out():
    prompt = captions.OBJECT_PROMPTS['both'].format(image='{a} dog', audio='a bark')
    assert prompt.split('\n') == [
        'Identify the primary object in the ‘image caption’ most likely producing the sound like given ‘audio '
        'caption’, excluding background sounds which is hard to infer from given ‘image caption’. Keep the answer '
        'concise and focused on general concepts, such as type. Limit the response to no more than 3 words.',
        'Image caption: {a} dog, Audio caption: a bark']
    assert 'audio' not in captions.OBJECT_PROMPTS['image'].lower() and 'image' not in captions.OBJECT_PROMPTS['audio'].lower()


def test_the_papers_models_fit_a_24_gb_gpu_one_at_a_time_in_16_bits():
    """Their classes at full size, from configurations, on no device: 3.7, 8.4 and 7.2 billion parameters."""
    qwen = Qwen2AudioConfig(text_config={
        'model_type': 'qwen2', 'vocab_size': 156032, 'hidden_size': 4096, 'intermediate_size': 11008,
        'num_hidden_layers': 32, 'num_attention_heads': 32, 'num_key_value_heads': 32})
    opt = {'model_type': 'opt', 'vocab_size': 50304, 'hidden_size': 2560, 'word_embed_proj_dim': 2560, 'ffn_dim': 10240,
           'num_hidden_layers': 32, 'num_attention_heads': 32}
    with torch.device('meta'):
        models = [Blip2ForConditionalGeneration(Blip2Config(text_config=opt)), Qwen2AudioForConditionalGeneration(qwen),
                  MistralForCausalLM(MistralConfig())]
    billions = [sum(p.numel() for p in model.parameters()) / 1e9 for model in models]
    assert billions == pytest.approx([3.74, 8.40, 7.24], abs=0.03)
    assert max(billions) * 2 < 24 * 0.75                                    # room for caches and activations


# ------------------------------------------------------------------------------------------------
# The three models
# ------------------------------------------------------------------------------------------------

def test_a_caption_does_not_depend_on_the_pairs_it_shares_a_batch_with(small_world, tiny, pairs):
    ids, folder = read_ids(pairs)[:5], small_world / 'vggsound'
    images = [read_image(folder / f'frames/{i}.jpg') for i in ids]
    wavs = [read_audio(folder / f'audio/{i}.wav', 2.0) for i in ids]
    prompts = [captions.OBJECT_PROMPTS['both'].format(image='a red dog ' * k, audio='a sound') for k in range(5)]
    for name, classes, describe, inputs in (
            ('blip2', (Blip2ForConditionalGeneration, Blip2Processor), captions.caption_images, images),
            ('qwen2_audio', (Qwen2AudioForConditionalGeneration, captions.AutoProcessor), captions.caption_sounds, wavs),
            ('mistral', (MistralForCausalLM, AutoTokenizer), captions.answer_prompts, prompts)):
        model, processor = captions.load_model(*classes, str(tiny / name), torch.float32, 'cpu')
        alone = [describe(model, processor, [x], 8)[0] for x in inputs]
        assert describe(model, processor, inputs, 8) == alone, name
        assert len(set(alone)) > 1 and all(alone), (name, alone)


def test_the_language_model_is_asked_in_its_chat_template_and_decodes_greedily(tiny):
    model, tokenizer = captions.load_model(MistralForCausalLM, AutoTokenizer, str(tiny / 'mistral'), torch.float32, 'cpu')
    seen, generate = {}, model.generate
    model.generate = lambda **given: seen.update(given) or generate(**given)
    answers = captions.answer_prompts(model, tokenizer, ['red dog', 'a blue bell on the wall'], 5)
    assert tokenizer.batch_decode(seen['input_ids']) == ['</s> </s> </s> </s> <s> [INST] red dog [/INST]',
                                                         '<s> [INST] a blue bell on the wall [/INST]']
    assert seen['attention_mask'].tolist() == [[0] * 4 + [1] * 5, [1] * 9]
    assert seen['do_sample'] is False and seen['num_beams'] == 1 and seen['max_new_tokens'] == 5
    assert all(len(answer.split()) <= 5 and 'INST' not in answer for answer in answers)


def test_the_audio_captioner_hears_the_whole_clip_and_reads_the_prompt(tiny, tmp_path):
    save_qwen2_audio(tmp_path / 'at8khz', rate=8000)
    for folder in (tiny / 'qwen2_audio', tmp_path / 'at8khz'):              # the second one needs the clip resampled
        model, processor = captions.load_model(Qwen2AudioForConditionalGeneration, captions.AutoProcessor, str(folder),
                                               torch.float32, 'cpu')
        seen, generate = {}, model.generate
        model.generate = lambda **given: seen.update(given) or generate(**given)
        captions.caption_sounds(model, processor, [torch.rand(2 * SAMPLE_RATE), torch.rand(2 * SAMPLE_RATE)], 4)
        assert seen['input_features'].shape == (2, 16, 200) and seen['feature_attention_mask'].all()
        assert (seen['input_ids'] == 5).sum(1).tolist() == [50, 50]         # 200 frames, halved by a convolution and a pooling
        assert seen['do_sample'] is False and seen['repetition_penalty'] == 1.0 and seen['temperature'] is None


# ------------------------------------------------------------------------------------------------
# The three stages
# ------------------------------------------------------------------------------------------------

def test_three_stages_lead_from_pixels_and_waveforms_to_answers(undisturbed, pairs, tiny):
    lines = lines_of(undisturbed / 'captions.jsonl')
    assert [line['id'] for line in lines] == read_ids(pairs)
    for line in lines:
        assert list(line) == ['id', 'image_caption', 'audio_caption', 'object', 'models', 'error'] and line['error'] is None
        assert line['image_caption'] and line['audio_caption'] and len(line['object'].split()) <= 3
        assert set(line['models']) == {'image', 'audio', 'llm'}
        assert line['models']['llm'] == captions.check_model('object', str(tiny / 'mistral'))
    assert len({line['audio_caption'] for line in lines}) > 3 and len({line['image_caption'] for line in lines}) > 3
    assert answers.read_captions(undisturbed / 'captions.jsonl', read_ids(pairs)[3:5]) == {
        line['id']: line for line in lines[3:5]}


def test_kinds_of_one_caption_share_the_captioners_files(undisturbed, small_world, tiny, pairs, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / 'kinds')
    for kind, other in (('image', 'audio'), ('audio', 'image')):
        out = folder / f'captions-{kind}.jsonl'
        run('all', small_world, tiny, pairs, out, '--captions-from', kind)
        for line, both in zip(lines_of(out), lines_of(folder / 'captions.jsonl'), strict=True):
            assert line[f'{kind}_caption'] == both[f'{kind}_caption'] and line[f'{other}_caption'] is None
            assert line['models'][other] is None
        assert lines_of(folder / f'captions-{kind}.answers.jsonl')[0]['settings']['prompt'] == captions.OBJECT_PROMPTS[kind]


def test_a_killed_run_started_again_gives_the_file_of_an_undisturbed_one(undisturbed, small_world, tiny, pairs, tmp_path):
    call = [sys.executable, str(ROOT / 'captions.py'), *command('all', small_world, tiny, pairs, tmp_path / 'captions.jsonl')]
    for name, lines in (('image_captions.jsonl', 5), ('audio_captions.jsonl', 9), ('captions.answers.jsonl', 2)):
        process, file = subprocess.Popen(call, stderr=subprocess.DEVNULL), tmp_path / name
        while not (file.exists() and file.read_bytes().count(b'\n') >= lines):
            assert process.poll() is None, 'it ended before it could be killed'
            time.sleep(0.005)
        process.kill()                                                      # SIGKILL
        process.wait()
        with open(file, 'ab') as torn:                                      # what a crash of the machine may leave besides
            torn.write('{"id": "train0000‘'.encode()[:-1])
    assert run('all', small_world, tiny, pairs, tmp_path / 'captions.jsonl') == {}
    same_files(tmp_path, undisturbed)


@pytest.mark.parametrize('kept', [40, 0.37, 0.999])
def test_a_file_cut_off_anywhere_is_made_whole(undisturbed, small_world, tiny, pairs, tmp_path, kept):
    for name in FILES:
        content = (undisturbed / name).read_bytes()
        (tmp_path / name).write_bytes(content[:kept if isinstance(kept, int) else int(kept * len(content))])
    run('all', small_world, tiny, pairs, tmp_path / 'captions.jsonl')
    same_files(tmp_path, undisturbed)


def test_two_processes_give_what_one_gives(undisturbed, small_world, tiny, pairs, tmp_path):
    (tmp_path / 'image_captions.jsonl.part1').write_bytes(b'{"id": "tr')    # left by an earlier, killed run
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29617',
                           str(ROOT / 'captions.py'), *command('all', small_world, tiny, pairs, tmp_path / 'captions.jsonl')],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    same_files(tmp_path, undisturbed)


def test_parts_of_a_killed_run_of_several_processes_are_taken_up_by_one(undisturbed, small_world, tiny, pairs, tmp_path):
    header, *lines = (undisturbed / 'image_captions.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path / 'image_captions.jsonl').write_bytes(header)
    (tmp_path / 'image_captions.jsonl.part0').write_bytes(b''.join(lines[:4] + lines[16:20]) + lines[8][:9])
    (tmp_path / 'image_captions.jsonl.part1').write_bytes(b''.join(lines[12:15]))                      # no whole batch
    run('all', small_world, tiny, pairs, tmp_path / 'captions.jsonl')
    same_files(tmp_path, undisturbed)


# ------------------------------------------------------------------------------------------------
# Bad input
# ------------------------------------------------------------------------------------------------

def test_unreadable_files_fail_their_pairs_alone_and_are_retried(undisturbed, small_world, tiny, pairs, tmp_path, script):
    root, ids = shutil.copytree(small_world, tmp_path / 'root'), read_ids(pairs)
    frame, wav = root / f'vggsound/frames/{ids[2]}.jpg', root / f'vggsound/audio/{ids[13]}.wav'
    frame.write_bytes(b'no picture')
    wav.write_bytes(wav.read_bytes()[:1000])
    out = tmp_path / 'out/captions.jsonl'
    done = script('captions.py', *command('all', root, tiny, pairs, out))
    said = [line for line in done.stderr.splitlines() if line.startswith('captions.py:')]
    assert done.returncode == 1 and 'Traceback' not in done.stderr and len(said) == 1
    assert '2 pairs failed' in said[0] and frame.name in said[0] and '22 with an object' in done.stdout, said
    whole = lines_of(undisturbed / 'captions.jsonl')
    for k, line in enumerate(lines_of(out)):
        if k in (2, 13):
            assert line['object'] == '' and line[f'{"image" if k == 2 else "audio"}_caption'] is None
            assert (frame.name if k == 2 else wav.name) in line['error']
        else:
            assert line == whole[k]
    shutil.copyfile(small_world / f'vggsound/frames/{ids[2]}.jpg', frame)
    shutil.copyfile(small_world / f'vggsound/audio/{ids[13]}.wav', wav)
    assert len(run('all', root, tiny, pairs, out)) == 2                     # not by itself
    assert run('all', root, tiny, pairs, out, '--retry-failed') == {}
    same_files(out.parent, undisturbed)


def test_other_settings_or_other_pairs_are_not_mixed_in(undisturbed, small_world, tiny, pairs, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / 'begun')
    out = folder / 'captions.jsonl'
    with pytest.raises(ValueError, match="max_new_tokens '8', not '9'.*--overwrite"):
        run('image', small_world, tiny, pairs, out, '--image-tokens', 9)
    with pytest.raises(ValueError, match='begun with prompt'):
        run('object', small_world, tiny, pairs, out, '--captions-from', 'image')
    fewer = tmp_path / 'fewer.csv'
    fewer.write_text('\n'.join(read_ids(pairs)[:9]))
    with pytest.raises(ValueError, match="begun with pairs '24', not '9'"):
        run('audio', small_world, tiny, fewer, out)
    assert run('object', small_world, tiny, fewer, folder / 'nine.jsonl') == {}         # but answers may be for fewer pairs
    assert len(lines_of(folder / 'nine.jsonl')) == 9
    (folder / 'captions.answers.jsonl').unlink()
    with pytest.raises(FileExistsError, match='made elsewhere'):
        run('object', small_world, tiny, pairs, out)
    run('object', small_world, tiny, pairs, out, '--overwrite')
    assert out.read_bytes() == (undisturbed / 'captions.jsonl').read_bytes()


def test_audio_captions_made_elsewhere_replace_the_audio_captioner(undisturbed, small_world, tiny, pairs, tmp_path):
    ids = read_ids(pairs)
    made = tmp_path / 'gama.jsonl'
    made.write_text(''.join(json.dumps({'id': i, 'audio_caption': f'sound, number {k}'}) + '\n' for k, i in enumerate(ids)))
    table = tmp_path / 'gama.csv'
    table.write_text('id,audio_caption\n' + ''.join(f'{i},"sound, number {k}"\n' for k, i in enumerate(ids)))
    for file in (made, table):
        folder = tmp_path / file.suffix[1:]
        folder.mkdir()
        shutil.copyfile(undisturbed / 'image_captions.jsonl', folder / 'image_captions.jsonl')
        run('all', small_world, tiny, pairs, folder / 'captions.jsonl', '--audio-captions', file)
        lines = lines_of(folder / 'captions.jsonl')
        assert [line['audio_caption'] for line in lines] == [f'sound, number {k}' for k in range(PAIRS)]
        assert lines[0]['models']['audio'].startswith(f'{file.name}@')
    text = made.read_text()
    for content, words in ((text + text.splitlines()[4] + '\n', f'{ids[4]} twice'),
                           (text.replace(ids[0], 'x_1'), 'lacks 1 of the 24'),
                           (text.replace('train', 'other'), 'another dataset'), (text[:-4], 'middle of a line'),
                           (text.replace('sound, number 3', ''), 'both texts'), (text.encode() + b'\xff\n', 'not UTF-8')):
        made.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=words):
            run('audio', small_world, tiny, pairs, tmp_path / 'bad/captions.jsonl', '--audio-captions', made)


def test_a_list_with_a_pair_twice_not_utf8_or_of_another_dataset_is_refused(small_world, tiny, pairs, tmp_path):
    ids, bad = read_ids(pairs), tmp_path / 'ids.csv'
    for content, words in (('\n'.join(ids + ids[:1]).encode(), f'more than once, the first {ids[0]}'), (b'x\xff_1\n', 'UTF-8'),
                           (b'elsewhere_000001\n', 'none of the 1 pairs')):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            run('image', small_world, tiny, bad, tmp_path / 'captions.jsonl')


def test_a_model_that_is_absent_or_does_not_fit_is_named_with_its_option(small_world, tiny, pairs, tmp_path, script):
    out = tmp_path / 'captions.jsonl'
    done = script('captions.py', *command('all', small_world, tiny, pairs, out, '--llm', tmp_path / 'nowhere'))
    said = [line for line in done.stderr.splitlines() if line.startswith('captions.py:')]
    assert done.returncode == 1 and len(said) == 1 and 'nowhere' in said[0] and '--llm' in said[0], done.stderr
    assert 'Traceback' not in done.stderr and not list(tmp_path.glob('*.jsonl'))        # before hours of work, not after
    for option, wrong in (('--image-model', 'mistral'), ('--audio-model', 'blip2'), ('--llm', 'qwen2_audio')):
        with pytest.raises(ValueError, match=f'holds a model of type.*{option}'):
            run('all', small_world, tiny, pairs, out, option, tiny / wrong)
    lacking = shutil.copytree(tiny / 'mistral', tmp_path / 'lacking')
    config = json.loads((lacking / 'config.json').read_text())
    (lacking / 'config.json').write_text(json.dumps({**config, 'num_hidden_layers': 3}))
    with pytest.raises(ValueError, match='lacks 9 of its weights'):
        captions.load_model(MistralForCausalLM, AutoTokenizer, str(lacking), torch.float32, 'cpu')
    (lacking / 'model.safetensors').write_bytes(b'torn')
    with pytest.raises(ValueError, match='cannot be loaded'):
        captions.load_model(MistralForCausalLM, AutoTokenizer, str(lacking), torch.float32, 'cpu')
    save_mistral(tmp_path / 'plain', chat_template=None)
    run('image', small_world, tiny, pairs, out), run('audio', small_world, tiny, pairs, out)
    with pytest.raises(ValueError, match='no chat template'):
        run('object', small_world, tiny, pairs, out, '--llm', tmp_path / 'plain')


def test_read_captions_names_what_is_wrong_with_a_file(undisturbed, pairs, tmp_path):
    text, ids, bad = (undisturbed / 'captions.jsonl').read_text(), read_ids(pairs), tmp_path / 'captions.jsonl'
    with pytest.raises(FileNotFoundError, match='captions.py all'):
        answers.read_captions(bad, ids)
    for content, words in ((text + text.splitlines()[2] + '\n', f'{ids[2]} twice'), (text[:-9], 'middle of a line'),
                           (text.replace('train', 'other'), 'another dataset'),
                           ('[1]\n' + text, 'line 1 is not a JSON object'),
                           (text.replace(ids[1], 'x_1'), f'lacks 1 of the 24 pairs, the first {ids[1]}'),
                           (text.encode() + b'\xff\n', 'line 25 is not UTF-8'),
                           ('{"id": "x_1", "object": null}\n', 'both texts')):
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=words):
            answers.read_captions(bad, ids)
