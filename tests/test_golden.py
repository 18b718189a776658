"""Golden parity: every tensor, loss and gradient equals the authors' code on the golden files.

    python -m pytest tests/test_golden.py                    # the golden files of the repository
    ACL_GOLDEN=DIR python -m pytest tests/test_golden.py     # any other folder of that form

The files follow the release's conventions: its S^F, its divisor of v_F, its area terms.
Tolerances: 1e-4 of the largest value for what the model computes in float32, 2e-3 for gradients.
These are computed in float64: some are sums that nearly cancel, where the rounding of a processor's
float32 would decide.
"""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

import losses
from beats import BEATs, BEATsConfig, fbank
from localise import confidence
from model import SoundLocalizer, embed_image, encode_image, load_trained, trained_state


class Golden:
    """The golden model, run once in dtype: `ours` holds our tensors by the file's names out/*."""

    def __init__(self, folder, dtype):
        self.config = json.loads((folder / 'config.json').read_text())
        self.file = np.load(folder / 'model.npz')
        weights = lambda part: {k[len(part) + 3:]: torch.from_numpy(self.file[k]).float()
                                for k in self.file.files if k.startswith(f'w/{part}.')}
        clipseg = CLIPSegForImageSegmentation(CLIPSegConfig(**self.config['clipseg']))
        missing, extra = clipseg.load_state_dict(weights('clipseg'), strict=False)
        assert not missing and all(name.endswith('position_ids') for name in extra)
        beats = BEATs(BEATsConfig.from_cfg(self.config['beats']))
        beats.load_state_dict(weights('beats'))
        ids, token_at = self.file['in/ids'][0].tolist(), self.config['pos']
        prompt = ids[:token_at], ids[token_at:]
        self.model = model = SoundLocalizer(clipseg.eval(), beats.eval(), prompt)
        load_trained(model, {part: weights(part) for part in ('audio_proj', 'masker_i')}, 'golden')
        model.to(dtype)

        read = lambda name: torch.from_numpy(self.file[f'in/{name}'].astype(np.float64)).to(dtype)
        wav, image, C = read('wav_i16') / 32768, read('image_f16'), read('C')
        noise = [(read(name) + 0.5) / 65536 for name in ('noise1_u16', 'noise2_u16')]
        vision, features = encode_image(clipseg, image), beats(wav)
        out = model(image, wav, noise=noise)
        out.A.retain_grad()
        own = out.M_F.sum((2, 3)).unsqueeze(-1)             # the release divides by the sum of all
        v_F = losses.masked_features(out.M_F, out.v_D) * own / (own.sum() + 1e-6)
        S_F = losses.feature_similarities(v_F, out.A, reading='release')
        S_C = losses.cosine_similarities(out.A, C)
        terms = {'acl_i': losses.acl_i(out.v_I, out.A),
                 'acl_f': losses.info_nce(S_F),
                 'area_reg': losses.area_regulariser(out.areas)}
        total = losses.total_loss(terms, dict.fromkeys(terms, 1.0))
        total.backward()
        off = out.areas.sum() - out.areas.trace()
        size = self.file['out/heatmap'].shape[-2:]
        self.ours = {
            'fbank': fbank(wav[:1]), 'fbank_row_means': fbank(wav).mean(-1),
            'beats_layers_cat': features, 'beats_x': beats.last_layer(features),
            'audio_token': model.audio_proj(features)[:, 0], 'A': out.A,
            'v_D': vision.v_D, 'vision_pooled_proj': embed_image(clipseg, image),
            'vision_activations': torch.stack(vision.activations),
            'M_G': out.M_G, 'feature_mask': out.M_F, 'image_mask': out.M_I,
            'area_matrix': out.areas, 'v_f': v_F, 'v_i': out.v_I,
            'p_area': out.areas.diagonal().mean(), 'n_area': off / len(out.areas) ** 2, **terms,
            'total': total, 'infonce_A_C': losses.info_nce_rows(S_C),
            'infonce_C_A': losses.info_nce_rows(S_C.t()),
            'heatmap': model.heatmap(image, wav, size).unsqueeze(1),
            # one audio for all images, and the heatmap read off at every fourth pixel
            'heatmap_N1': model.heatmaps(vision, out.A[:1].expand(len(image), 1, -1),
                                         size)[..., ::4, ::4],
            'heatmap_one': model.heatmap(image[:1], wav[:1], size).unsqueeze(1),
            'conf': confidence(model, vision, out.A, image.shape[-2:]),
        }
        self.acl_c = losses.acl_c(C, out.A)
        trained = {k: p.grad for k, p in model.named_parameters() if p.requires_grad}
        self.gradients = {**trained, 'A': out.A.grad}

    def difference(self, name, ours):
        """Largest difference to out/<name>, in units of its largest value."""
        theirs = torch.from_numpy(self.file[f'out/{name}'].astype(np.float64))
        assert tuple(ours.shape) == tuple(theirs.shape), name
        difference = (ours.detach().double() - theirs).abs().max()
        return float(difference / theirs.abs().max().clamp(min=1e-12))


@pytest.fixture(scope='module')
def run(golden):
    return Golden(golden, torch.float32)


FORWARD = ['fbank', 'fbank_row_means', 'beats_layers_cat', 'beats_x', 'audio_token', 'A', 'v_D',
           'vision_pooled_proj', 'vision_activations', 'M_G', 'feature_mask', 'image_mask',
           'area_matrix', 'v_f', 'v_i', 'p_area', 'n_area', 'acl_i', 'acl_f', 'area_reg', 'total',
           'infonce_A_C', 'infonce_C_A', 'heatmap', 'heatmap_one', 'heatmap_N1', 'conf']


@pytest.mark.parametrize('name', FORWARD)
def test_forward_equals_the_release(run, name):
    assert run.difference(name, run.ours[name]) < 1e-4


def test_every_golden_output_is_compared(run):
    outputs = {k[4:] for k in run.file.files if k.startswith('out/')}
    outputs.remove('placeholder_padded')        # the release's padded ids, which nothing here makes
    assert outputs == set(FORWARD) | {f'grad/{name}' for name in run.gradients}


def test_gradients_equal_the_release(golden):
    run = Golden(golden, torch.float64)
    for name, gradient in run.gradients.items():
        if name.endswith('feature_reduce.bias'):    # a softmax ignores it: its true gradient is 0
            assert gradient.abs().max() < 1e-9 * run.gradients['A'].abs().max()
        else:
            assert run.difference(f'grad/{name}', gradient) < 2e-3, name


def test_caption_loss_is_the_mean_of_both_golden_directions(run):
    both = (run.file['out/infonce_A_C'] + run.file['out/infonce_C_A']) / 2
    assert run.acl_c.item() == pytest.approx(float(both), rel=1e-5)


def test_trained_names_are_those_of_the_released_checkpoint(run):
    ours = {f'{part}.{k}' for part, state in trained_state(run.model).items() for k in state}
    assert ours == {k[2:] for k in run.file.files if k.startswith(('w/audio_proj.', 'w/masker_i.'))}
