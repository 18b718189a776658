"""16 bits against float32: each convolution at the sizes of both presets, the encoders, a step.

Some processors' libraries compute some shapes wrongly: there, a test of this file fails.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPSegConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder, CLIPSegVisionEmbeddings

import losses
from beats import BEATs, BEATsConfig, PositionConv
from conftest import ROOT
from model import AttentivePooling, SelfPotential, UnaryPotential, embed_image, load_model

PAPER = CLIPSegConfig(vision_config={'patch_size': 16}, extract_layers=[3, 6, 9], reduce_dim=64,
                      use_complex_transposed_convolution=True)
MINIATURE = CLIPSegConfig.from_pretrained(ROOT / 'miniature/weights/clipseg')
TINY_BEATS = BEATsConfig(encoder_embed_dim=128, encoder_attention_heads=4, encoder_layers=3,
                         embed_dim=64)
ROUNDING = {torch.bfloat16: 0.03, torch.float16: 0.004}     # of the largest value


def convolutions():
    """Yield (name, layer, shape of its input): every kind of convolution of either preset."""
    for preset, clipseg, beats, side, frames in (
            ('miniature', MINIATURE, TINY_BEATS, 96, 198),
            ('paper', PAPER, BEATsConfig(encoder_layers=3), 352, 998)):
        tokens = frames // 16 * 8
        width, D = beats.encoder_embed_dim, clipseg.text_config.hidden_size
        cells, r = side // clipseg.vision_config.patch_size, clipseg.reduce_dim
        patches = CLIPSegVisionEmbeddings(clipseg.vision_config).patch_embedding
        smooth, _, first, _, second = CLIPSegDecoder(clipseg).transposed_convolution
        larger = cells * first.stride[0]
        yield f'{preset}, patches of a frame', patches, (1, 3, side, side)
        yield f'{preset}, decoder, 3 x 3', smooth, (1, r, cells, cells)
        yield f'{preset}, decoder, to pixels', first, (1, r, cells, cells)
        yield f'{preset}, decoder, to more pixels', second, (1, first.out_channels, larger, larger)
        patch = BEATs(beats).patch_embedding
        yield f'{preset}, patches of a filterbank', patch, (1, 1, frames, 128)
        positions = PositionConv(width, beats.conv_pos, beats.conv_pos_groups)
        yield f'{preset}, positions', positions, (1, width, tokens)
        yield f'{preset}, potentials', SelfPotential(D).embed_X, (1, D, tokens)
        for k in (1, 8):
            reduce = UnaryPotential(D, k).feature_reduce
            yield f'{preset}, potentials of {k} tokens', reduce, (1, D, tokens)
        yield f'{preset}, mixture', AttentivePooling(D).reduce_potentials[0], (1, 2, tokens)


torch.manual_seed(0)
ALL = list(convolutions())


def values_and_gradients(layer, x, ahead):
    """The output, and the gradients of the input and of each weight under the output's `ahead`."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(ahead.to(y.dtype))
    return [y.detach().float(), x.grad.clone(), *(p.grad.clone() for p in layer.parameters())]


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
@pytest.mark.parametrize('layer, shape', [more for _, *more in ALL], ids=[name for name, *_ in ALL])
def test_a_convolution_in_16_bits_is_that_of_float32_but_for_rounding(layer, shape, low):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    ahead = torch.randn(layer(x).shape, generator=generator)
    exact = values_and_gradients(layer, x, ahead)
    with torch.autocast('cpu', low):
        rounded = values_and_gradients(layer, x, ahead)
    for one, other in zip(rounded, exact, strict=True):
        assert (one - other).abs().max() < ROUNDING[low] * other.abs().max()


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
@pytest.mark.parametrize('way', ['autocast', 'weights'])
def test_the_position_convolution_is_never_computed_in_16_bits(monkeypatch, low, way):
    seen, conv1d = [], F.conv1d

    def spy(x, weight, bias, **more):
        seen.append((x.dtype, weight.dtype, bias.dtype, torch.is_autocast_enabled('cpu')))
        return conv1d(x, weight, bias, **more)

    monkeypatch.setattr(F, 'conv1d', spy)
    torch.manual_seed(0)
    module, x = PositionConv(128, 128, 16), torch.randn(2, 128, 96)
    exact = module(x)
    if way == 'autocast':
        with torch.autocast('cpu', low):
            found = module(x.to(low))
    else:
        found = module.to(low)(x.to(low))
    assert seen == 2 * [(torch.float32,) * 3 + (False,)] and found.dtype == low
    assert (found.float() - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.fixture
def shipped():
    return load_model('miniature', ROOT / 'miniature/weights/av.pt')[0]


def pairs():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 96, 96, generator=generator)
    return image, torch.randn(2, 32000, generator=generator) / 10


@torch.no_grad()
def test_the_shipped_encoders_give_in_bf16_what_they_give_in_float32(shipped):
    image, wav = pairs()
    exact = embed_image(shipped.clipseg, image), shipped.embed_audio(wav)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = embed_image(shipped.clipseg, image), shipped.embed_audio(wav)
    for one, other in zip(rounded, exact):
        assert F.cosine_similarity(one.float(), other).min() > 0.995


def step(model, low):
    """A training step under autocast with fixed noise and dropout. -> {name: output or gradient}"""
    torch.manual_seed(4)
    model.train().zero_grad()
    noise = torch.rand(2, 2, 96, 96).clamp(1e-6), torch.rand(2, 1, 96, 96).clamp(1e-6)
    with torch.autocast('cpu', low):
        out = model(*pairs(), noise=noise)
    v_F = losses.masked_features(out.M_F, out.v_D.float())
    S_F = losses.feature_similarities(v_F, out.A.float())
    (losses.acl_i(out.v_I.float(), out.A.float()) + losses.info_nce(S_F)
     + losses.area_regulariser(out.areas)).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {'v_I': out.v_I, 'A': out.A, 'M_G': out.M_G, **gradients}
    return {name: value.detach().float().clone() for name, value in found.items()}


@pytest.mark.parametrize('low', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
def test_frozen_weights_held_in_16_bits_give_autocast_s_step_within_its_rounding(shipped, low):
    before = step(shipped, low)
    shipped.cast_frozen(low)
    after = step(shipped, low)
    assert after.keys() == before.keys() and len(after) > 10
    for name, value in before.items():
        assert (after[name] - value).norm() <= torch.finfo(low).eps * value.norm(), name


def test_trained_parts_norms_and_embeddings_are_not_held_in_16_bits(shipped):
    frozen = [*shipped.clipseg.parameters(), *shipped.beats.parameters()]
    size = sum(p.nbytes for p in frozen)
    shipped.cast_frozen(torch.bfloat16)
    assert sum(p.nbytes for p in frozen) < 0.6 * size
    kinds = (torch.nn.LayerNorm, torch.nn.Embedding, PositionConv)
    exact = [m for m in shipped.modules() if isinstance(m, kinds)]
    for module in (*exact, shipped.audio_proj, shipped.masker_i):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert shipped.clipseg.decoder.film_mul.weight.dtype == torch.bfloat16
