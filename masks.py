"""Mask generators of section 3.2: from the grounder's logits M_G to the masks M_I and M_F.

MaskGen_I  a learnable scalar projection w * M_G + b, then a binary Gumbel-Max sample that passes gradients
           straight through; at inference sigmoid(M_G + b / w) (section 3.7).
MaskGen_F  min-max normalisation of each map and a soft threshold, read off at the feature grid (Eq. 2 uses it).

Shapes: B images, N audios, H W pixels, h w feature cells. Nothing here knows of CLIP or of sound: the functions
take logits of any shape whose last two dimensions are the map.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

# Paper: it gives no value for any of these; all are the released code's.
W_INIT, B_INIT = 10.0, 14.0           # initial w and b of MaskGen_I
GUMBEL_TEMPERATURE = 1.0
SOFT_THRESHOLD, SOFTNESS = 0.5, 0.07  # MaskGen_F's soft threshold and its temperature


# ------------------------------------------------------------------------------------------------
# MaskGen_I: binary masks on pixels
# ------------------------------------------------------------------------------------------------

def binary_gumbel(logits, uniform=None, temperature=GUMBEL_TEMPERATURE):
    """Sample a hard 0/1 mask whose gradient is that of the relaxed sample (Jang et al., 2017).

    The difference of two Gumbel variables is logistic, so for two classes one uniform number per pixel is enough:
    P(mask = 1) = sigmoid(logits).

    logits: any shape; uniform: the same shape, in (0, 1), drawn here when None (give it to repeat a sample).
    Returns a mask of that shape, exactly 0 or 1 in value.
    """
    if uniform is None:
        tiny = torch.finfo(torch.float32).tiny
        uniform = torch.rand_like(logits, dtype=torch.float32).clamp(min=tiny)
    logistic = uniform.log() - (-uniform).log1p()
    relaxed = torch.sigmoid((logits + logistic) / temperature)
    hard = (relaxed > 0.5).to(relaxed.dtype)
    return hard + (relaxed - relaxed.detach())  # value: hard, to the last bit; gradient: relaxed


class MaskGenI(nn.Module):
    """MaskGen_I (section 3.2): the two scalars w and b are all that is learned between M_G and the image masks."""

    def __init__(self, w=W_INIT, b=B_INIT):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(w)))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def forward(self, M_G, uniform=None):
        """M_G: (..., H, W) logits -> M_I: (..., H, W) of zeros and ones, differentiable."""
        return binary_gumbel(self.w * M_G + self.b, uniform)

    def inference(self, M_G):
        """Section 3.7: M_G (..., H, W) -> heatmap in 0..1, without noise and without the slope w.

        Paper: sigmoid(M_G + b/w), not sigmoid(w * M_G + b). Both cross 0.5 at the same place.
        """
        return torch.sigmoid(M_G + self.b / self.w)


def soft_image_mask(M_G):
    """sigma(M_G), the soft image mask of Table 13's third row: (..., H, W) -> (..., H, W), no w, no b, no noise."""
    return torch.sigmoid(M_G)


# ------------------------------------------------------------------------------------------------
# MaskGen_F: soft masks on feature cells
# ------------------------------------------------------------------------------------------------

def mask_gen_f(M_G, grid):
    """MaskGen_F (section 3.2): each map stretched to 0..1, softly thresholded, brought to the feature grid.

    M_G: (B, N, H, W) logits, grid: (h, w) -> M_F: (B, N, h, w) in 0..1. Unlike M_I it is never all
    zeros: no cell is below sigmoid(-0.5 / 0.07) = 7.9e-4, so Eq. 2 never divides by 0. The
    brightest pixel of a map comes out near 1, but where it lies between the pixels that the grid
    samples, every cell may be as small as that.
    """
    low = M_G.amin((-2, -1), keepdim=True) - 1e-7
    high = M_G.amax((-2, -1), keepdim=True) + 1e-7
    # the released 1e-7 are lost in float32 beside a logit of 3, so a constant map would still divide by zero
    stretched = (M_G - low) / (high - low).clamp(min=1e-7)
    return to_grid(torch.sigmoid((stretched - SOFT_THRESHOLD) / SOFTNESS), grid)


# ------------------------------------------------------------------------------------------------
# Between the two resolutions (Table 13 reuses each mask at the other's place)
# ------------------------------------------------------------------------------------------------

def to_grid(mask, grid):
    """(B, N, H, W) -> (B, N, h, w) by nearest neighbour: the top-left pixel of each patch (released code)."""
    return F.interpolate(mask, size=grid, mode='nearest')


def to_image(mask, size):
    """(B, N, h, w) -> (B, N, H, W), bilinear.

    Paper: 4.3.6 says the upsampled M_F has blurred borders but not how it is upsampled; bilinear is our reading.
    """
    return F.interpolate(mask, size=size, mode='bilinear', align_corners=False)
