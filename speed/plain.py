"""A plain reading of Sections 3.2 and 3.3, with which the speed of model.py is compared.

They are taken word by word, with transformers' own passes: for each audio, all images go through
CLIPSeg, hence through the vision encoder. It runs once more for v_D and once on the masked images,
so B + 2 times, as in the released code.

Shapes: B images and as many audios, H W pixels, h w feature cells, D embedding.
"""

import torch
import torch.nn.functional as F

from masks import mask_gen_f
from model import Alignment


def plain_reading(model, image, wav, features=None):
    """model(image, wav, features=features), with nothing shared between audios -> Alignment"""
    A = model.embed_audio(wav, features)                            # (B, D)

    # 3.2: all images, grounded with each audio, and their masks
    v_D = spatial_features(model.clipseg, image)                    # (B, D, h, w)
    M_G = [ground(model.clipseg, image, a) for a in A]              # B of (B, 1, H, W)
    M_G = torch.cat(M_G, 1)                                         # (B, B, H, W)
    M_I = model.masker_i(M_G)                                       # (B, B, H, W)
    M_F = mask_gen_f(M_G, v_D.shape[-2:])                           # (B, B, h, w)

    # 3.3: each image, masked by its own audio, with noise of its own (as in model.py)
    own_M_G = M_G.diagonal().permute(2, 0, 1).unsqueeze(1)          # (B, 1, H, W)
    own_M_I = model.masker_i(own_M_G)                               # (B, 1, H, W)
    v_I = model.clipseg.clip.get_image_features(image * own_M_I).pooler_output      # (B, D)
    return Alignment(A, M_G, M_I.mean((2, 3)), own_M_I, v_I, M_F, v_D)


def ground(clipseg, image, a):
    """All images under one audio. image: (B, 3, H, W), a: (D,) -> logits (B, 1, H, W)"""
    condition = a.expand(len(image), -1)                            # (B, D)
    logits = clipseg(pixel_values=image, conditional_embeddings=condition).logits
    return F.interpolate(logits.unsqueeze(1), size=image.shape[-2:], mode='bicubic')


def spatial_features(clipseg, image):
    """v_D: CLIP's last layer by its values alone. image: (B, 3, H, W) -> (B, D, h, w)"""
    vision = clipseg.clip.vision_model
    last = vision.encoder.layers[-1]
    x = vision(image, output_hidden_states=True).hidden_states[-2]  # (B, 1 + hw, width)
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
    x = vision.post_layernorm(x + last.mlp(last.layer_norm2(x)))
    x = clipseg.clip.visual_projection(x[:, 1:])                    # (B, hw, D)
    h = image.shape[2] // clipseg.config.vision_config.patch_size
    return x.mT.unflatten(2, (h, -1))
