"""The baselines' encoders equal the original code; checkpoints that do not fit are named.

    python -m pytest tests/test_encoders.py                             # tests/golden/encoders
    ACL_GOLDEN_ENCODERS=DIR python -m pytest tests/test_encoders.py     # any folder of that form

Such a folder holds config.json (names and shapes of all entries), golden_weights.py (the rule that
makes weights and inputs) and a npz for each encoder: X is the original code in float32, X__f64 in
float64. AudioCLIP's float64 intermediates are stored in float32. First float64 at 1e-6: some
mistakes move an embedding by less than float32's rounding does.
"""

import contextlib
import functools
import importlib.util
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from PIL import Image

from conftest import ROOT
from encoders import audioclip, imagebind, prepare_images, wav2clip
from media import normalise

FOLDER = Path(os.environ.get('ACL_GOLDEN_ENCODERS') or ROOT / 'tests/golden/encoders')
EXACT, FLOAT32, MEL = 1e-6, 1e-4, 5e-4
SOUNDS = {torch.float64: EXACT, torch.float32: 2 * FLOAT32}     # of AudioCLIP
KINDS = {'wav2clip': wav2clip.WAV2CLIP, 'audioclip': audioclip.AudioCLIP,
         'imagebind': imagebind.ImageBind}
SMALL = {'wav2clip': dict(widths=(4, 6, 8, 10), blocks=(1, 2, 1, 1), hidden=12, dim=5),
         'audioclip': dict(dim=6, stem=4, inner=8, groups=2, blocks=(2, 1, 1, 1), image_stem=4,
                           image_blocks=(1, 2, 1, 1), image_heads=2, image_size=64),
         'imagebind': dict(dim=6, audio_width=8, audio_layers=2, audio_heads=2, vision_width=12,
                           vision_layers=1, vision_heads=3, image_size=28, patch=7)}
HEADS = {'wav2clip': {}, 'audioclip': {'image_heads': 2},
         'imagebind': {'audio_heads': 2, 'vision_heads': 3}}


# ---- The golden files ----------------------------------------------------------------------------

def kept(name):
    """The entries that golden_weights.py leaves as the original code builds them."""
    n = torch.arange(1654, dtype=torch.float64) / 1654
    terms = enumerate((0.35875, -0.48829, 0.14128, -0.01168))
    return {'audio_encoder.spectrogram.window': torch.hann_window(512),
            'audio.window': sum(a * torch.cos(2 * math.pi * k * n) for k, a in terms).float(),
            'audio.fbsp.m': torch.zeros(1025), 'audio.fbsp.fb': torch.ones(1025),
            'audio.fbsp.fc': torch.arange(1025).float(),
            'modality_postprocessors.audio.1.log_logit_scale': torch.tensor(math.log(20)),
            }.get(name, torch.zeros(()))        # the rest is not used here


class Golden:
    """The golden files of one encoder, and the encoder with the weights of their rule."""

    def __init__(self, encoder):
        spec = importlib.util.spec_from_file_location('rule', FOLDER / 'golden_weights.py')
        self.rule = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.rule)
        config = json.loads((FOLDER / 'config.json').read_text(encoding='utf-8'))
        self.seed, self.config = config['seed'], config[encoder]
        self.file = np.load(FOLDER / f'{encoder}.npz')
        self.entries = {}
        for name, (shape, _) in self.config['state_dict'].items():
            skipped = encoder == 'audioclip' and not name.startswith(('audio.', 'visual.'))
            made = None if skipped else self.rule.weight(name, shape, self.seed)
            self.entries[name] = kept(name) if made is None else torch.from_numpy(made)
        heads = {}
        if encoder == 'imagebind':
            sizes = self.config['sizes']
            heads = {f'{tower}_heads': sizes[f'{tower}_num_heads'] for tower in ('audio', 'vision')}
        self.model = KINDS[encoder].from_checkpoint(self.entries, **heads)

    def use(self, dtype):
        """Compute in this precision from now on."""
        self.dtype = dtype
        self.model.to(dtype)
        return self

    def wav(self, name='input_wav_int16'):
        """-> (samples,) in -1..1"""
        return torch.from_numpy(self.file[name]).to(self.dtype) / 32768

    def image(self):
        """-> (1, 3, 224, 224), normalised"""
        return torch.from_numpy(self.rule.clip_normalise(self.file['input_image_uint8']))

    def check(self, name, ours, tolerance=None):
        """Relative L2 distance to the array, in float64 to X__f64 if there is one."""
        exact = self.dtype == torch.float64 and f'{name}__f64' in self.file.files
        if tolerance is None:
            tolerance = EXACT if exact else FLOAT32
        theirs = torch.from_numpy(self.file[f'{name}__f64' if exact else name]).double()
        assert tuple(ours.shape) == tuple(theirs.shape), name
        distance = (ours.double() - theirs).norm() / theirs.norm()
        assert distance < tolerance, f'{name}, {self.dtype}: {distance:.1e}'


@pytest.fixture(scope='module', params=[torch.float64, torch.float32], ids=['float64', 'float32'])
def precision(request):
    return request.param


golden_of = functools.cache(Golden)     # a name, as of KINDS -> its Golden


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def outputs_of(modules, run):
    """What each module of a dict gives while run() runs, by the dict's names; `of <name>`: gets."""
    seen = {}
    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            def keep(module, inputs, output, name=name):
                seen.update({name: output, f'of {name}': inputs[0]})
            hooks.callback(module.register_forward_hook(keep).remove)
        run()
    return seen


# ---- WAV2CLIP ------------------------------------------------------------------------------------

def test_wav2clip_embeds_sounds_of_any_length(precision):
    golden = golden_of('wav2clip').use(precision)
    for seconds in (2, 5, 10):
        sound = wav2clip.prepare_audio(golden.wav()[:16_000 * seconds])
        golden.check(f'embedding_{seconds}s', golden.model.embed_audio(sound))


def standardised_together(model, wav):
    """As the released code does it: by the mean and deviation of the batch."""
    return model.embed_spectrogram(wav2clip.standardise(model.audio_encoder.spectrogram(wav)))


def test_wav2clip_standardises_over_the_batch_as_released_or_each_sound_by_itself(precision):
    golden = golden_of('wav2clip').use(precision)
    second = golden.wav('input_second_wav_int16')
    both = torch.stack([golden.wav()[:len(second)], second])
    golden.check('embedding_5s_batch_of_two', standardised_together(golden.model, both))
    frames = both[0].view(5, -1)
    golden.check('embedding_frames_1s_of_5s', standardised_together(golden.model, frames))
    alone = golden.model.embed_audio(both)
    golden.check('embedding_5s', alone[:1])
    golden.check('embedding_5s_second_alone', alone[1:])


def test_wav2clip_between_the_spectrogram_and_the_embedding(precision):
    golden = golden_of('wav2clip').use(precision)
    net = golden.model.audio_encoder
    wav = golden.wav()[None]
    power = net.spectrogram(wav[:, :32_000])
    golden.check('log_power_2s', power[0])
    golden.check('log_power_2s_mean_std', torch.stack([power.mean(), power.std()]))
    seen = outputs_of({'stem': net.maxpool, 'layer2': net.layer2, 'layer4': net.layer4,
                       'pooled': net}, lambda: golden.model.embed_audio(wav[:, :32_000]))
    golden.check('stem_2s', seen['stem'][0, ::2, ::2, ::2])
    golden.check('layer2_2s', seen['layer2'][0, ::4, ::2])
    golden.check('layer4_2s', seen['layer4'][0])
    golden.check('pooled_2s', seen['pooled'])
    for seconds in (5, 10):
        x = wav2clip.standardise(net.spectrogram(wav[:, :16_000 * seconds]))
        golden.check(f'norm_spec_{seconds}s_sub', x[0, ::8, ::8])
        golden.check(f'pooled_{seconds}s', net(x))


# ---- AudioCLIP -----------------------------------------------------------------------------------

def sound_of(golden):
    """-> (1, 1, 220500)"""
    return audioclip.prepare_audio(golden.wav(), rate=44_100)


def test_audioclip_hears_sixteen_bit_amplitudes(precision):
    golden = golden_of('audioclip').use(precision)
    sound = sound_of(golden)
    assert torch.equal(sound[0, 0], golden.wav() * 32768)
    spectrogram = golden.model.audio.spectrogram(sound[0])[0]
    golden.check('spec_db_sub', spectrogram[:, ::8, ::8])
    golden.check('spec_db_mean_std', torch.stack([spectrogram.mean(), spectrogram.std()]))
    rows = golden.model.audio.fbsp.kernel()[[0, 1, 2, 341, 682, 1024], ::16]
    golden.check('fbsp_kernel_rows', torch.view_as_real(rows))


def test_audioclip_embeds_sounds(precision):
    golden = golden_of('audioclip').use(precision)
    net = golden.model.audio
    modules = {'stem': net.maxpool, 'layer1': net.layer1, 'att1': net.att1, 'layer4': net.layer4,
               'att4': net.att4, 'att5': net.att5, 'fc': net.fc}
    seen = outputs_of(modules, lambda: golden.model.embed_audio(sound_of(golden)))
    golden.check('audio_embedding', seen['fc'], SOUNDS[precision])
    unit = torch.nn.functional.normalize(seen['fc'])
    golden.check('audio_embedding_unit_norm', unit, SOUNDS[precision])
    golden.check('stem_sub', seen['stem'][0, ::8, ::4, ::4])
    golden.check('layer1_att1_sub', (seen['layer1'] * seen['att1'])[0, ::16, ::6, ::6])
    golden.check('att1_sub', seen['att1'][0, ::16, ::6, ::6])
    if precision == torch.float64:      # in float32 single values of this map differ
        golden.check('layer4_att4_sub', (seen['layer4'] * seen['att4'])[0, ::32])
    golden.check('att5', seen['att5'].flatten())
    golden.check('before_fc', seen['of fc'], SOUNDS[precision])


def test_audioclip_embeds_short_stereo_padded_and_unscaled_sounds():
    golden = golden_of('audioclip').use(torch.float64)
    embed, sound = golden.model.embed_audio, sound_of(golden)
    golden.check('audio_embedding_3s_not_padded', embed(sound[..., :132_300]))
    golden.check('audio_embedding_stereo', embed(torch.cat([sound, sound.flip(2)], 1)))
    padded = audioclip.prepare_audio(golden.wav()[:132_300], rate=44_100)
    golden.check('illcond_audio_embedding_3s_padded', embed(padded))
    golden.check('illcond_audio_embedding_unit_scale_input', embed(sound / 32768))


def test_audioclip_uses_the_filters_of_its_checkpoint(precision):
    golden = golden_of('audioclip').use(precision)
    m, fb, fc = golden.rule.fbsp_variant(golden.seed)
    other = {'audio.fbsp.m': m, 'audio.fbsp.fb': fb, 'audio.fbsp.fc': fc}
    before = {name: golden.entries[name] for name in other}
    load = golden.model.load_state_dict
    load({name: torch.from_numpy(value) for name, value in other.items()}, strict=False)
    rows = golden.model.audio.fbsp.kernel()[[0, 1, 2, 341, 682, 1024], ::16]
    seen = outputs_of({'stem': golden.model.audio.conv1, 'net': golden.model.audio},
                      lambda: golden.model.embed_audio(sound_of(golden)))
    load(before, strict=False)
    golden.check('fbsp_variant_kernel_rows', torch.view_as_real(rows))
    golden.check('fbsp_variant_spec_db_sub', seen['of stem'][0, :, ::8, ::8])
    golden.check('fbsp_variant_audio_embedding', seen['net'], SOUNDS[precision])


def test_audioclip_embeds_images(precision):
    golden = golden_of('audioclip').use(precision)
    image = prepare_images([Image.fromarray(golden.file['input_image_uint8'])])
    assert (image - golden.image()).abs().max() < EXACT
    net = golden.model.visual
    modules = {'stem': net.avgpool, 'layer1': net.layer1, 'layer4': net.layer4, 'image': net}
    seen = outputs_of(modules, lambda: golden.model.embed_image(image.to(precision)))
    golden.check('image_embedding', seen['image'])
    golden.check('image_stem_sub', seen['stem'][0, ::4, ::4, ::4])
    golden.check('image_layer1_sub', seen['layer1'][0, ::16, ::4, ::4])
    golden.check('image_layer4_sub', seen['layer4'][0, ::16])


def test_audioclip_hears_the_middle_five_seconds_or_where_the_sound_is():
    noise = torch.rand(441_001, generator=torch.Generator().manual_seed(0)) - 0.5
    middle = audioclip.prepare_audio(noise, rate=44_100)[0, 0] / 32768
    assert torch.equal(middle, noise[110_250:330_750])
    for loud, part in ((slice(0, 100_000), slice(0, 220_500)),
                       (slice(-100_000, None), slice(-220_500, None))):
        wav = torch.zeros(441_001)
        wav[loud] = noise[loud]
        heard = audioclip.prepare_audio(wav, rate=44_100)[0, 0] / 32768
        assert torch.equal(heard, wav[part])
    assert audioclip.prepare_audio(torch.zeros(160_000)).shape == (1, 1, 220_500)


# ---- ImageBind -----------------------------------------------------------------------------------

def check_mel(golden, name, clips, step):
    """Largest difference of prepare_audio's output to the golden mel, read at every step."""
    theirs = torch.from_numpy(golden.file[name])
    assert (clips[0, :, 0, ::step, ::step] - theirs).abs().max() < MEL, name


def test_imagebind_embeds_sounds(precision):
    golden = golden_of('imagebind').use(precision)
    clips = imagebind.prepare_audio(golden.wav())
    check_mel(golden, 'mel', clips, 1)
    model = golden.model
    tokens, trunk = model.modality_preprocessors['audio'], model.modality_trunks['audio']
    modules = {'stem': tokens.rgbt_stem['norm_layer'], 'tokens': tokens, 'block': trunk.blocks[0],
               'trunk': trunk, 'head': model.modality_heads['audio'],
               'clips': model.modality_postprocessors['audio']}
    seen = outputs_of(modules, lambda: golden.check('audio_embedding', model.embed_audio(clips)))
    golden.check('audio_embedding_per_clip', seen['clips'])
    golden.check('audio_stem', seen['stem'][:, ::4])
    golden.check('audio_tokens_sub', seen['tokens'][:, ::8])
    golden.check('audio_block0_sub', seen['block'][:, ::8])
    golden.check('audio_trunk_cls', seen['trunk'][:, 0])
    golden.check('audio_head', seen['head'])


def test_imagebind_hears_short_stereo_and_resampled_sounds(precision):
    golden = golden_of('imagebind').use(precision)
    wav = golden.wav()
    for seconds in (1, 3):      # clips of 3 s overlap
        clips = imagebind.prepare_audio(wav[:16_000 * seconds])
        check_mel(golden, f'mel_{seconds}s_sub', clips, 4)
        golden.check(f'audio_embedding_{seconds}s', golden.model.embed_audio(clips))
    stereo = torch.stack([wav, 0.5 * wav.flip(0) + 0.05])
    check_mel(golden, 'mel_stereo_sub', imagebind.prepare_audio(stereo), 4)
    slow = torchaudio.functional.resample(wav, 44_100, 16_000)
    check_mel(golden, 'mel_44k_as_input_sub', imagebind.prepare_audio(slow), 4)
    assert torch.equal(wav, golden.wav())       # not changed in place


def test_imagebind_embeds_images(precision):
    golden = golden_of('imagebind').use(precision)
    image = prepare_images([Image.fromarray(golden.file['input_image_uint8'])])
    assert (image - golden.image()).abs().max() < EXACT
    model = golden.model
    tokens, trunk = model.modality_preprocessors['vision'], model.modality_trunks['vision']
    modules = {'stem': tokens.rgbt_stem['proj'], 'tokens': tokens, 'trunk': trunk,
               'norm': trunk.pre_transformer_layer, 'head': model.modality_heads['vision']}
    seen = outputs_of(modules, lambda: golden.check('vision_embedding',
                                                    model.embed_image(image.to(precision))))
    golden.check('vision_stem_sub', seen['stem'].flatten(2)[0].T[::4])
    golden.check('vision_tokens_sub', seen['tokens'][0, ::4])
    golden.check('vision_pre_ln_sub', seen['norm'][0, ::4])
    golden.check('vision_trunk_cls', seen['trunk'][:, 0])
    golden.check('vision_head', seen['head'])


def test_imagebind_cuts_the_middle_out_of_an_image(precision):
    golden = golden_of('imagebind').use(precision)
    image = prepare_images([Image.fromarray(golden.file['input_rect_image_uint8'])])
    theirs = torch.from_numpy(golden.file['rect_image_tensor_sub'])
    assert (image[0, :, ::4, ::4] - theirs).abs().max() < EXACT
    golden.check('rect_vision_embedding', golden.model.embed_image(image.to(precision)))


def test_the_shorter_side_is_resized_the_longer_one_rounded_down_and_cut_to_its_middle():
    pixels = np.random.default_rng(0).integers(0, 256, (41, 30, 3), np.uint8)
    picture = Image.fromarray(pixels)
    resized = picture.resize((24, 32), Image.Resampling.BICUBIC)        # 24 * 41 / 30 = 32.8
    assert torch.equal(prepare_images([picture], 24)[0], normalise(resized.crop((0, 4, 24, 28))))


def test_an_image_of_any_mode_is_prepared_as_its_colours():
    picture = Image.linear_gradient('L').crop((0, 0, 40, 30))
    expected = prepare_images([picture.convert('RGB')], 24)
    for mode in ('L', 'P'):
        assert torch.equal(prepare_images([picture.convert(mode)], 24), expected), mode


def test_the_default_imagebind_has_the_names_and_shapes_of_imagebind_huge():
    with torch.device('meta'):
        ours = imagebind.ImageBind().state_dict()
    config = (ROOT / 'tests/golden/encoders/config.json').read_text(encoding='utf-8')
    huge = json.loads(config)['imagebind']['huge_state_dict']
    released = {name: huge[name] for name in huge if name.startswith(imagebind.USED)}
    assert {name: list(value.shape) for name, value in ours.items()} == released


@pytest.mark.parametrize('encoder', KINDS)
def test_every_golden_array_is_compared(encoder):
    text = Path(__file__).read_text(encoding='utf-8')
    arrays = {name.removesuffix('__f64') for name in np.load(FOLDER / f'{encoder}.npz').files}
    written = {name.replace('{seconds}', number) for number in ('1', '2', '3', '5', '10')
               for name in text.split("'")}
    assert arrays <= written, arrays - written


# ---- Other sizes ---------------------------------------------------------------------------------

def small(encoder):
    torch.manual_seed(0)
    return KINDS[encoder](**SMALL[encoder]).eval()


def save(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize('encoder', KINDS)
def test_sizes_are_read_from_the_shapes(encoder, tmp_path):
    model = small(encoder)
    path = save(tmp_path / 'small.pt', {**model.state_dict(), 'logit_scale': torch.zeros(()),
                                        'another.tower': 7})
    again = KINDS[encoder].from_checkpoint(path, **HEADS[encoder])
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    wav = torch.randn(16_000, generator=torch.Generator().manual_seed(1)) * 0.1
    module = {'wav2clip': wav2clip, 'audioclip': audioclip, 'imagebind': imagebind}[encoder]
    sound = module.prepare_audio(wav)
    both = torch.cat([sound, sound.flip(-1)])
    assert again.embed_audio(both).shape == (2, SMALL[encoder]['dim'])
    assert torch.equal(again.embed_audio(both), model.embed_audio(both))
    if encoder != 'wav2clip':
        images = [Image.new('RGB', (90, 40), 'red'), Image.new('RGB', (3, 50), 'blue')]
        crops = prepare_images(images, again.image_size)
        assert again.embed_image(crops).shape == (2, SMALL[encoder]['dim'])
        assert torch.equal(again.embed_image(crops), model.embed_image(crops))


def test_a_checkpoint_in_half_precision_becomes_float32(tmp_path):
    halves = {name: value.half() for name, value in small('wav2clip').state_dict().items()}
    model = wav2clip.WAV2CLIP.from_checkpoint(save(tmp_path / 'half.pt', halves))
    assert {value.dtype for value in model.parameters()} == {torch.float32}


# ---- Bad input -----------------------------------------------------------------------------------

def sentence(encoder, path, **heads):
    """The one sentence that from_checkpoint raises."""
    with pytest.raises((ValueError, OSError)) as error:
        KINDS[encoder].from_checkpoint(path, **heads)
    said = str(error.value)
    assert said.startswith(('there is no file ', str(path))) and '\n' not in said
    assert 'download ' in said and len(said) < 400, said
    return said


@pytest.mark.parametrize('encoder, other', [('wav2clip', 'audioclip'), ('audioclip', 'imagebind'),
                                            ('imagebind', 'wav2clip')])
def test_a_checkpoint_of_another_encoder_is_named(encoder, other, tmp_path):
    path = save(tmp_path / 'other.pt', small(other).state_dict())
    said = sentence(encoder, path)
    assert f'is no checkpoint of {KINDS[encoder].__name__} (it has no entry ' in said


@pytest.mark.parametrize('encoder', KINDS)
def test_missing_and_truncated_files_and_other_contents_are_named(encoder, tmp_path):
    assert 'there is no file' in sentence(encoder, tmp_path / 'absent.pt')
    path = save(tmp_path / 'a.pt', small(encoder).state_dict())
    complete = path.read_bytes()
    for content in (complete[:len(complete) // 2], complete[:20], b'', b'<html>not found</html>'):
        path.write_bytes(content)
        assert 'it is damaged or of another format' in sentence(encoder, path)
    assert 'a list where a dict' in sentence(encoder, save(path, [1, 2]))


class Runs:
    def __reduce__(self):
        return os.mkdir, ('the_pickle_ran',)


@pytest.mark.parametrize('writer', [torch.save, lambda content, path: path.write_bytes(
    pickle.dumps(content, protocol=2))], ids=['torch.save', 'pickle'])
def test_a_pickle_that_would_run_code_is_refused(writer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer({'audio_encoder.conv1.weight': Runs()}, tmp_path / 'a.pt')
    assert 'could run code' in sentence('wav2clip', tmp_path / 'a.pt')
    assert not (tmp_path / 'the_pickle_ran').exists()


def test_entries_that_do_not_fit_are_named(tmp_path):
    weights = small('imagebind').state_dict()
    block, heads = 'modality_trunks.audio.blocks.1.', HEADS['imagebind']
    name = f'{block}mlp.fc1.bias'
    for wrong, reason in (
            ({name: torch.zeros(3)}, f'size mismatch for {name}: '),
            ({f'{block}extra': torch.zeros(3)}, f'Unexpected key(s) in state_dict: "{block}extra"'),
            ({name: 'text'}, f'Missing key(s) in state_dict: "{name}"'),
            ({name: torch.full((32,), torch.nan)}, f'{name} holds values that are not numbers'),
            ({'modality_heads.vision.2.weight': torch.zeros(6)}, 'has the shape (6,)')):
        assert reason in sentence('imagebind', save(tmp_path / 'a.pt', {**weights, **wrong}),
                                  **heads)
    mean = 'audio_encoder.layer1.0.bn1.running_mean'        # a buffer, no parameter
    broken = {**small('wav2clip').state_dict(), mean: torch.full((4,), torch.nan)}
    assert f'{mean} holds values that are not numbers' in sentence(
        'wav2clip', save(tmp_path / 'a.pt', broken))
    without = {key: value for key, value in weights.items() if '.audio.blocks.' not in key}
    assert 'no entries modality_trunks.audio.blocks' in sentence(
        'imagebind', save(tmp_path / 'a.pt', without), **heads)
    assert 'a width of 8 does not divide into 12 heads' in sentence(
        'imagebind', save(tmp_path / 'a.pt', weights))
    assert 'a width of 128 does not divide into 48 heads' in sentence(
        'audioclip', save(tmp_path / 'a.pt', small('audioclip').state_dict()), image_heads=48)


def test_a_sound_shorter_than_a_frame_is_named():
    with pytest.raises(ValueError, match='399 samples is shorter than one frame'):
        imagebind.prepare_audio(torch.zeros(399))
