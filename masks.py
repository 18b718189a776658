"""Mask generators of Section 3.2: from the grounder's logits M_G to the masks M_I and M_F.

MaskGen_I  w * M_G + b, then a binary Gumbel-Max sample with a straight-through gradient; at
           inference sigmoid(M_G + b / w) instead, without noise (Section 3.7).
MaskGen_F  min-max normalisation of each map and a soft threshold, at the feature grid (Eq. 2).

Shapes: B images, N audios, H W pixels, h w feature cells.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

# Paper [9]: gives no value for any of these; all are the release's.
W_INIT, B_INIT = 10.0, 14.0           # initial w and b of MaskGen_I
GUMBEL_TEMPERATURE = 1.0
SOFT_THRESHOLD, SOFTNESS = 0.5, 0.07  # MaskGen_F's soft threshold and its temperature


# ---- MaskGen_I: binary masks on pixels ------------------------------------------------------

def binary_gumbel(logits, uniform=None):
    """Sample a 0/1 mask with the gradient of the relaxed sample (Jang et al., 2017).

    P(mask = 1) = sigmoid(logits). One uniform number per pixel is enough, as the difference of two
    Gumbel variables has a logistic distribution. uniform: numbers in (0, 1) of the logits' shape;
    drawn here if None.
    """
    if uniform is None:
        tiny = torch.finfo(torch.float32).tiny
        uniform = torch.rand_like(logits, dtype=torch.float32).clamp(min=tiny)
    logistic = uniform.log() - (-uniform).log1p()
    relaxed = torch.sigmoid((logits + logistic) / GUMBEL_TEMPERATURE)
    hard = (relaxed > 0.5).to(relaxed.dtype)
    return hard + (relaxed - relaxed.detach())      # straight-through: hard, gradient of relaxed


class MaskGenI(nn.Module):
    """MaskGen_I (Section 3.2). Its scalars w and b are learned; MaskGen_F has no parameters."""

    def __init__(self, w=W_INIT, b=B_INIT):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(w)))
        self.b = nn.Parameter(torch.tensor(float(b)))

    def forward(self, M_G, uniform=None):
        """M_G: (..., H, W) logits -> M_I: (..., H, W) of zeros and ones, differentiable."""
        return binary_gumbel(self.w * M_G + self.b, uniform)

    def inference(self, M_G):
        """Section 3.7: M_G (..., H, W) -> heatmap in 0..1, without noise and without the slope w.

        Paper [12]: sigmoid(M_G + b/w), not sigmoid(w * M_G + b). Both are 0.5 at the same M_G.
        """
        return torch.sigmoid(M_G + self.b / self.w)


# ---- MaskGen_F: soft masks on feature cells -------------------------------------------------

def mask_gen_f(M_G, grid):
    """MaskGen_F (Section 3.2): each map scaled to 0..1, softly thresholded, at the feature grid.

    M_G: (B, N, H, W) logits, grid: (h, w) -> M_F: (B, N, h, w) in 0..1. Unlike M_I it is never all
    zeros: no cell is below sigmoid(-0.5 / 0.07) = 7.9e-4, so Eq. 2 never divides by 0. The largest
    logit of a map becomes almost 1, but to_grid may skip its pixel.
    """
    low = M_G.amin((-2, -1), keepdim=True) - 1e-7                   # (B, N, 1, 1)
    high = M_G.amax((-2, -1), keepdim=True) + 1e-7
    # In float32, 3 + 1e-7 (release) is 3, so a constant map would divide by 0 without the clamp.
    stretched = (M_G - low) / (high - low).clamp(min=1e-7)
    return to_grid(torch.sigmoid((stretched - SOFT_THRESHOLD) / SOFTNESS), grid)


# ---- Between the two resolutions (Table 13 uses each mask in the place of the other) --------

def to_grid(mask, grid):
    """Reduce masks to the feature grid: (B, N, H, W) -> (B, N, h, w).

    Paper [66]: does not say how. Nearest neighbour takes the top-left pixel of a patch (release).
    """
    return F.interpolate(mask, size=grid, mode='nearest')


def to_image(mask, size):
    """Enlarge masks to the size of the image: (B, N, h, w) -> (B, N, H, W).

    Paper [18]: 4.3.6 mentions blurred borders, but not how M_F is upsampled. Bilinear is ours.
    """
    return F.interpolate(mask, size=size, mode='bilinear', align_corners=False)
