"""A plain reading of Sections 3.2 and 3.3, with which the speed of model.py is compared.

Section 3.2 and Eq. 2 as they stand on the page: for each audio, all images go through the grounder.
The vision encoder runs once per audio over all B images, once for v_D and once on the masked
images: B + 2 times, as in the released code, with all twelve layers although the decoder reads no
further than the tenth. The passes are transformers' own.

Shapes: B images, N audios, H W pixels, h w feature cells, D embedding.
"""

import torch
import torch.nn.functional as F

from masks import mask_gen_f
from model import Alignment


def plain_reading(model, image, wav, noise, features=None):
    """model(image, wav, noise=noise), with nothing shared between audios. -> model.Alignment"""
    clip = model.clipseg.clip
    patch = model.clipseg.config.vision_config.patch_size
    B, _, H, W = image.shape
    A = model.embed_audio(wav, features)                                    # (B, D)
    v_D = spatial_features(clip, image, (H // patch, W // patch))           # (B, D, h, w)
    M_G = []
    M_I = []
    M_F = []
    for j in range(B):                              # all images under audio j
        hidden = clip.vision_model(image, output_hidden_states=True).hidden_states
        activations = [hidden[i + 1] for i in model.clipseg.extract_layers]
        logits = model.clipseg.decoder(activations, A[j].expand(B, -1)).logits.unsqueeze(1)
        if logits.shape[-1] != W:
            logits = F.interpolate(logits, size=(H, W), mode='bicubic', align_corners=False)
        M_G.append(logits.float())                                          # (B, 1, H, W)
        M_I.append(model.masker_i(M_G[j], noise[0][:, j:j + 1]))            # (B, 1, H, W)
        M_F.append(mask_gen_f(M_G[j], (H // patch, W // patch)))            # (B, 1, h, w)
    M_G, M_I, M_F = (torch.cat(maps, 1) for maps in (M_G, M_I, M_F))        # (B, B, ...)
    positive = M_G.diagonal().permute(2, 0, 1).unsqueeze(1)                 # (B, 1, H, W)
    positive = model.masker_i(positive, noise[1])
    v_I = clip.get_image_features(image * positive).pooler_output           # (B, D)
    return Alignment(A, M_G, M_I.mean((2, 3)), positive, v_I, M_F, v_D)


def spatial_features(clip, image, grid):
    """v_D: the last layer by its values alone. image: (B, 3, H, W), grid: (h, w) -> (B, D, h, w)"""
    vision = clip.vision_model
    last = vision.encoder.layers[-1]
    x = vision(image, output_hidden_states=True).hidden_states[-2]          # (B, 1 + hw, width)
    x = x + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(x)))
    x = vision.post_layernorm(x + last.mlp(last.layer_norm2(x)))
    return clip.visual_projection(x[:, 1:]).mT.unflatten(2, grid)
