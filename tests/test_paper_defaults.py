"""What the paper and the release name, by value and where it is used.

Every value is written here by hand: none is read off the code under test.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import beats
from speed import bench
import benchmarks
import captions
import data
import evaluate
import heldout
import localise
import losses
import masks
import media
import metrics
import model
import train
from benchmarks.lists import BenchmarkSample

SIGMOID = lambda x: 1 / (1 + math.exp(-x))


# ---- training, section 4.1 and Eq. 5

# option: the paper's value (sections 4.1 and 3.4, or the released code), the miniature's
TRAINING = {
    'epochs': (20, None), 'batch_size': (16, 8), 'lr': (1e-4, 2e-3), 'weight_decay': (1e-4, 1e-4),
    'steps': (None, 400), 'lr_schedule': ('constant', 'linear'), 'save_seconds': (600, 10),
    'workers': (8, 0),
    'data_root': (str(model.ROOT / 'data'), str(model.ROOT / 'data/miniature'))}
SHARED = {
    'tau': 0.07, 'lambda_i': 1, 'lambda_f': 1, 'lambda_reg': 1, 'p_pos': 0.4, 'p_neg': 0,
    'audio_tokens': 1, 'prompt': 'A photo of a <*>', 'area': 'release', 'acl_f': 'paper',
    'image_mask': 'hard', 'feature_mask': 'feature', 'negatives': 'local', 'seed': 0,
    'captions_from': 'both', 'same_answers': 'negatives', 'accumulate': 1, 'precision': 'float32',
    'variant': 'av', 'cache_audio': None, 'cache_share': 1, 'pair_chunk': None,
    'skip_bad_samples': False, 'resume': False, 'overwrite': False, 'device': None,
    'clipseg': None, 'beats': None, 'captions': None, 'lambda_c': 0}


@pytest.mark.parametrize('preset, column', [('paper', 0), ('miniature', 1)])
def test_training_begins_with_the_paper_s_settings(preset, column):
    args = vars(train.parse_args(['--preset', preset]))
    expected = {name: values[column] for name, values in TRAINING.items()} | SHARED
    assert {name: args[name] for name in expected} == expected
    assert args['out'] == Path(f'runs/{preset}-av-seed0')


def test_the_caption_term_is_eq_7_s_alone_with_lambda_1():
    both = train.parse_args(['--variant', 'av_llm'])
    assert [both.lambda_i, both.lambda_f, both.lambda_reg, both.lambda_c] == [1, 1, 1, 1]
    assert both.same_answers == 'negatives' and both.out == Path('runs/miniature-av_llm-seed0')
    assert train.parse_args([]).preset == 'miniature'


def test_the_terms_are_taken_at_temperature_0_07_and_priors_0_4_and_0():
    v_I = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    areas = torch.tensor([[0.5, 0.1], [0.3, 0.5]])          # |0.5 - 0.4| + (0.1 + 0.3) / 2^2
    out = model.Alignment(A=torch.eye(2), M_G=None, areas=areas, M_I=None, v_I=v_I,
                          M_F=torch.ones(2, 2, 1, 1), v_D=v_I.view(2, 2, 1, 1))
    terms = losses.loss_terms(out)
    nce = lambda right, wrong: math.log1p(math.exp((wrong - right) / 0.07))
    eq1 = (nce(1, 0) + nce(0.8, 0.6) + nce(1, 0.6) + nce(0.8, 0)) / 4   # S = [[1, 0], [0.6, 0.8]]
    assert terms['acl_i'].item() == pytest.approx(eq1, rel=1e-5)
    assert terms['acl_f'].item() == pytest.approx(eq1, rel=1e-5)    # masks of ones: v_F is v_D
    assert terms['reg'].item() == pytest.approx(0.2, rel=1e-5)
    for alone in (losses.acl_i(v_I, torch.eye(2)), losses.acl_c(v_I, torch.eye(2))):
        assert alone.item() == pytest.approx(eq1, rel=1e-5)
    assert losses.area_regulariser(areas).item() == pytest.approx(0.2, rel=1e-5)


def test_dropout_of_a_half_lies_in_the_unary_potential_and_only_in_training():
    potential = model.UnaryPotential(3000, 3000)        # returns what the dropout leaves of ones
    for layer, weight, bias in ((potential.embed, torch.zeros(3000, 3000), 1.0),
                                (potential.feature_reduce, torch.eye(3000), 0.0)):
        layer.weight.data.copy_(weight.unsqueeze(-1))
        layer.bias.data.fill_(bias)
    ones = torch.ones(1, 3000, 1)
    kept = potential.train()(ones)
    assert set(kept.unique().tolist()) == {0, 2} and kept.mean().item() == pytest.approx(1, abs=0.1)
    assert potential.eval()(ones).unique().tolist() == [1]


def test_a_training_pass_is_random_by_its_dropout_and_an_evaluation_is_not():
    torch.manual_seed(0)
    tokenizer, features = model.AudioProjection(12, 8), torch.randn(2, 5, 12)
    assert not torch.equal(tokenizer.train()(features), tokenizer(features))
    assert torch.equal(tokenizer.eval()(features), tokenizer(features))


# ---- masks (released code)

def test_mask_gen_i_begins_at_w_10_b_14_and_temperature_1():
    generator = masks.MaskGenI()
    M_G = torch.tensor([-1.37], requires_grad=True)                 # 10 M_G + 14 = 0.3
    generator(M_G, torch.tensor([0.5])).sum().backward()            # u = 0.5 is no noise
    p = SIGMOID(0.3)
    assert M_G.grad.item() == pytest.approx(10 * p * (1 - p), rel=1e-3)
    assert generator.b.grad.item() == pytest.approx(p * (1 - p), rel=1e-3)
    heat = generator.inference(torch.tensor([-1.4, -0.4]))
    assert heat.tolist() == pytest.approx([0.5, SIGMOID(1)])


def test_mask_gen_f_s_soft_threshold_is_0_5_and_its_temperature_0_07():
    M_G = torch.tensor([[[[-3.0, 1.0], [-1.2, -0.8]]]])             # stretched: 0, 1, 0.45, 0.55
    expected = [SIGMOID(x / 0.07) for x in (-0.5, 0.5, -0.05, 0.05)]
    assert masks.mask_gen_f(M_G, (2, 2)).flatten().tolist() == pytest.approx(expected, abs=1e-4)


# ---- the backbones

def test_the_presets_load_the_paper_s_backbones_and_the_miniature_s(monkeypatch):
    root, asked = Path(model.__file__).parent, []
    tiny = model.load_clipseg(root / 'miniature/weights/clipseg')
    ears = beats.load_beats(root / 'miniature/weights/beats.pt')
    monkeypatch.setattr(model, 'load_clipseg', lambda name: asked.append(name) or tiny)
    monkeypatch.setattr(model, 'load_beats', lambda path: asked.append(path) or ears)
    for preset, w, b in (('paper', 10, 14), ('miniature', 1, 1.4)):
        localizer, tokenizer = model.load_model(preset)
        assert (localizer.masker_i.w.item(), localizer.masker_i.b.item()) == (w, pytest.approx(b))
        assert localizer.prompt_before.tolist() == tokenizer('A photo of a').input_ids[:-1]
        assert len(localizer.prompt_after) == 1
    assert asked == ['CIDAS/clipseg-rd64-refined',
                     str(root / 'weights/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt'),
                     str(root / 'miniature/weights/clipseg'),
                     str(root / 'miniature/weights/beats.pt')]
    sizes = {name: (p.image_size, p.seconds, p.data_root) for name, p in model.PRESETS.items()}
    assert sizes == {'paper': (352, 10, str(root / 'data')),
                     'miniature': (96, 2, str(root / 'data/miniature'))}


def test_the_oracle_s_text_is_a_photo_of_a_class():
    localizer, tokenizer = model.load_model('miniature')
    text = tokenizer('A photo of a dog', return_tensors='pt')
    expected = localizer.clipseg.clip.get_text_features(**text).pooler_output
    assert torch.allclose(localizer.embed_text(tokenizer, ['dog']), expected, atol=1e-6)
    assert model.RELEASE_PROMPT == 'A photo of <*>'


def test_the_filterbank_is_centred_on_audioset_and_divided_by_two_deviations():
    silence = beats.fbank(torch.zeros(1, 16_000))           # log of float32's epsilon everywhere
    assert silence.shape == (1, 98, 128)
    expected = (math.log(2**-23) - 15.41663) / (2 * 6.55582)
    assert silence.unique().item() == pytest.approx(expected, rel=1e-5)


def test_beats_is_the_base_model_and_speaks_by_layers_4_8_and_12():
    config = beats.BEATsConfig()
    expected = dict(encoder_layers=12, encoder_embed_dim=768, encoder_ffn_embed_dim=3072,
                    encoder_attention_heads=12, embed_dim=512, input_patch_size=16, conv_pos=128,
                    conv_pos_groups=16, num_buckets=320, max_distance=800, predictor_class=527,
                    conv_bias=False)
    assert {name: getattr(config, name) for name in expected} == expected
    with torch.device('meta'):
        encoder = beats.BEATs(config)
    assert encoder.feature_layers == (4, 8, 12) and encoder.feature_dim == 2304


def test_the_speed_section_measures_clipseg_with_vit_b_16_and_layers_3_6_9(monkeypatch):
    built = {}
    keep = lambda clipseg, ears: built.update(c=clipseg, b=ears) or torch.nn.Module()
    monkeypatch.setattr(bench, 'random_model', keep)
    bench.build('paper')
    vision = built['c'].vision_config
    assert (vision.patch_size, vision.num_hidden_layers, vision.hidden_size) == (16, 12, 768)
    assert built['c'].extract_layers == [3, 6, 9] and built['c'].reduce_dim == 64
    assert built['c'].use_complex_transposed_convolution and built['b'] == beats.BEATsConfig()


# ---- frames and sounds (released code)

def recorded(monkeypatch, name):
    """The arguments of every call of a method of PIL's images."""
    calls, method = [], getattr(Image.Image, name)
    keep = lambda self, *given: calls.append(given) or method(self, *given)
    monkeypatch.setattr(Image.Image, name, keep)
    return calls


def test_pixels_are_normalised_as_clip_s_own_processor_does():
    colours = np.array([[[0, 128, 255], [255, 0, 64]]], np.uint8)
    expected = (colours / 255 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    assert np.allclose(media.normalise(colours).permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_evaluation_squashes_the_frame_bicubic_without_a_crop(monkeypatch):
    resized, cropped = recorded(monkeypatch, 'resize'), recorded(monkeypatch, 'crop')
    frame = Image.new('RGB', (64, 36), (255, 0, 64))
    pixel = media.evaluation_image(frame, 352)[:, 100, 7]
    expected = (np.array([1, 0, 64 / 255]) - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD
    assert pixel.tolist() == pytest.approx(expected, abs=1e-5)
    assert resized == [((352, 352), Image.Resampling.BICUBIC)] and not cropped


def test_training_frames_are_resized_to_1_1_cropped_anywhere_and_half_are_flipped(monkeypatch):
    resized, cropped, flipped = (recorded(monkeypatch, name)
                                 for name in ('resize', 'crop', 'transpose'))
    frame = Image.new('RGB', (640, 360))
    generator = torch.Generator().manual_seed(0)
    assert media.training_image(frame, 352, generator).shape == (3, 352, 352)
    assert resized == [((387, 387), Image.Resampling.BICUBIC)]      # int(387.2)
    cropped.clear(), flipped.clear()
    for _ in range(400):
        media.training_image(frame.reduce(20), 20, generator)     # 22 x 22: three places each way
    assert {(x1 - x0, y1 - y0) for (x0, y0, x1, y1), in cropped} == {(20, 20)}
    assert {box[:2] for box, in cropped} == {(x, y) for x in range(3) for y in range(3)}
    assert 160 < len(flipped) < 240 and set(flipped) == {(Image.Transpose.FLIP_LEFT_RIGHT,)}


def test_sizes_rates_and_gains(tmp_path):
    assert (media.SAMPLE_RATE, data.SAMPLE_RATE, beats.SAMPLE_RATE) == (16_000,) * 3
    assert media.box_map([[0, 0, 1, 1]]).shape == (224, 224) and media.GROUND_TRUTH_SIZE == 224
    assert localise.SIZE == (224, 224) and localise.PAIR_SIZE == (224, 448)
    assert media.side_by_side([Image.new('RGB', (9, 7))] * 2).size == (448, 224)
    assert data.MIX_GAIN == 0.5


# ---- evaluation, section 4.2

def test_each_table_has_its_benchmarks():
    assert {task: tuple(metrics) for task, metrics in evaluate.TASKS.items()} == {      # Tables
        'single': ('vggss', 'flickr', 'is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'ade20k'),   # 1, 2
        'segmentation': ('is4', 'vpo_ss', 'vpo_ms', 'avs_s4', 'avs_ms3', 'ade20k'),     # 6
        'robustness': ('ext_vggss', 'ext_flickr', 'robust_s4', 'robust_ms3'),           # 3 to 5
        'interactive': ('is4', 'vpo_ms'),                                               # 7
        'multisource': ('vgg_instruments', 'vgg_duet')}                                 # 8
    assert list(evaluate.TASKS['robustness'].values()) == (
        2 * [metrics.Extended] + 2 * [metrics.Robustness])
    assert set(evaluate.ORACLE_TASKS) == {'single', 'segmentation', 'interactive'}


def test_maps_are_cut_at_one_half_unless_asked_otherwise():
    assert evaluate.parse_args([]).threshold == 'fixed:0.5'
    heat = torch.full((1, 4, 4), 0.49)
    heat[0, :2, :2] = 0.51
    truth = torch.zeros(1, 4, 4)
    truth[0, :2, :2] = 1
    for meter, score in ((metrics.SingleSource(), 'cIoU'), (metrics.Segmentation(), 'mIoU')):
        meter.update(heat, truth)
        assert meter.compute()[score] == 100
    robust = metrics.Robustness()
    robust.update(heat, truth, ['silence'])
    assert robust.compute()['FPR_silence'] == 0.25


def test_the_sweep_is_of_19_thresholds_f_s_of_255_and_auc_s_of_21():
    heat = torch.tensor([[[0.06, 0.12], [0.92, 0.97]]])
    sweep = metrics.Segmentation('sweep')
    sweep.update(heat, torch.ones_like(heat))
    shares = [sum(v > t / 20 for v in (0.06, 0.12, 0.92, 0.97)) / 4 for t in range(1, 20)]
    assert sweep.iou[0] == pytest.approx(shares)
    assert len(metrics.F_THRESHOLDS) == len(sweep.f_curve()) == 255
    assert metrics.F_THRESHOLDS[[0, 1, -1]].tolist() == pytest.approx([0, 1 / 254, 1], abs=1e-6)
    assert metrics.AUC_POINTS.tolist() == pytest.approx([k / 20 for k in range(21)])


def test_f_weighs_precision_by_beta_squared_0_3():
    one = lambda value: torch.tensor([[float(value)]])
    found = metrics.f_score(one(1), one(1), one(4)).item()          # precision 1/2, recall 1/4
    assert found == pytest.approx(1.3 * 0.5 * 0.25 / (0.3 * 0.5 + 0.25))


def test_the_robust_sets_draw_from_seed_42(tmp_path):
    expected = np.random.default_rng((42, 5)).uniform(-1, 1, 9)
    assert media.noise(5, 9).tolist() == pytest.approx(expected, abs=1e-6)
    names = ['violin', 'dog', 'man', 'helicopter', 'zither', 'rain']    # six categories
    clips = [BenchmarkSample(name, [], [Path(f'{name}.wav')], name, None)
             for name in names]
    partners = [s.sounds[0].stem for s in benchmarks.avsbench.with_negatives(clips)[18:]]
    others = [[other for other in names if other != name] for name in names]
    drawn = [np.random.default_rng((42, k)).integers(5) for k in range(6)]
    assert partners == [pool[k] for pool, k in zip(others, drawn)]


def test_held_out_noise_is_that_of_the_robust_sets_and_silence_is_silent(small_world, monkeypatch):
    heard = []

    def localise(_, samples, words, known):
        heard.extend((s['id'], s['condition'], s['wav']) for s in samples)
        return {'ours': [torch.zeros(224, 224)] * len(samples)}
    monkeypatch.setattr(heldout, 'embed_names', lambda *_: {})
    monkeypatch.setattr(heldout, 'localise', localise)
    heldout.held_out(None, None, 'miniature', small_world)
    listed = [s.id for s in data.Benchmark('vggss', small_world, 96, 2.0).samples]
    for name, condition, wav in heard:
        if condition == 'noise':
            drawn = np.random.default_rng((42, listed.index(name))).uniform(-1, 1, 32_000)
            assert np.allclose(wav, drawn, atol=1e-6)
        elif condition == 'silence':
            assert wav.shape == (32_000,) and not wav.any()
    conditions = [condition for _, condition, _ in heard]
    assert conditions.count('noise') == conditions.count('silence') == len(listed) == 16
    assert conditions.count('positive') == 16 + 16          # IS4 has no such scores


# ---- captions, section 3.6

def test_the_captioners_are_blip_2_qwen2_audio_and_mistral_7b_instruct_v0_2():
    def settings(*options):
        stages = captions.parse_args(['all', '--device', 'cpu', *options]).settings
        return {stage: (each['model'], each['batch_size'], each['max_new_tokens'])
                for stage, each in stages.items()}
    assert settings('--preset', 'paper') == {
        'image': ('Salesforce/blip2-opt-2.7b', 32, 30),
        'audio': ('Qwen/Qwen2-Audio-7B-Instruct', 8, 60),
        'object': ('mistralai/Mistral-7B-Instruct-v0.2', 16, 12)}
    assert captions.MOST_WORDS == 3
    assert captions.AUDIO_PROMPT == 'Describe the sound in one sentence.'
    folder = Path(captions.__file__).parent / 'miniature/weights'
    assert settings() == {'image': (str(folder / 'blip2'), 60, 30),
                          'audio': (str(folder / 'qwen2_audio'), 60, 60),
                          'object': (str(folder / 'mistral'), 60, 12)}
