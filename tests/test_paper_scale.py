"""The paper preset's sizes: full CLIPSeg ViT-B/16 and 12-layer BEATs, with random weights, take a training step."""

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

import losses
import train
from beats import BEATs, BEATsConfig
from model import PRESETS, SoundLocalizer


def test_a_training_step_at_batch_2_with_full_size_backbones():
    config = PRESETS['paper']
    assert (config.image_size, config.seconds, config.w, config.b) == (352, 10.0, 10.0, 14.0)
    torch.manual_seed(0)
    # the published weights' configuration; transformers' own default is patch 32
    clipseg = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config={'patch_size': 16}, extract_layers=[3, 6, 9],
                                                        reduce_dim=64, use_complex_transposed_convolution=True))
    model = SoundLocalizer(clipseg, BEATs(BEATsConfig()), ([49406, 320, 1125, 539, 320], [49407]))
    assert model.audio_proj.fc1.weight.shape == (2304, 2304) and model.audio_proj.fc2.weight.shape == (512, 2304)
    args = train.parse_args(['--preset', 'paper'])
    assert (args.epochs, args.batch_size, args.lr, args.lr_schedule, args.weight_decay, args.tau) == (20, 16, 1e-4, 'constant', 1e-4, 0.07)
    assert (args.lambda_i, args.lambda_f, args.lambda_reg, args.p_pos, args.p_neg) == (1, 1, 1, 0.4, 0.0)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], args.lr,
                                 weight_decay=args.weight_decay)
    before = model.audio_proj.fc1.weight.detach().clone()
    out = model.train()(torch.randn(2, 3, 352, 352), torch.rand(2, 160_000) - 0.5)
    assert out.M_G.shape == (2, 2, 352, 352) and out.v_D.shape == (2, 512, 22, 22) and out.M_F.shape == (2, 2, 22, 22)
    loss = losses.total_loss(train.loss_terms(out, args), train.weights_of(args))
    loss.backward()
    optimiser.step()
    assert loss.isfinite() and not torch.equal(before, model.audio_proj.fc1.weight)
