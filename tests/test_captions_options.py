"""captions.py: every option reaches the models, every caption and answer comes back to its pair."""

import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from transformers import (Blip2ForConditionalGeneration, Blip2Processor, MistralForCausalLM,
                          PreTrainedTokenizerBase, Qwen2AudioForConditionalGeneration,
                          Qwen2AudioProcessor)

import captions
from miniature import world
from stand_ins import (NAMES, OBJECTS, calls, lines_of, pairs_of, root, run,  # noqa: F401
                       settings_of)


# ---- which pair a caption belongs to

def test_every_caption_and_answer_stands_at_its_own_pair(root, calls):
    assert run(root, 'all', '--batch-size', 3) == {}
    for stage in ('image', 'audio', 'object'):
        assert pairs_of(calls, stage) == [[0, 1, 2], [3, 4, 5], [6]]
    folder = captions.ROOT / 'miniature/weights'
    models = {'image': f'{folder}/blip2@revision', 'audio': f'{folder}/qwen2_audio@revision',
              'llm': f'{folder}/mistral@revision'}
    assert lines_of(root.parent / 'out/captions.jsonl') == [
        {'id': name, 'image_caption': f'frame {k}', 'audio_caption': f'sound {k}',
         'object': OBJECTS[k], 'models': models, 'error': None} for k, name in enumerate(NAMES)]


def test_a_bad_file_in_the_middle_of_a_batch_shifts_no_other_pair(root, calls, capsys):
    (root / f'vggsound/frames/{NAMES[1]}.jpg').write_bytes(b'no picture')
    (root / f'vggsound/audio/{NAMES[4]}.wav').write_bytes(b'no sound')
    (root / f'vggsound/audio/{NAMES[5]}.wav').unlink()
    failed = run(root, 'all', '--batch-size', 6)
    assert list(failed) == [NAMES[1], NAMES[4], NAMES[5]]
    for k, file in ((1, '.jpg'), (4, '.wav'), (5, '.wav')):
        assert f'{NAMES[k]}{file}' in failed[NAMES[k]]
    assert pairs_of(calls, 'image') == [[0, 2, 3, 4, 5], [6]]
    assert pairs_of(calls, 'audio') == [[0, 1, 2, 3], [6]]
    assert pairs_of(calls, 'object') == [[0, 2, 3], [6]]    # those with both captions
    for k, line in enumerate(lines_of(root.parent / 'out/captions.jsonl')):
        assert line['id'] == NAMES[k] and line['error'] == failed.get(NAMES[k])
        assert line['image_caption'] == (None if k == 1 else f'frame {k}')
        assert line['audio_caption'] == (None if k in (4, 5) else f'sound {k}')
        assert line['object'] == ('' if k in (1, 4, 5) else OBJECTS[k])
    assert '1 of 7 pairs have an object' in capsys.readouterr().out


def test_ids_names_the_pairs_and_their_order(root, calls):
    listed = root / 'some.csv'
    listed.write_text('\n'.join(NAMES[k] for k in (5, 0, 3)))
    run(root, 'all', '--ids', listed)
    lines = lines_of(root.parent / 'out/captions.jsonl')
    assert [line['id'] for line in lines] == [NAMES[k] for k in (5, 0, 3)]
    assert pairs_of(calls, 'object') == [[5, 0, 3]]


def test_captions_made_elsewhere_are_joined_by_id_and_heard_by_the_language_model(root, calls):
    made = root / 'gama.jsonl'
    other = [{'id': name, 'audio_caption': f'elsewhere {k}'} for k, name in enumerate(NAMES)]
    other = [*other[::-1], {'id': 'not_listed', 'audio_caption': 'elsewhere'}]
    made.write_text(''.join(json.dumps(line) + '\n' for line in other))
    run(root, 'all', '--audio-captions', made)
    lines = lines_of(root.parent / 'out/captions.jsonl')
    assert [line['audio_caption'] for line in lines] == [f'elsewhere {k}' for k in range(7)]
    assert [line['object'] for line in lines] == OBJECTS
    assert not calls['audio']
    for seen in (calls['check'], [load[1] for load in calls['load']]):
        assert [name.rpartition('/')[2] for name in seen] == ['blip2', 'mistral']
    settings = settings_of(root.parent / 'out/audio_captions')
    assert settings['model'] == f'gama.jsonl@{captions.file_hash([made])}'


# ---- options that decide what is asked

PROMPTS = {     # section 3.6, word for word, and Table 10's with one caption
    'both': 'Identify the primary object in the ‘image caption’ most likely producing the '
            'sound like given ‘audio caption’, excluding background sounds which is hard to '
            'infer from given ‘image caption’. Keep the answer concise and focused on '
            'general concepts, such as type. Limit the response to no more than 3 words.\n'
            'Image caption: frame 3, Audio caption: sound 3',
    'image': 'Identify the primary object in the ‘image caption’ most likely producing the '
             'sound, excluding background sounds which is hard to infer from given ‘image '
             'caption’. Keep the answer concise and focused on general concepts, such as type. '
             'Limit the response to no more than 3 words.\nImage caption: frame 3',
    'audio': 'Identify the primary object most likely producing the sound like given ‘audio '
             'caption’, excluding background sounds. Keep the answer concise and focused on '
             'general concepts, such as type. Limit the response to no more than 3 words.\n'
             'Audio caption: sound 3'}


@pytest.mark.parametrize('kind', list(PROMPTS))
def test_captions_from_decides_what_is_asked_and_who_is_run(root, calls, kind):
    out = root / ('captions.jsonl' if kind == 'both' else f'captions-{kind}.jsonl')
    assert captions.main(['all', '--data-root', str(root), '--device', 'cpu',
                          '--captions-from', kind]) is None
    assert calls['object'][0]['inputs'][3] == PROMPTS[kind]
    ran = ['image', 'audio'] if kind == 'both' else [kind]
    loaded = [captions.STAGES[stage].models['miniature'][0] for stage in (*ran, 'object')]
    assert calls['check'] == [load[1] for load in calls['load']] == loaded
    for line in lines_of(out):
        for stage in ('image', 'audio'):
            assert bool(line[f'{stage}_caption']) == bool(line['models'][stage]) == (stage in ran)
    begun = settings_of(out.with_name(f'{out.stem}.answers'))
    assert begun['model'].endswith('mistral@revision')
    assert begun['prompt'].format(image='frame 3', audio='sound 3') == PROMPTS[kind]


def test_each_stage_alone_loads_its_own_model(root, calls):
    options = {'image': ('--image-model', 'see'), 'audio': ('--audio-model', 'hear'),
               'object': ('--llm', 'think')}
    for stage, (option, name) in options.items():
        run(root, stage, option, name, '--dtype', 'float16')
        assert calls['load'].pop() == (stage, name, torch.float16, torch.device('cpu'))
        assert calls['check'].pop() == name and not calls['load']
        given = calls[stage][0]
        assert (given['model'], given['processor']) == (f'model {name}', name)
    assert lines_of(root.parent / 'out/captions.jsonl')[0]['models'] == {
        'image': 'see@revision', 'audio': 'hear@revision', 'llm': 'think@revision'}


def test_a_model_is_freed_before_the_next_one_is_loaded(root, calls, monkeypatch):
    """The paper's are of 7 to 17 GB, and have a GPU of 24 GB."""
    models = []

    def load_captioner(stage, name, dtype, device):
        for seen in calls.values():
            seen.clear()                                    # the stand-ins hold the models, too
        assert not any(model() for model in models), f'two models in memory: {stage}'
        model = torch.nn.Identity()
        models.append(weakref.ref(model))
        return model, SimpleNamespace(name=name)

    monkeypatch.setattr(captions, 'load_captioner', load_captioner)
    run(root, 'all')
    assert len(models) == 3


def test_token_limits_and_batch_sizes_are_each_stage_s_own(root, calls, monkeypatch):
    for stage, size in (('image', 2), ('audio', 3), ('object', 4)):
        monkeypatch.setitem(captions.STAGES[stage].models, 'miniature',
                            (f'the {stage} model', size))
    run(root, 'all', '--image-tokens', 5, '--audio-tokens', 6, '--object-tokens', 7)
    for stage, file, tokens, sizes in (('image', 'image_captions', 5, [2, 2, 2, 1]),
                                       ('audio', 'audio_captions', 6, [3, 3, 1]),
                                       ('object', 'captions.answers', 7, [4, 3])):
        assert {call['tokens'] for call in calls[stage]} == {tokens}
        assert list(map(len, pairs_of(calls, stage))) == sizes
        settings = settings_of(root.parent / f'out/{file}')
        expected = {'stage': stage, 'max_new_tokens': tokens, 'batch_size': sizes[0],
                    'dtype': 'float32', 'pairs': 7}
        assert {name: settings[name] for name in expected} == expected


def test_the_preset_decides_how_many_seconds_are_heard_and_which_models_speak(root, calls):
    run(root, 'audio')
    assert {wav.shape for wav in calls['audio'][0]['inputs']} == {(32_000,)}
    run(root, 'audio', '--preset', 'paper', out='paper/captions.jsonl')
    assert {wav.shape for wav in calls['audio'][1]['inputs']} == {(160_000,)}
    assert calls['check'][1] == 'Qwen/Qwen2-Audio-7B-Instruct'


def test_sounds_of_any_format_are_read(root, calls):
    wav = root / f'vggsound/audio/{NAMES[2]}.wav'
    soundfile.write(wav.with_suffix('.flac'), np.full(32_000, 2 / 16), 16_000)
    wav.unlink()
    assert run(root, 'audio') == {}
    assert pairs_of(calls, 'audio') == [list(range(7))]


def test_the_miniature_draws_its_world_where_no_root_is_named_only(root, calls, monkeypatch):
    built = []
    monkeypatch.setattr(world, 'build', lambda *given: built.append(given))
    run(root, 'image')
    assert not built
    args = captions.parse_args(['image', '--out', str(root.parent / 'x/captions.jsonl'),
                                '--device', 'cpu'])
    assert args.data_root == captions.ROOT / 'data/miniature'
    args.data_root, args.ids = root, root / 'vggsound/train.csv'
    captions.caption_pairs(args, torch.device('cpu'))
    assert built == [(root,)]


# ---- the command line

def test_numbers_are_of_16_bits_on_cuda_or_where_asked_for(root, calls):
    for place, option, dtype in (('cpu', [], torch.float32), ('cuda', [], torch.bfloat16),
                                 ('mps', [], torch.float32),
                                 ('mps', ['--dtype', 'float16'], torch.float16)):
        args = captions.parse_args(['image', '--data-root', str(root), '--overwrite', *option])
        captions.caption_pairs(args, torch.device(place))
        assert calls['load'].pop()[2:] == (dtype, torch.device(place))


def test_failed_pairs_are_one_sentence(root, calls):
    (root / f'vggsound/frames/{NAMES[1]}.jpg').write_bytes(b'no picture')
    command = ['image', '--data-root', str(root), '--device', 'cpu']
    with pytest.raises(ValueError, match='^1 pairs failed.* --retry-failed') as said:
        captions.main(command)
    assert f'{NAMES[1]}.jpg' in str(said.value) and '\n' not in str(said.value)
    Image.new('RGB', (16, 16)).save(root / f'vggsound/frames/{NAMES[1]}.jpg')
    assert captions.main([*command, '--retry-failed']) is None


@pytest.mark.parametrize('option', ['--batch-size', '--image-tokens', '--audio-tokens',
                                    '--object-tokens'])
def test_numbers_below_1_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        captions.parse_args(['all', option, '0'])
    assert 'must be at least 1' in capsys.readouterr().err


def test_a_result_inside_a_folder_of_the_data_is_refused(root, capsys):
    for stage in ('image', 'object'):
        with pytest.raises(SystemExit):
            run(root, stage, out='data/vggsound/frames/captions.jsonl')
        assert '--out would overwrite a file of the data' in capsys.readouterr().err
    with pytest.raises(SystemExit):                         # the drawn world's list of scenes
        run(root, 'all', '--overwrite', out='data/scenes.jsonl')
    assert '--out would overwrite a file of the data' in capsys.readouterr().err
    assert sorted(path.suffix for path in (root / 'vggsound/frames').iterdir()) == ['.jpg'] * 7


def test_a_model_s_revision_changes_with_its_files(tmp_path):
    (tmp_path / 'config.json').write_text('{"model_type": "mistral"}')
    names = [captions.model_revision('object', str(tmp_path))]
    for content in (b'one', b'two'):
        (tmp_path / 'model.safetensors').write_bytes(content)
        names.append(captions.model_revision('object', str(tmp_path)))
    assert len(set(names)) == 3 and all(name.startswith(f'{tmp_path}@') for name in names)
    shipped = captions.model_revision(
        'image', captions.STAGES['image'].models['miniature'][0])
    assert shipped.startswith('miniature/weights/blip2@')


def test_a_hash_depends_on_names_and_on_all_of_the_content(tmp_path):
    first, other = tmp_path / 'first', tmp_path / 'other'
    first.write_bytes(bytes(3000))
    other.write_bytes(bytes(3000))
    before = captions.file_hash([first])
    assert before == captions.file_hash([first]) != captions.file_hash([other])
    first.write_bytes(bytes(2999) + b'x')
    assert captions.file_hash([first]) != before and len(before) == 12
    first.write_bytes(bytes(2**24))
    before = captions.file_hash([first])
    first.write_bytes(bytes(2**24) + b'x')                  # more than is read at once
    assert captions.file_hash([first]) != before


def test_what_is_no_text_is_replaced(root, calls):
    made = root / 'gama.jsonl'
    lines = [{'id': name, 'audio_caption': f'sound \ud83d é {k}'} for k, name in enumerate(NAMES)]
    made.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    run(root, 'all', '--audio-captions', made)
    assert lines_of(root.parent / 'out/captions.jsonl')[2]['audio_caption'] == 'sound ? é 2'


# ---- what reaches transformers

class Recorder:
    """A model and a processor in one: keeps what it is given, adds two words to a prompt."""
    device, dtype = torch.device('cpu'), torch.float16
    pad_token, eos_token, pad_token_id, padding_side = None, '</s>', 77, 'right'

    def __init__(self):
        self.tokenizer = self
        self.calls, self.asked, self.generated, self.moved = [], [], {}, ()

    def __call__(self, *given, **named):
        self.calls.append((given, named, self.padding_side, self.pad_token))
        inputs = {'input_ids': torch.tensor([[1, 2, 3]] * 2)}
        return SimpleNamespace(to=lambda *where: self.__setattr__('moved', where) or inputs)

    def apply_chat_template(self, conversation, **named):
        self.asked.append((conversation, named))
        return f'<{len(self.asked)}>'

    def generate(self, **named):
        self.generated = named
        return torch.tensor([[1, 2, 3, 10, 11], [1, 2, 3, 20, 21]])

    def settings(self):
        return {name: value for name, value in self.generated.items() if name != 'input_ids'}

    def batch_decode(self, tokens, skip_special_tokens):
        assert skip_special_tokens
        return [f' {row} \n'.replace(', ', ',\n ') for row in tokens.tolist()]


GREEDY = {'do_sample': False, 'num_beams': 1, 'temperature': None, 'top_p': None, 'top_k': None,
          'repetition_penalty': 1.0}


def test_images_are_captioned_greedily_without_a_prompt():
    blip, images = Recorder(), ['one', 'two']
    found = captions.caption_images(blip, blip, images, 9)
    assert found == ['[1, 2, 3, 10, 11]', '[1, 2, 3, 20, 21]']
    assert blip.calls[0][:2] == ((), {'images': images, 'return_tensors': 'pt'}) and not blip.asked
    assert blip.moved == (torch.device('cpu'), torch.float16)
    assert blip.settings() == {**GREEDY, 'max_new_tokens': 9}


def test_sounds_are_captioned_greedily_padded_on_the_left_and_answers_alone_are_kept():
    qwen = Recorder()
    found = captions.caption_sounds(qwen, qwen, [torch.full((320,), 0.5), torch.zeros(320)], 9)
    assert found == ['[10, 11]', '[20, 21]']
    (conversation, named), = qwen.asked
    assert conversation == [{'role': 'user', 'content': [
        {'type': 'audio', 'audio_url': ''},
        {'type': 'text', 'text': 'Describe the sound in one sentence.'}]}]
    assert named == {'add_generation_prompt': True, 'tokenize': False}
    (_, given, side, _), = qwen.calls
    assert given['text'] == ['<1>', '<1>'] and given['sampling_rate'] == 16_000
    assert given['padding'] and side == 'left'
    assert [len(wav) for wav in given['audio']] == [320] * 2
    assert given['audio'][0].mean() > 0.4 and not given['audio'][1].any()
    assert qwen.settings() == {**GREEDY, 'max_new_tokens': 9}


def test_the_language_model_is_asked_greedily_padded_on_the_left_and_answers_alone_are_kept():
    llm = Recorder()
    found = captions.answer_prompts(llm, llm, ['first', 'second'], 9)
    assert found == [' [10,\n 11] \n', ' [20,\n 21] \n']
    named = {'add_generation_prompt': True, 'tokenize': False}
    assert llm.asked == [([{'role': 'user', 'content': text}], named)
                         for text in ('first', 'second')]
    (given, named, side, pad), = llm.calls
    assert given == (['<1>', '<2>'],) and side == 'left'
    assert pad == '</s>'                                    # Mistral has no padding token
    assert named['padding'] and named['add_special_tokens'] is False    # the template has them
    assert llm.settings() == {**GREEDY, 'max_new_tokens': 9, 'pad_token_id': 77}


def test_models_are_of_their_stage_s_classes_in_the_asked_dtype_on_the_asked_device():
    classes = {'image': (Blip2ForConditionalGeneration, Blip2Processor),
               'audio': (Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor),
               'object': (MistralForCausalLM, PreTrainedTokenizerBase)}
    for stage, (model_class, processor_class) in classes.items():
        name = captions.STAGES[stage].models['miniature'][0]
        model, processor = captions.load_captioner(stage, name, torch.bfloat16, 'meta')
        assert isinstance(model, model_class) and isinstance(processor, processor_class)
        assert (model.dtype, model.device.type) == (torch.bfloat16, 'meta')
