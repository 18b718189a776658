"""Every option of train.py reaches what it is for: its own setting, the model, the equations, the optimiser."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import model as model_file
import train
from losses import masked_features
from masks import mask_gen_f
from model import PRESETS, ROOT, load_model
from tiny import name, tiny, tiny_beats, tiny_clipseg, tiny_root, training, watch, write_captions   # noqa: F401


# ---- the command line

SETTINGS = {    # option: (what is given, its setting, what that becomes)
    '--variant': ('av_llm', 'variant', 'av_llm'), '--seed': ('3', 'seed', 3), '--out': ('x/y', 'out', Path('x/y')),
    '--data-root': ('some', 'data_root', 'some'), '--clipseg': ('c', 'clipseg', 'c'), '--beats': ('b', 'beats', 'b'),
    '--workers': ('3', 'workers', 3), '--precision': ('fp16', 'precision', 'fp16'),
    '--save-seconds': ('7', 'save_seconds', 7.0), '--prepared': ('p', 'prepared', 'p'),
    '--cache-audio': ('d', 'cache_audio', 'd'), '--pair-chunk': ('5', 'pair_chunk', 5), '--epochs': ('4', 'epochs', 4),
    '--steps': ('6', 'steps', 6), '--batch-size': ('10', 'batch_size', 10), '--lr': ('0.5', 'lr', 0.5),
    '--lr-schedule': ('constant', 'lr_schedule', 'constant'), '--weight-decay': ('0.25', 'weight_decay', 0.25),
    '--tau': ('0.2', 'tau', 0.2), '--accumulate': ('3', 'accumulate', 3), '--negatives': ('global', 'negatives', 'global'),
    '--lambda-i': ('0.3', 'lambda_i', 0.3), '--lambda-f': ('0.4', 'lambda_f', 0.4),
    '--lambda-reg': ('0.6', 'lambda_reg', 0.6), '--p-pos': ('0.35', 'p_pos', 0.35), '--p-neg': ('0.15', 'p_neg', 0.15),
    '--area': ('sum', 'area', 'sum'), '--acl-f': ('release', 'acl_f', 'release'),
    '--image-mask': ('soft', 'image_mask', 'soft'), '--feature-mask': ('image', 'feature_mask', 'image'),
    '--audio-tokens': ('8', 'audio_tokens', 8), '--prompt': ('x <*>', 'prompt', 'x <*>')}
FOR_AV_LLM = {
    '--lambda-c': ('0.7', 'lambda_c', 0.7), '--captions': ('f', 'captions', 'f'),
    '--captions-from': ('audio', 'captions_from', 'audio'), '--same-answers': ('masked', 'same_answers', 'masked')}
FOLLOW = {'--variant': {'lambda_c', 'out'}, '--seed': {'out'}, '--data-root': {'data_root_given'}}     # change with them


@pytest.mark.parametrize('common, table', [([], SETTINGS), (['--variant', 'av_llm'], FOR_AV_LLM)])
def test_every_option_sets_its_own_setting_and_no_other(common, table):
    plain = vars(train.parse_args(common))
    for option, (text, setting, value) in table.items():
        given = vars(train.parse_args([*common, option, text]))
        assert given[setting] == value != plain[setting], option
        changed = {key for key in plain if given[key] != plain[key]}
        assert changed - FOLLOW.get(option, set()) == {setting}, option
    for flag in () if common else ('--resume', '--overwrite', '--skip-bad-samples'):
        given, setting = vars(train.parse_args([flag])), flag[2:].replace('-', '_')
        assert {key: given[key] for key in plain if given[key] != plain[key]} == {setting: True}


def test_a_cache_without_a_folder_and_its_share_are_told_from_none():
    assert train.parse_args([]).cache_audio is None and train.parse_args(['--cache-audio']).cache_audio == ''
    share = vars(train.parse_args(['--cache-audio', '--cache-share', '0.5']))
    plain = vars(train.parse_args(['--cache-audio']))
    assert {key: share[key] for key in plain if share[key] != plain[key]} == {'cache_share': 0.5}
    assert plain['cache_share'] == 1.0


DEFAULTS = {    # section 4.1 where it says; the release where it is silent
    'variant': 'av', 'seed': 0, 'resume': False, 'overwrite': False, 'clipseg': None, 'beats': None,
    'precision': 'float32', 'skip_bad_samples': False, 'cache_audio': None, 'prepared': None, 'pair_chunk': None,
    'steps': None, 'weight_decay': 1e-4, 'tau': 0.07, 'accumulate': 1, 'negatives': 'local', 'lambda_i': 1.0,
    'lambda_f': 1.0, 'lambda_reg': 1.0, 'lambda_c': 0.0, 'captions': None, 'captions_from': 'both',
    'same_answers': 'negatives', 'p_pos': 0.4, 'p_neg': 0.0, 'area': 'release', 'acl_f': 'paper', 'image_mask': 'hard',
    'feature_mask': 'feature', 'audio_tokens': 1, 'prompt': 'A photo of a <*>'}
BY_PRESET = {
    'paper': {'epochs': 20, 'batch_size': 16, 'lr': 1e-4, 'lr_schedule': 'constant', 'save_seconds': 600, 'workers': 8,
              'data_root': str(ROOT / 'data')},
    'miniature': {'epochs': 1, 'batch_size': 8, 'lr': 2e-3, 'lr_schedule': 'linear', 'save_seconds': 10, 'workers': 0,
                  'data_root': str(ROOT / 'data/miniature')}}


@pytest.mark.parametrize('preset', ['paper', 'miniature'])
def test_defaults_of_both_recipes(preset):
    given = vars(train.parse_args(['--preset', preset]))
    expected = {**DEFAULTS, **BY_PRESET[preset], 'out': Path(f'runs/{preset}-av-seed0')}
    assert {key: given[key] for key in expected} == expected
    assert train.parse_args(['--preset', preset, '--variant', 'av_llm']).lambda_c == 1.0
    assert train.parse_args([]).preset == 'miniature'


def test_sizes_and_initial_masks_of_both_presets(monkeypatch):
    monkeypatch.setattr(model_file, 'load_clipseg', lambda path: tiny_clipseg())
    monkeypatch.setattr(model_file, 'load_beats', lambda path: tiny_beats())
    for preset, size, seconds, w, b in (('paper', 352, 10.0, 10.0, 14.0), ('miniature', 96, 2.0, 1.0, 1.4)):
        assert (PRESETS[preset].image_size, PRESETS[preset].seconds) == (size, seconds)
        mask = load_model(preset)[0].masker_i
        assert (mask.w.item(), mask.b.item()) == (w, pytest.approx(b))


# ---- equations, by another way than losses.py's

def cosine(x, y):
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def info_nce(S, tau):
    right = S.diagonal() / tau
    return ((S / tau).logsumexp(1) + (S / tau).logsumexp(0) - 2 * right).mean() / 2


def expected_terms(out, tau, p_pos, p_neg, area, acl_f):
    A, B = out.A, len(out.A)
    v_F = (out.M_F[:, :, None] * out.v_D[:, None]).sum((3, 4)) / out.M_F.sum((2, 3))[..., None]     # (B, B, D)
    positive = out.areas.diagonal()
    negative = out.areas[~torch.eye(B, dtype=torch.bool)]
    reg = {'release': abs(positive.mean() - p_pos) + abs(negative.sum() / B**2 - p_neg),
           'mean': (positive - p_pos).abs().mean() + (negative - p_neg).abs().mean(),
           'sum': (positive - p_pos).abs().sum() + (negative - p_neg).abs().sum()}[area]
    return {'acl_i': info_nce(cosine(out.v_I[:, None], A[None]), tau).item(), 'reg': reg.item(),
            'acl_f': info_nce(cosine(v_F, A[None] if acl_f == 'paper' else A[:, None]), tau).item()}


@pytest.mark.parametrize('flags, settings, weights', [
    ([], (0.07, 0.4, 0.0, 'release', 'paper'), (1, 1, 1)),
    (['--tau', '0.3', '--p-pos', '0.9', '--p-neg', '0.2', '--area', 'mean', '--acl-f', 'release', '--lambda-i', '0.5',
      '--lambda-f', '0.25', '--lambda-reg', '3'], (0.3, 0.9, 0.2, 'mean', 'release'), (0.5, 0.25, 3)),
    (['--area', 'sum', '--p-neg', '0.6', '--tau', '1', '--lambda-i', '3', '--lambda-reg', '0.1'],
     (1.0, 0.4, 0.6, 'sum', 'paper'), (3, 1, 0.1))])
def test_temperature_priors_readings_and_weights_reach_the_loss_its_gradient_and_the_log(training, flags, settings, weights):
    seen = training(*flags)
    expected = expected_terms(seen.forwards[0]['out'], *settings)
    weights = dict(zip(('acl_i', 'acl_f', 'reg'), weights))
    logged = seen.log[0]
    assert {key: logged[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    assert logged['loss'] == pytest.approx(sum(weights[key] * expected[key] for key in weights), rel=1e-4)
    # what backward() is called on holds each term with its weight
    assert {key: float(value) for key, value in seen.weights[0].items()} == pytest.approx(weights)
    in_validation = expected_terms(seen.validations[0]['out'], *settings)           # a single batch has two pairs or more
    assert {key: seen.log[1][f'val_{key}'] for key in expected} == pytest.approx(in_validation, rel=1e-4)
    assert seen.log[1]['val_loss'] == pytest.approx(sum(weights[key] * in_validation[key] for key in weights), rel=1e-4)


@pytest.mark.parametrize('left_out', ['acl_i', 'acl_f', 'reg'])
def test_a_weight_of_zero_leaves_its_term_out(training, left_out):
    seen = training({'acl_i': '--lambda-i', 'acl_f': '--lambda-f', 'reg': '--lambda-reg'}[left_out], '0')
    assert set(seen.terms[0]) == {'acl_i', 'acl_f', 'reg'} - {left_out}
    assert (seen.forwards[0]['out'].v_I is None) == (left_out == 'acl_i')           # a pass of the encoder spared
    assert 'w' in seen.log[0] and 'masker_i.w' in seen.steps[0]['after']


# ---- the model

def on_the_grid(M):
    """(B, N, 32, 32) -> (B, N, 4, 4): the top-left pixel of each patch of 8."""
    return M[..., ::8, ::8]


def check_hard(out):
    assert set(out.M_I.unique().tolist()) == {0.0, 1.0}
    assert ((out.areas * 1024).round() == out.areas * 1024).all()                   # of 32 x 32 pixels, each 0 or 1
    share = torch.sigmoid(1.0 * out.M_G + 1.4).mean((-2, -1))                       # w = 1, b = 1.4
    assert torch.allclose(out.areas, share, atol=0.08)


def check_soft(out):
    own = torch.stack([out.M_G[i, i] for i in range(len(out.M_G))])
    assert torch.allclose(out.M_I[:, 0], 1 / (1 + (-own).exp()), atol=1e-6)
    assert torch.allclose(out.areas, (1 / (1 + (-out.M_G).exp())).mean((-2, -1)), atol=1e-6)


def check_feature(out):
    low, high = out.M_G.amin((-2, -1), keepdim=True), out.M_G.amax((-2, -1), keepdim=True)
    M_F = on_the_grid(torch.sigmoid(((out.M_G - low) / (high - low) - 0.5) / 0.07))
    every = F.interpolate(M_F, size=(32, 32), mode='bilinear')
    own = torch.stack([every[i, i] for i in range(len(every))])
    assert torch.allclose(out.M_I[:, 0], own, atol=1e-4) and torch.allclose(out.areas, every.mean((-2, -1)), atol=1e-4)


@pytest.mark.parametrize('image_mask, feature_mask', [('hard', 'feature'), ('soft', 'image'), ('feature', 'feature')])
def test_mask_options_reach_the_masks_the_masked_image_and_the_pooling(training, image_mask, feature_mask):
    seen = training('--image-mask', image_mask, '--feature-mask', feature_mask)
    for one in (*seen.forwards, *seen.validations):
        out = one['out']
        {'hard': check_hard, 'soft': check_soft, 'feature': check_feature}[image_mask](out)
        expected = on_the_grid(torch.sigmoid(out.M_G)) if feature_mask == 'image' else mask_gen_f(out.M_G, (4, 4))
        assert torch.allclose(out.M_F, expected, atol=1e-6)
        clip = tiny_clipseg()[0].clip
        v_I = clip.visual_projection(clip.vision_model(one['image'] * out.M_I).pooler_output)
        assert torch.allclose(out.v_I, v_I, atol=1e-5)
    # w and b are trained where a mask uses them, and given to the optimiser only then
    assert ('masker_i.w' in seen.steps[0]['after']) == (image_mask == 'hard')


@pytest.mark.parametrize('flags, trained', [(['--lambda-i', '0', '--lambda-reg', '0'], False), (['--lambda-f', '0'], True),
                                            (['--lambda-i', '0', '--lambda-reg', '0', '--feature-mask', 'image'], True),
                                            (['--lambda-reg', '0', '--image-mask', 'soft'], False)])
def test_the_optimiser_has_the_projection_and_w_and_b_where_a_loss_uses_them(training, flags, trained):
    seen = training(*flags)
    model, (optimiser,) = seen.loaded[0], seen.optimisers
    names = {id(p): key for key, p in model.named_parameters()}
    held = {names[id(p)] for group in optimiser.param_groups for p in group['params']}
    assert held == {key for key in names.values() if key.startswith('audio_proj.')} | (
        {'masker_i.w', 'masker_i.b'} if trained else set())
    assert {key for key in names.values() if key.startswith('masker_i')} & set(seen.steps[0]['after']) == held & {
        'masker_i.w', 'masker_i.b'}


@pytest.mark.parametrize('prompt, tokens, before, after', [('A photo of a <*>', 1, 'A photo of a', ''),
                                                           ('the <*> is making a sound', 4, 'the', 'is making a sound')])
def test_prompt_and_audio_tokens_reach_the_text_encoder(training, monkeypatch, prompt, tokens, before, after):
    asked = []
    watch(monkeypatch, model_file, 'embed_prompt', lambda A, clipseg, *parts: asked.append(parts))
    seen = training('--prompt', prompt, '--audio-tokens', str(tokens))
    words = lambda text: tiny_clipseg()[1](text, add_special_tokens=False).input_ids if text else []
    for ids_before, audio, ids_after in asked:
        assert ids_before.tolist()[1:] == words(before) and ids_after.tolist()[:-1] == words(after)
        assert audio.shape[1:] == (tokens, 32)
    assert len(asked) == len(seen.forwards) + len(seen.validations)
    assert (seen.saved['prompt'], seen.saved['audio_tokens']) == (prompt, tokens)
    untrained = seen.sheets[0][0]                               # the pictures' model of the beginning has them too
    assert untrained.prompt_before.tolist()[1:] == words(before) and untrained.audio_proj.fga.un_models[0].feature_reduce.out_channels == tokens


def test_a_given_prompt_goes_before_the_checkpoint_s_and_that_before_the_default(tiny, tmp_path):
    model, tokenizer = load_model('miniature', prompt='An image of a <*>', audio_tokens=2)
    torch.save({**model_file.trained_state(model), 'prompt': 'An image of a <*>', 'audio_tokens': 2}, tmp_path / 'a.pt')
    words = lambda model: tokenizer.decode(model.prompt_before[1:])
    tokens = lambda model: model.audio_tokens(torch.rand(1, 8000)).shape[1]
    own, given = load_model('miniature', tmp_path / 'a.pt')[0], load_model('miniature', tmp_path / 'a.pt', 'the <*>')[0]
    default = load_model('miniature')[0]
    assert words(own) == words(model) != words(given) == tokenizer.decode(tokenizer('the').input_ids[1:-1])
    assert words(default) == tokenizer.decode(tokenizer('A photo of a').input_ids[1:-1])
    assert (tokens(own), tokens(given), tokens(default)) == (2, 2, 1)


def test_backbones_preset_and_data_root_reach_the_loading(training, monkeypatch):
    asked = []
    watch(monkeypatch, train, 'load_model', lambda _, *a, **k: asked.append((a, k)))
    seen = training('--clipseg', 'other/clipseg', '--beats', 'other/beats.pt')
    assert seen.backbones.clipseg == 2 * ['other/clipseg'] and seen.backbones.beats == 2 * ['other/beats.pt']   # and for the pictures
    assert [a for a, k in asked] == 2 * [('miniature',)]
    assert [call[2:4] for call in seen.held_out] == 2 * [('miniature', seen.args.data_root)]
    assert seen.sheets[0][3:] == ('miniature', seen.args.data_root, seen.args.out / 'before_after.png')


def test_precision_is_that_of_the_networks_alone(training):
    length = {}
    for precision, dtype, scale in (('float32', torch.float32, 1), ('bf16', torch.bfloat16, 1), ('fp16', torch.float16, 65536)):
        seen = training('--precision', precision, '--lambda-f', '0.5', folder=precision)
        out = seen.forwards[0]['out']
        assert out.A.dtype == out.v_I.dtype == dtype and out.M_G.dtype == out.areas.dtype == torch.float32
        assert all(term.dtype == torch.float32 for term in seen.terms[0].values())
        weights = {key: float(value) for key, value in seen.weights[0].items()}
        assert weights == {'acl_i': scale, 'acl_f': scale / 2, 'reg': scale}
        assert seen.validations[0]['out'].A.dtype == torch.float32
        length[precision] = torch.cat([g.flatten() for g in seen.steps[0]['gradient'].values()]).norm().item()
    assert length['bf16'] == pytest.approx(length['float32'], rel=0.1)
    assert length['fp16'] == pytest.approx(length['float32'], rel=0.1)              # the scale is taken out before the step


def test_chunks_reach_the_decoder(training, monkeypatch):
    pairs = []
    watch(monkeypatch, model_file, 'decode', lambda M_G, clipseg, activations, A: pairs.append(A.shape[:2].numel()))
    training('--pair-chunk', '8')
    assert pairs == [8, 8, 16]      # 4 x 4 pairs in training; validation, without gradients, has nothing to save


def test_dropout_is_live_in_the_pooling_while_training_and_nowhere_else(training):
    live = []

    def note(seen, one):
        live.append({key for key, module in one['self'].named_modules() if module.training})

    seen = training(hook=note)
    in_training, in_validation = live
    assert 'audio_proj.fga.un_models.0.dropout' in in_training and not in_validation
    assert not {key for key in in_training if key.startswith(('clipseg', 'beats'))}
    assert [call[-1] for call in seen.held_out] == [False, False] and not seen.sheets[0][1].training


def test_the_unary_potential_drops_half_of_its_numbers():
    potential = model_file.UnaryPotential(400, 1)
    with torch.no_grad():
        potential.embed.weight.copy_(torch.eye(400)[..., None])
        potential.embed.bias.fill_(0)
        potential.feature_reduce.weight.fill_(1)
        potential.feature_reduce.bias.fill_(0)
    torch.manual_seed(0)
    kept = potential.train()(torch.ones(1, 400, 50)) / 2        # what stays is doubled
    assert kept.mean().item() == pytest.approx(200, abs=5) and kept.std() > 5
    assert (potential.eval()(torch.ones(1, 400, 50)) == 400).all()
    assert (potential(-torch.ones(1, 400, 50)) == 0).all()
