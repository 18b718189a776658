"""Convolutions in 16 bits: each one of the model, at the sizes of both presets, against itself in float32.

Some processors' libraries compute some shapes wrongly; where that is so, a test of this file fails there.
"""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPSegConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder, CLIPSegVisionEmbeddings

from beats import BEATs, BEATsConfig, PositionConv
from conftest import ROOT
from model import AttentivePooling, SelfPotential, UnaryPotential, encode_image, load_model

PAPER = CLIPSegConfig(vision_config={'patch_size': 16}, extract_layers=[3, 6, 9], reduce_dim=64,
                      use_complex_transposed_convolution=True)
MINIATURE = CLIPSegConfig.from_pretrained(ROOT / 'miniature/weights/clipseg')
TINY_BEATS = BEATsConfig(encoder_embed_dim=128, encoder_attention_heads=4, encoder_layers=3, embed_dim=64)
ROUNDING = {torch.bfloat16: 0.03, torch.float16: 0.004}     # of the largest value: a few times 2^-8 and 2^-11


def convolutions():
    """Yield (name, layer, shape of its input): every kind of convolution that the model has, in either preset."""
    for preset, clipseg, beats, side, frames in (('miniature', MINIATURE, TINY_BEATS, 96, 198),
                                                 ('paper', PAPER, BEATsConfig(encoder_layers=3), 352, 998)):
        tokens, width, D = frames // 16 * 8, beats.encoder_embed_dim, clipseg.text_config.hidden_size
        cells, r = side // clipseg.vision_config.patch_size, clipseg.reduce_dim
        patches = CLIPSegVisionEmbeddings(clipseg.vision_config).patch_embedding
        smooth, _, first, _, second = CLIPSegDecoder(clipseg).transposed_convolution
        larger = cells * first.stride[0]
        yield f'{preset}, patches of a frame', patches, (1, 3, side, side)
        yield f'{preset}, decoder, 3 x 3', smooth, (1, r, cells, cells)
        yield f'{preset}, decoder, to pixels', first, (1, r, cells, cells)
        yield f'{preset}, decoder, to more pixels', second, (1, first.out_channels, larger, larger)
        yield f'{preset}, patches of a filterbank', BEATs(beats).patch_embedding, (1, 1, frames, 128)
        yield f'{preset}, positions', PositionConv(width, beats.conv_pos, beats.conv_pos_groups), (1, width, tokens)
        yield f'{preset}, potentials', SelfPotential(D).embed_X, (1, D, tokens)
        for k in (1, 8):
            yield f'{preset}, potentials of {k} tokens', UnaryPotential(D, k).feature_reduce, (1, D, tokens)
        yield f'{preset}, mixture', AttentivePooling(D).reduce_potentials[0], (1, 2, tokens)


torch.manual_seed(0)
ALL = list(convolutions())


def values_and_gradients(layer, x, ahead):
    """The output, and what comes back of a gradient `ahead` of it for the input and for each weight, in float32."""
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


def test_the_shipped_encoders_give_in_bf16_what_they_give_in_float32():
    model, _ = load_model('miniature', ROOT / 'miniature/weights/av.pt')
    generator = torch.Generator().manual_seed(0)
    image, wav = torch.randn(2, 3, 96, 96, generator=generator), torch.randn(2, 32000, generator=generator) / 10
    with torch.no_grad():
        exact = encode_image(model.clipseg, image).pooled, model.embed_audio(wav)
        with torch.autocast('cpu', torch.bfloat16):
            rounded = encode_image(model.clipseg, image).pooled, model.embed_audio(wav)
    for one, other in zip(rounded, exact):
        assert F.cosine_similarity(one.float(), other).min() > 0.995
