"""At the paper preset's sizes (ViT-B/16 at 352 x 352, 12-layer BEATs) a training step runs."""

import losses
import train
from model import PRESETS
from speed import bench


def test_a_training_step_at_batch_2_with_full_size_backbones():
    config = PRESETS['paper']
    assert (config.image_size, config.seconds, config.w, config.b) == (352, 10.0, 10.0, 14.0)
    args = train.parse_args(['--preset', 'paper'])
    assert (args.epochs, args.batch_size, args.lr, args.lr_schedule) == (20, 16, 1e-4, 'constant')
    assert (args.weight_decay, args.tau, args.p_pos, args.p_neg) == (1e-4, 0.07, 0.4, 0.0)
    assert (args.lambda_i, args.lambda_f, args.lambda_reg) == (1, 1, 1)
    model = bench.build('paper').train()
    assert model.audio_proj.fc1.weight.shape == (2304, 2304)
    assert model.audio_proj.fc2.weight.shape == (512, 2304)
    out = model(**bench.random_batch(2, config.image_size, config.seconds))
    assert out.M_G.shape == (2, 2, 352, 352) and out.v_D.shape == (2, 512, 22, 22)
    assert out.M_F.shape == (2, 2, 22, 22)
    loss = sum(losses.loss_terms(out).values())
    loss.backward()
    assert loss.isfinite() and 0 < model.audio_proj.fc1.weight.grad.abs().sum() < float('inf')
