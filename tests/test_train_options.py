"""Every option of train.py reaches its setting, the model, the equations or the optimiser."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import model as model_file
import data
import train
from conftest import assert_equal
from masks import mask_gen_f
from model import PROMPT, load_model
from tiny import tiny, tiny_beats, tiny_clipseg, tiny_root, training, watch         # noqa: F401


# ---- the command line

SETTINGS = {    # option: (what is given, its setting, what that becomes)
    '--variant': ('av_llm', 'variant', 'av_llm'), '--seed': ('3', 'seed', 3),
    '--out': ('x/y', 'out', Path('x/y')), '--data-root': ('some', 'data_root', 'some'),
    '--clipseg': ('c', 'clipseg', 'c'), '--beats': ('b', 'beats', 'b'),
    '--workers': ('3', 'workers', 3), '--precision': ('fp16', 'precision', 'fp16'),
    '--save-seconds': ('7', 'save_seconds', 7.0), '--device': ('cpu', 'device', 'cpu'),
    '--cache-audio': ('d', 'cache_audio', 'd'), '--pair-chunk': ('5', 'pair_chunk', 5),
    '--epochs': ('4', 'epochs', 4), '--steps': ('6', 'steps', 6),
    '--batch-size': ('10', 'batch_size', 10), '--lr': ('0.5', 'lr', 0.5),
    '--lr-schedule': ('constant', 'lr_schedule', 'constant'),
    '--weight-decay': ('0.25', 'weight_decay', 0.25), '--tau': ('0.2', 'tau', 0.2),
    '--accumulate': ('3', 'accumulate', 3), '--negatives': ('global', 'negatives', 'global'),
    '--lambda-i': ('0.3', 'lambda_i', 0.3), '--lambda-f': ('0.4', 'lambda_f', 0.4),
    '--lambda-reg': ('0.6', 'lambda_reg', 0.6), '--p-pos': ('0.35', 'p_pos', 0.35),
    '--p-neg': ('0.15', 'p_neg', 0.15), '--area': ('sum', 'area', 'sum'),
    '--acl-f': ('release', 'acl_f', 'release'), '--image-mask': ('soft', 'image_mask', 'soft'),
    '--feature-mask': ('image', 'feature_mask', 'image'),
    '--audio-tokens': ('8', 'audio_tokens', 8), '--prompt': ('x <*>', 'prompt', 'x <*>')}
FOR_AV_LLM = {
    '--lambda-c': ('0.7', 'lambda_c', 0.7), '--captions': ('f', 'captions', 'f'),
    '--captions-from': ('audio', 'captions_from', 'audio'),
    '--same-answers': ('masked', 'same_answers', 'masked')}
FOLLOW = {      # settings that change with another one's option
    '--variant': {'lambda_c', 'out'}, '--seed': {'out'}, '--epochs': {'steps'},
    '--data-root': {'data_root_given'}}


def changed(given, plain):
    """The settings in which two command lines differ, with the first one's values."""
    given, plain = (vars(train.parse_args(arguments)) for arguments in (given, plain))
    return {key: given[key] for key in plain if given[key] != plain[key]}


@pytest.mark.parametrize('common, table', [
    ([], SETTINGS), (['--variant', 'av_llm'], FOR_AV_LLM),
    (['--cache-audio'], {'--cache-share': ('0.5', 'cache_share', 0.5)})])
def test_every_option_sets_its_own_setting_and_no_other(common, table):
    for option, (text, setting, value) in table.items():
        found = changed([*common, option, text], common)
        assert found[setting] == value, option
        assert found.keys() - FOLLOW.get(option, set()) == {setting}, option


def test_every_switch_sets_its_own_setting_and_no_other():
    for flag in ('--resume', '--overwrite', '--skip-bad-samples'):
        assert changed([flag], []) == {flag[2:].replace('-', '_'): True}
    assert changed(['--cache-audio'], []) == {
        'cache_audio': Path(model_file.PRESETS['miniature'].data_root, 'cache/beats')}


OUT_OF_RANGE = {
    '--epochs': '0', '--steps': '0', '--batch-size': '1', '--workers': '-1', '--seed': '-1',
    '--lr': '0', '--tau': '0', '--weight-decay': '-0.1', '--save-seconds': '-1', '--p-pos': '1.1',
    '--p-neg': '-0.1', '--pair-chunk': '0', '--accumulate': '0', '--lambda-i': '-1',
    '--lambda-f': '-1', '--lambda-reg': '-1', '--audio-tokens': '3', '--device': 'abacus'}


def test_values_out_of_range_are_refused_by_name(capsys):
    for option, value in OUT_OF_RANGE.items():
        with pytest.raises(SystemExit):
            train.parse_args([option, value])
        assert option in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.parse_args(['--lambda-i', '0', '--lambda-f', '0', '--lambda-reg', '0'])
    assert 'at least one of' in capsys.readouterr().err


def test_a_batch_is_two_pairs_or_more_for_each_process():
    for processes in (3, 4):
        with pytest.raises(ValueError, match=f'among {processes} processes with at least 2 pairs'):
            data.steps_per_epoch(range(11), 4, processes, 1)
    assert data.steps_per_epoch(range(11), 4, 2, 1) == 2


# ---- the equations, by another way than losses.py's

def cosine(x, y):
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def info_nce(S, tau):
    right = S.diagonal() / tau
    return ((S / tau).logsumexp(1) + (S / tau).logsumexp(0) - 2 * right).mean() / 2


def expected_terms(out, tau, p_pos, p_neg, area, acl_f):
    A = out.A
    pooled = (out.M_F[:, :, None] * out.v_D[:, None]).sum((3, 4))       # (B, B, D)
    v_F = pooled / out.M_F.sum((2, 3))[..., None]
    positive = out.areas.diagonal()
    negative = out.areas[~torch.eye(len(A), dtype=torch.bool)]
    of_all = abs(positive.mean() - p_pos) + abs(negative.sum() / len(A)**2 - p_neg)
    far = (positive - p_pos).abs()
    wrong = (negative - p_neg).abs()
    reg = {'release': of_all, 'mean': far.mean() + wrong.mean(), 'sum': far.sum() + wrong.sum()}
    S_F = cosine(v_F, A[None] if acl_f == 'paper' else A[:, None])
    return {'acl_i': info_nce(cosine(out.v_I[:, None], A[None]), tau).item(),
            'acl_f': info_nce(S_F, tau).item(), 'reg': reg[area].item()}


@pytest.mark.parametrize('flags, settings, weights', [
    ('', (0.07, 0.4, 0.0, 'release', 'paper'), (1, 1, 1)),
    ('--tau 0.3 --p-pos 0.9 --p-neg 0.2 --area mean --acl-f release --lambda-i 0.5 --lambda-f 0.25 '
     '--lambda-reg 3', (0.3, 0.9, 0.2, 'mean', 'release'), (0.5, 0.25, 3)),
    ('--area sum --p-neg 0.6 --tau 1 --lambda-i 3 --lambda-reg 0.1',
     (1.0, 0.4, 0.6, 'sum', 'paper'), (3, 1, 0.1)),
    # Table 9
    ('--lambda-i 0', (0.07, 0.4, 0.0, 'release', 'paper'), (0, 1, 1)),
    ('--lambda-f 0', (0.07, 0.4, 0.0, 'release', 'paper'), (1, 0, 1)),
    ('--lambda-reg 0', (0.07, 0.4, 0.0, 'release', 'paper'), (1, 1, 0))])
def test_settings_of_the_equations_reach_loss_gradient_log_and_validation(
        training, flags, settings, weights):
    seen = training(*flags.split())
    weights = dict(zip(('acl_i', 'acl_f', 'reg'), weights))
    for forward, line, prefix in ((seen.forwards[0], seen.log[0], ''),
                                  (seen.validations[0], seen.log[1], 'val_')):
        expected = expected_terms(forward['out'], *settings)
        total = sum(weights[key] * expected[key] for key in weights)
        for key, value in {**expected, 'loss': total}.items():
            assert line[prefix + key] == pytest.approx(value, rel=1e-4)
    # what backward() is called on holds each term with its weight, and none without one
    found = {key: gradient.item() for key, gradient in seen.weights[0].items()}
    assert found == pytest.approx({key: weight for key, weight in weights.items() if weight})


def test_a_term_of_weight_0_cannot_reach_the_weights(training):
    def spoil(seen, one):
        one['out'].v_I = one['out'].v_I * float('nan')      # of which acl_i alone is made

    seen = training('--lambda-i', '0', '--steps', '2', hook=spoil)
    assert all(math.isnan(line['acl_i']) for line in seen.log if 'acl_i' in line)
    assert all(math.isfinite(line['loss']) for line in seen.log if 'loss' in line)
    assert all(value.isfinite().all() for value in seen.saved['audio_proj'].values())
    with pytest.raises(ValueError, match='the loss is nan'):
        training('--lambda-i', '0.01', folder='spoilt', hook=spoil)


# ---- the model

def on_the_grid(M):
    """(B, N, 32, 32) -> (B, N, 4, 4): the top-left pixel of each patch of 8."""
    return M[..., ::8, ::8]


def own(maps):
    """(B, B, ...) -> (B, ...): each image under its own audio."""
    return torch.stack([maps[i, i] for i in range(len(maps))])


def check_hard(out):
    assert set(out.M_I.unique().tolist()) == {0.0, 1.0}
    pixels = out.areas * 32 * 32
    assert torch.equal(pixels.round(), pixels)              # each pixel is 0 or 1
    share = torch.sigmoid(1.0 * out.M_G + 1.4).mean((-2, -1))           # w = 1, b = 1.4
    assert torch.allclose(out.areas, share, atol=0.08)


def check_soft(out):
    expected = 1 / (1 + (-out.M_G).exp())
    assert torch.allclose(out.M_I[:, 0], own(expected), atol=1e-6)
    assert torch.allclose(out.areas, expected.mean((-2, -1)), atol=1e-6)


def check_feature(out):
    low = out.M_G.amin((-2, -1), keepdim=True)
    high = out.M_G.amax((-2, -1), keepdim=True)
    M_F = on_the_grid(torch.sigmoid(((out.M_G - low) / (high - low) - 0.5) / 0.07))
    expected = F.interpolate(M_F, size=(32, 32), mode='bilinear')
    assert torch.allclose(out.M_I[:, 0], own(expected), atol=1e-4)
    assert torch.allclose(out.areas, expected.mean((-2, -1)), atol=1e-4)


CHECKS = {'hard': check_hard, 'soft': check_soft, 'feature': check_feature}


@pytest.mark.parametrize('image_mask, feature_mask', [('hard', 'feature'), ('soft', 'image'),
                                                      ('feature', 'feature')])
def test_mask_options_reach_areas_masked_image_and_pooling(training, image_mask, feature_mask):
    seen = training('--image-mask', image_mask, '--feature-mask', feature_mask)
    clip = tiny_clipseg()[0].clip
    for one in (*seen.forwards, *seen.validations):
        out = one['out']
        CHECKS[image_mask](out)
        of_image = feature_mask == 'image'      # as the image mask, which is soft here
        M_F = on_the_grid(torch.sigmoid(out.M_G)) if of_image else mask_gen_f(out.M_G, (4, 4))
        assert torch.allclose(out.M_F, M_F, atol=1e-6)
        masked = clip.vision_model(one['image'] * out.M_I).pooler_output
        assert torch.allclose(out.v_I, clip.visual_projection(masked), atol=1e-5)


@pytest.mark.parametrize('flags, trained', [
    ('', True), ('--lambda-f 0', True), ('--lambda-i 0 --lambda-reg 0', False),
    ('--lambda-i 0 --lambda-reg 0 --feature-mask image', True), ('--image-mask soft', False),
    ('--image-mask feature', False)])
def test_the_optimiser_has_the_projection_and_w_and_b_where_a_loss_uses_them(
        training, flags, trained):
    seen = training(*flags.split())
    names = {id(p): key for key, p in seen.loaded[0].named_parameters()}
    held = {names[id(p)] for group in seen.optimisers[0].param_groups for p in group['params']}
    projection = {key for key in names.values() if key.startswith('audio_proj.')}
    assert held == projection | ({'masker_i.w', 'masker_i.b'} if trained else set())
    for key, after in seen.steps[0]['after'].items():
        if key.startswith('masker_i'):
            assert (after != seen.steps[0]['before'][key]) == trained


@pytest.mark.parametrize('prompt, tokens, before, after', [
    ('A photo of a <*>', 1, 'A photo of a', ''),
    ('the <*> is making a sound', 4, 'the', 'is making a sound')])
def test_prompt_and_audio_tokens_reach_the_text_encoder(
        training, monkeypatch, prompt, tokens, before, after):
    asked = []
    watch(monkeypatch, model_file, 'embed_prompt', lambda A, clipseg, *parts: asked.append(parts))
    seen = training('--prompt', prompt, '--audio-tokens', str(tokens))

    def words(text):
        return tiny_clipseg()[1](text).input_ids[1:-1]

    assert len(asked) == len(seen.forwards) + len(seen.validations)
    for ids_before, audio, ids_after in asked:
        assert ids_before.tolist()[1:] == words(before) and ids_after.tolist()[:-1] == words(after)
        assert audio.shape[1:] == (tokens, 32)
    assert (seen.saved['prompt'], seen.saved['audio_tokens']) == (prompt, tokens)
    untrained = seen.sheets[0][0]                           # drawn beside the trained one
    assert untrained.prompt_before.tolist()[1:] == words(before)
    assert len(untrained.audio_proj.fga.reduce_potentials) == tokens


def test_a_given_prompt_goes_before_the_checkpoint_s_and_that_before_the_default(tiny, tmp_path):
    made, tokenizer = load_model('miniature', prompt='An image of a <*>', audio_tokens=2)
    saved = {**model_file.trained_state(made), 'prompt': 'An image of a <*>', 'audio_tokens': 2}
    torch.save(saved, tmp_path / 'a.pt')
    for path, prompt, expected, tokens in ((tmp_path / 'a.pt', None, 'An image of a', 2),
                                           (tmp_path / 'a.pt', 'the <*>', 'the', 2),
                                           (tmp_path / 'a.pt', PROMPT, 'A photo of a', 2),
                                           (None, None, 'A photo of a', 1)):
        model, _ = load_model('miniature', path, prompt)
        assert model.prompt_before.tolist() == tokenizer(expected).input_ids[:-1]
        assert len(model.audio_proj.fga.reduce_potentials) == tokens


def test_each_audio_token_has_its_own_row_and_mixture(tiny):
    """Table 11: a softmax over time of what the token's own mixture makes of both potentials."""
    torch.manual_seed(0)
    pooling = model_file.AttentivePooling(6, tokens=3).eval()
    x = torch.randn(2, 5, 6)                                # (B, T, D)
    unary = pooling.un_models[0](x.transpose(1, 2))         # (B, k, T)
    X = F.normalize(pooling.pp_models[0].embed_X(x.transpose(1, 2)), dim=1)
    Y = F.normalize(pooling.pp_models[0].embed_Y(x.transpose(1, 2)), dim=1)
    agreement = (X.transpose(1, 2) @ Y).mean(2)             # (B, T), over Y's time
    found = pooling(x)
    for k, mixture in enumerate(pooling.reduce_potentials):
        of_unary, of_agreement = mixture.weight.flatten()
        attention = (of_unary * unary[:, k] + of_agreement * agreement).softmax(1)
        assert torch.allclose(found[:, k], (attention[..., None] * x).sum(1), atol=1e-5)


def test_backbones_preset_and_data_root_reach_the_loading(training):
    seen = training('--clipseg', 'other/clipseg', '--beats', 'other/beats.pt')
    # a second time for the pictures
    assert seen.backbones.clipseg == 2 * ['other/clipseg']
    assert seen.backbones.beats == 2 * ['other/beats.pt']
    root = seen.args.data_root
    assert [call[2:4] for call in seen.held_out] == 2 * [('miniature', root)]
    assert seen.sheets[0][3:] == ('miniature', root, seen.args.out / 'before_after.png')


def test_precision_is_that_of_the_networks_alone(training):
    length = {}
    # weights so small that no gradient in fp16 overflows, and its step is not left out
    flags = '--lambda-i 0.015625 --lambda-f 0.03125 --lambda-reg 0.015625 --tau 1'.split()
    for precision, dtype, scale in (('float32', torch.float32, 1), ('bf16', torch.bfloat16, 1),
                                    ('fp16', torch.float16, 65536)):
        seen = training('--precision', precision, *flags, folder=precision)
        for one in (seen.forwards[0], seen.validations[0]):
            out = one['out']
            assert out.A.dtype == out.v_I.dtype == dtype
            assert out.M_G.dtype == out.areas.dtype == torch.float32
        assert all(term.dtype == torch.float32 for term in seen.terms[0].values())
        weights = {key: value.item() for key, value in seen.weights[0].items()}
        assert weights == {'acl_i': scale / 64, 'acl_f': scale / 32, 'reg': scale / 64}
        gradient = torch.cat([g.flatten() for g in seen.steps[0]['gradient'].values()])
        length[precision] = gradient.norm().item()
    for precision in ('bf16', 'fp16'):      # rounding moves pixels of the masks; the scale is gone
        assert 0.1 < length[precision] / length['float32'] < 10


def test_after_a_training_in_bf16_the_scores_are_those_of_the_trained_weights_in_float32(training):
    seen = training('--precision', 'bf16')
    assert seen.log[1]['val_n'] == 4 and math.isfinite(seen.log[1]['val_loss'])
    before, after = (call[0] for call in seen.held_out)
    assert before is seen.loaded[0] and after is seen.loaded[1] is seen.sheets[0][1]
    assert_equal(model_file.trained_state(after), model_file.trained_state(before))
    for backbone, given in ((after.clipseg, tiny_clipseg()[0]), (after.beats, tiny_beats())):
        assert_equal(dict(backbone.state_dict()), dict(given.state_dict()))     # not rounded


def test_chunks_reach_the_decoder(training, monkeypatch):
    pairs = []

    def note(M_G, clipseg, activations, A):
        pairs.append(A.shape[:2].numel())

    watch(monkeypatch, model_file, 'decode', note)
    training('--pair-chunk', '8')
    assert pairs == [8, 8, 16]      # 4 x 4 pairs in training; validation keeps no graph


def test_dropout_is_live_in_the_pooling_while_training_and_nowhere_else(training):
    live = []

    def note(seen, one):
        live.append({key for key, module in one['self'].named_modules() if module.training})

    seen = training('--steps', '4', hook=note)          # three, a validation, one and another
    in_training = live[0]
    assert live == [in_training] * 3 + [set(), in_training, set()]
    assert 'audio_proj.fga.un_models.0.dropout' in in_training
    assert not {key for key in in_training if key.startswith(('clipseg', 'beats'))}
    assert [call[-1] for call in seen.held_out] == [False, False]
    assert not seen.sheets[0][1].training
