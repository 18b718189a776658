"""The audio encoder: filterbank, tokens, layers, relative positions, checkpoints, errors.

Agreement with the golden files is tested in test_golden.py.
"""
import dataclasses

import pytest
import torch
from torchaudio.compliance import kaldi

from beats import (BEATs, BEATsConfig, FBANK_MEAN, FBANK_STD, fbank, feature_layers, load_beats,
                   relative_bucket)
from miniature.pretraining.tiny_beats import save_beats

SMALL = dict(encoder_layers=3, encoder_embed_dim=32, encoder_ffn_embed_dim=48,
             encoder_attention_heads=4, embed_dim=16, predictor_class=5)
TABLE = 'encoder.layers.{}.self_attn.relative_attention_bias.weight'


def small(seed=0, **settings):
    torch.manual_seed(seed)
    return BEATs(BEATsConfig(**{**SMALL, **settings})).eval()


def halves(model):
    return {name: weight.half() for name, weight in model.state_dict().items()}


def noise(B, samples):
    return torch.randn(B, samples, generator=torch.Generator().manual_seed(1)) * 0.1


# ---- filterbank

@pytest.mark.parametrize('wav', [
    noise(3, 32000),
    noise(2, 2801),                                             # not a whole number of hops
    torch.sin(torch.arange(16000) * 0.1)[None],
    torch.cat([torch.zeros(1, 8000), noise(1, 8000)], 1),       # half of it silent
    torch.zeros(2, 4000),
], ids=['noise', 'odd length', 'tone', 'half silent', 'silent'])
def test_fbank_equals_torchaudio_clip_by_clip(wav):
    reference = torch.stack([
        kaldi.fbank(clip[None] * 2 ** 15, num_mel_bins=128, sample_frequency=16000,
                    frame_length=25, frame_shift=10) for clip in wav])
    reference = (reference - FBANK_MEAN) / (2 * FBANK_STD)
    assert (fbank(wav) - reference).abs().max() <= 1e-5


def test_fbank_stays_float32_under_autocast():
    wav = noise(1, 8000)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = fbank(wav)
    assert torch.equal(inside, fbank(wav))


def test_ten_seconds_are_998_frames_and_496_tokens():
    model = small()
    x = fbank(noise(1, 160000))
    assert x.shape == (1, 998, 128)
    assert model.features(x).shape == (1, 496, 3 * 32)


def test_short_wavs():
    model = small()
    assert model(noise(1, 2800)).shape == (1, 8, 96)            # 16 frames: one column of patches
    with pytest.raises(ValueError, match='15 frames is too short .*: 16 frames are 2800'):
        model(noise(1, 2799))
    assert fbank(noise(1, 400)).shape == (1, 1, 128)
    with pytest.raises(ValueError, match='399 samples is shorter than one 25 ms frame'):
        fbank(noise(1, 399))


@pytest.mark.parametrize('wav', [torch.zeros(16000), torch.zeros(1, 16000, dtype=torch.int16)],
                         ids=['1-d', 'int16'])
def test_fbank_wants_a_batch_of_floats(wav):
    with pytest.raises(ValueError, match=r'\(B, samples\) floats'):
        fbank(wav)


# ---- encoder

@pytest.mark.parametrize('n, layers', [(12, (4, 8, 12)), (3, (1, 2, 3)), (4, (2, 3, 4)),
                                       (5, (2, 4, 5)), (6, (2, 4, 6))])
def test_feature_layers(n, layers):
    assert feature_layers(n) == layers


def test_feature_layers_needs_three():
    with pytest.raises(ValueError, match='encoder_layers=2 is too few'):
        BEATsConfig(encoder_layers=2)


def test_features_are_the_outputs_of_the_chosen_layers():
    model, x, outputs = small(encoder_layers=4), fbank(noise(2, 16000)), []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    features = model.features(x)
    assert torch.equal(features, torch.cat([outputs[1], outputs[2], outputs[3]], -1))
    assert torch.equal(model.last_layer(features), outputs[3])
    assert model.feature_dim == features.shape[-1]


def test_tokens_are_time_major():
    """Sound in one column of patches changes the 8 patch embeddings of that column and no other."""
    model = small()
    x = torch.zeros(1, 64, 128)
    louder = x.clone()
    louder[:, 16:32] = 1.0
    patches = []
    model.layer_norm.register_forward_hook(lambda module, args, output: patches.append(args[0]))
    model.features(x), model.features(louder)
    changed = (patches[0] != patches[1]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(8, 16))


def test_a_clip_does_not_depend_on_its_batch():
    model, wav = small(), noise(3, 16000)
    assert torch.allclose(model(wav)[1:2], model(wav[1:2]), atol=1e-5)


def test_relative_bucket():
    offset = torch.arange(-1000, 1001)
    bucket = dict(zip(offset.tolist(), relative_bucket(offset).tolist()))
    assert bucket[0] == 0
    assert bucket[-1] == 1 and bucket[1] == 161             # the key before, and the key after
    assert all(bucket[d] == bucket[-d] + 160 for d in range(1, 1001))
    assert [bucket[-d] for d in range(81)] == list(range(81))       # single tokens up to 80
    assert bucket[-800] == bucket[-1000] == 159 and bucket[1000] == 319     # from max_distance on
    backwards = [bucket[-d] for d in range(1001)]
    assert backwards == sorted(backwards)


def test_position_bias_is_key_minus_query():
    model = small()
    bias = model.encoder.position_bias(5, 'cpu')                                # (h, query, key)
    table = model.state_dict()[TABLE.format(0)]
    assert bias.shape == (4, 5, 5)
    assert torch.equal(bias[:, 1, 3], table[162]) and torch.equal(bias[:, 3, 1], table[2])
    assert torch.equal(bias[:, 2, 2], table[0])


def test_attention_against_its_definition():
    """softmax(q k / sqrt(d) + gate x bias) v, written out one head at a time."""
    model = small()
    attn, x, bias = model.encoder.layers[1].self_attn, torch.randn(2, 7, 32), torch.randn(4, 7, 7)
    torch.nn.init.normal_(attn.grep_a)
    q, k, v = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    heads = []
    for h in range(4):
        part = slice(8 * h, 8 * h + 8)
        numbers = attn.grep_linear(q[..., part])                                # (B, T, 8)
        a, b = numbers[..., :4].sum(-1).sigmoid(), numbers[..., 4:].sum(-1).sigmoid()       # (B, T)
        gate = a * (b * attn.grep_a[0, h, 0, 0] - 1) + 2
        logits = q[..., part] @ k[..., part].mT / 8 ** 0.5 + gate[..., None] * bias[h]
        heads.append(logits.softmax(-1) @ v[..., part])
    assert torch.allclose(attn(x, bias), attn.out_proj(torch.cat(heads, -1)), atol=1e-5)


def test_position_convolution_is_torch_weight_norm():
    conv = small().encoder.pos_conv[0]
    torch.nn.init.normal_(conv.weight_g)
    reference = torch.nn.Conv1d(32, 32, 128, padding=64, groups=16)
    reference = torch.nn.utils.parametrizations.weight_norm(reference, dim=2)
    reference.parametrizations.weight.original0.data = conv.weight_g.data
    reference.parametrizations.weight.original1.data = conv.weight_v.data
    reference.bias.data = conv.bias.data
    x = torch.randn(2, 32, 24)
    assert torch.allclose(conv(x), reference(x)[..., :-1], atol=1e-5)
    assert small(conv_pos=127).encoder.pos_conv[0](x).shape == x.shape


def test_trainable_and_every_weight_receives_a_gradient():
    model = small(finetuned_model=True).train()
    model.predictor(model.last_layer(model(noise(2, 16000)))).mean(1).square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


def test_equal_widths_need_no_projection():
    model = small(embed_dim=32)
    assert not any(name.startswith('post_extract_proj') for name in model.state_dict())
    assert model(noise(1, 8000)).shape == (1, 24, 96)


def test_bfloat16_weights_and_autocast():
    model, wav = small(), noise(1, 16000)
    reference = model(wav)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert (model(wav) - reference).abs().max() < 0.2
    assert (model.bfloat16()(wav) - reference).abs().max() < 0.2


# ---- checkpoints

@pytest.mark.parametrize('setting', [dict(layer_norm_first=True), dict(gru_rel_pos=False),
                                     dict(deep_norm=False), dict(activation_fn='relu'),
                                     dict(relative_position_embedding=False),
                                     dict(encoder_attention_heads=5), dict(conv_pos_groups=3)])
def test_unsupported_settings_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        BEATsConfig.from_cfg({**SMALL, **setting})


def test_official_file_with_predictor(tmp_path):
    """Half precision, unknown cfg entries, the table in every layer, a predictor, class names."""
    model = small(finetuned_model=True)
    cfg = {**dataclasses.asdict(model.cfg), 'dropout': 0.1, 'encoder_layerdrop': 0.05}
    assert TABLE.format(2) in model.state_dict()
    torch.save({'cfg': cfg, 'model': halves(model), 'label_dict': {0: '/m/09x0r'}},
               tmp_path / 'a.pt')

    loaded = load_beats(tmp_path / 'a.pt')
    assert loaded.predictor is None and not loaded.cfg.finetuned_model and not loaded.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.parameters())
    rounded = small(finetuned_model=True)
    rounded.load_state_dict(halves(model))
    wav = noise(1, 8000)
    assert torch.allclose(loaded(wav), rounded(wav), atol=1e-5)

    kept = load_beats(tmp_path / 'a.pt', keep_predictor=True)
    assert isinstance(kept.predictor, torch.nn.Linear) and kept.predictor.out_features == 5


def test_round_trip(tmp_path):
    model, wav = small(), noise(1, 8000)
    save_beats(tmp_path / 'b.pt', model)
    assert [path.name for path in tmp_path.iterdir()] == ['b.pt']
    file = torch.load(tmp_path / 'b.pt', weights_only=True)
    assert set(file) == {'cfg', 'model'} and file['cfg']['encoder_layers'] == 3
    assert file['model'][TABLE.format(0)].dtype == torch.float16
    assert torch.allclose(load_beats(tmp_path / 'b.pt')(wav), model(wav), atol=0.05)


def test_missing_file(tmp_path):
    sentence = ('there is no file .*d.pt: download BEATs_iter3_plus_AS2M_finetuned_on_AS2M_'
                'cpt2.pt from the unilm/beats repository')
    with pytest.raises(FileNotFoundError, match=sentence):
        load_beats(tmp_path / 'd.pt')


@pytest.mark.parametrize('content', [b'', b'<html>404</html>', {'state_dict': {}}, [1, 2],
                                     {'cfg': None, 'model': {}}])
def test_not_a_beats_checkpoint(tmp_path, content):
    path = tmp_path / 'e.pt'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match='e.pt is no BEATs checkpoint .*: download BEATs_iter3'):
        load_beats(path)


def test_a_file_with_a_hole_of_zeros_is_damaged_and_old_files_load(tmp_path):
    path = tmp_path / 'e.pt'
    weights = small().state_dict()
    saved = {'cfg': SMALL, 'model': weights}
    torch.save(saved, path)
    content = path.read_bytes()
    values = weights['encoder.layers.0.fc1.weight'].numpy().tobytes()
    path.write_bytes(content.replace(values, bytes(len(values))))
    with pytest.raises(ValueError, match='e.pt is no BEATs checkpoint'):
        load_beats(path)
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_beats(path).encoder.layers[0].fc1.weight,
                       weights['encoder.layers.0.fc1.weight'])


@pytest.mark.parametrize('setting', [{'encoder_layers': 3.0}, {'max_distance': 'far'},
                                     {'conv_pos': -1}, {'num_buckets': None},
                                     {'max_distance': 0}, {'deep_norm': torch.ones(2)}])
def test_settings_of_a_wrong_type_or_size_name_the_file(tmp_path, setting):
    torch.save({'cfg': {**SMALL, **setting}, 'model': {}}, tmp_path / 'e.pt')
    with pytest.raises(ValueError, match='e.pt needs another encoder .*: download'):
        load_beats(tmp_path / 'e.pt')


def test_damaged_bytes_are_no_setting_of_another_encoder(tmp_path):
    path = tmp_path / 'e.pt'
    torch.save({'cfg': SMALL, 'model': {}}, path)
    path.write_bytes(path.read_bytes().replace(b'encoder_layers', b'encoder_layer\xff'))
    with pytest.raises(ValueError, match='e.pt is no BEATs checkpoint'):
        load_beats(path)


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / 'e.pt').touch()

    def fails(path, **_):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(torch, 'load', fails)
    with pytest.raises(OSError, match='cannot read .*e.pt .Permission denied.: make it readable'):
        load_beats(tmp_path / 'e.pt')


def test_weights_that_do_not_fit(tmp_path):
    path, weights = tmp_path / 'f.pt', halves(small())

    def attempt(cfg, weights):
        torch.save({'cfg': cfg, 'model': weights}, path)
        with pytest.raises(ValueError, match='f.pt do not fit its cfg.*download') as caught:
            load_beats(path)
        return str(caught.value)

    assert 'mismatch for encoder.layers.0.fc1.weight' in attempt(
        {**SMALL, 'encoder_ffn_embed_dim': 64}, weights)
    assert 'Missing key(s) in state_dict: "encoder.layers.3.' in attempt(
        {**SMALL, 'encoder_layers': 4}, weights)
    assert 'Unexpected key(s) in state_dict: "mask_emb"' in attempt(
        SMALL, {**weights, 'mask_emb': torch.zeros(4)})
    assert 'Missing key(s) in state_dict: "layer_norm.bias"' in attempt(
        SMALL, {name: weight for name, weight in weights.items() if name != 'layer_norm.bias'})
    assert 'layer_norm.bias' in attempt(SMALL, {**weights, 'layer_norm.bias': 'text'})
    attempt(SMALL, {**weights, 3: torch.ones(1)})


def test_weights_that_are_not_numbers_are_named(tmp_path):
    weights = halves(small())
    weights['layer_norm.bias'][3] = float('nan')
    torch.save({'cfg': SMALL, 'model': weights}, tmp_path / 'n.pt')
    with pytest.raises(ValueError, match='n.pt: layer_norm.bias holds values .*: download BEATs'):
        load_beats(tmp_path / 'n.pt')


def test_refused_setting_and_missing_predictor_name_the_file(tmp_path):
    torch.save({'cfg': {**SMALL, 'layer_norm_first': True}, 'model': {}}, tmp_path / 'g.pt')
    with pytest.raises(ValueError, match='g.pt needs another encoder .layer_norm_first=True'):
        load_beats(tmp_path / 'g.pt')
    save_beats(tmp_path / 'h.pt', small())
    with pytest.raises(ValueError, match='h.pt was not fine-tuned and holds no predictor'):
        load_beats(tmp_path / 'h.pt', keep_predictor=True)
