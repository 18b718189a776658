"""Equations 1 to 7 of the paper (sections 3.3 to 3.6), one function each.

Symbols: A (N, D) audio-driven embeddings, v_I (B, D) and v_F (B, N, D) audio-grounded visual embeddings at the
image and at the feature level, C (B, D) caption embeddings, tau the temperature; pair (i, j) is image i with audio j
and i == j is the positive pair, so in every loss B == N.
"""

import torch
import torch.nn.functional as F

TAU = 0.07                 # temperature of Eq. 1 (section 4.1)
P_POS, P_NEG = 0.4, 0.0    # area priors p+ and p- of Eq. 4 (section 3.4)
EMPTY = 1e-6               # a mask of a smaller sum, or its v_F of a smaller norm, counts as empty


# ------------------------------------------------------------------------------------------------
# 3.3 Alignment: Eq. 1, 2 and 3
# ------------------------------------------------------------------------------------------------

def cosine_similarities(x, y):
    """(B, D), (N, D) -> S (B, N), S_ij = cos(x_i, y_j)."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).t()


def info_nce_rows(S, tau=TAU):
    """One direction of InfoNCE: each row of S (B, B) is a query, its diagonal entry the right answer. Scalar."""
    return F.cross_entropy(S / tau, torch.arange(len(S), device=S.device))


def info_nce(S, tau=TAU):
    """Eq. 1's symmetric InfoNCE(S): the mean over rows and columns of the (B, B) similarities S. Scalar."""
    return (info_nce_rows(S, tau) + info_nce_rows(S.t(), tau)) / 2


def acl_i(v_I, A, tau=TAU):
    """Eq. 1, L_ACL_I: each image, masked by its own sound, against every audio. v_I (B, D), A (B, D). Scalar."""
    return info_nce(cosine_similarities(v_I, A), tau)


def masked_features(M_F, v_D, divisor='paper'):
    """Eq. 2: the spatial features pooled under each pair's mask.

    M_F: (B, N, h, w), v_D: (B, D, h, w) -> v_F: (B, N, D).
    Paper: divides by each pair's own mask sum; the release by the sum of all masks plus 1e-6
    (divisor='release'). Every use normalises v_F to unit length, so the two differ by that 1e-6 only.
    """
    pooled = torch.einsum('bnhw,bdhw->bnd', M_F, v_D)          # (B, N, D)
    if divisor == 'release':
        return pooled / (M_F.sum() + 1e-6)
    total = M_F.sum((2, 3)).unsqueeze(-1)                           # (B, N, 1)
    return pooled / torch.where(total < EMPTY, 1.0, total)         # an empty mask: v_F = 0, not 0/0


def feature_similarities(v_F, A, first=0, reading='paper'):
    """Eq. 3's S^F (B, N): each pair's masked feature v_F (B, N, D) against an audio of A (N, D).

    first: the row of A at which the images' own audios begin, where A holds those of other processes too.
    Paper: S^F_ij = v^F_ij . A_j, the audio that made the mask. The release compares the mask of pair (i, j) with
    A_i, the image's own audio (reading='release'): it asks that other sounds' masks hold nothing of this sound.
    Paper: silent on an empty mask, which M_I in the place of M_F can be (Table 13). It has nothing
    to compare: its S is 0 and passes no gradient back, where the cosine's own would be divided by
    the norm of v_F = 0.
    """
    own = A[first:first + len(v_F)].unsqueeze(1)                    # (B, 1, D)
    empty = v_F.detach().norm(dim=-1) < EMPTY                       # (B, N)
    v_F = torch.where(empty.unsqueeze(-1), 1.0, v_F)            # not 0: its gradient is not finite
    S = F.cosine_similarity(v_F, A.unsqueeze(0) if reading == 'paper' else own, dim=-1)
    return S.masked_fill(empty, 0.0)


def acl_f(v_F, A, tau=TAU, reading='paper'):
    """Eq. 3, L_ACL_F: every pair's masked feature v_F (B, B, D) against an audio of A (B, D). Scalar."""
    return info_nce(feature_similarities(v_F, A, reading=reading), tau)


# ------------------------------------------------------------------------------------------------
# 3.4 Area regularisation: Eq. 4
# ------------------------------------------------------------------------------------------------

def area_regulariser(areas, p_pos=P_POS, p_neg=P_NEG, reading='release'):
    """Eq. 4, L_Reg: the masks of positive pairs should cover p_pos of the image, those of negative pairs p_neg.

    areas: (B, B), areas[i, j] the mean of the mask of image i under audio j. Scalar.

    Paper: Eq. 4 is a sum of absolute differences over B positives and B(B - 1) negatives (reading='sum'). At B = 16
    that is about a hundred times any other term, and with all lambdas 1 it cannot be meant. The default is the
    release's: |mean of the positives - p_pos| + |sum of the negatives / B^2 - p_neg|, the absolute value of the
    mean, with B^2 below the line although there are only B^2 - B negatives. reading='mean' is Eq. 4 with both sums
    divided by their number of terms.
    """
    B = len(areas)
    positive = areas.diagonal()                                     # (B,)
    # the negatives are all without the diagonal: picking them by a mask would make a GPU wait for their number
    if reading == 'release':
        return (positive.mean() - p_pos).abs() + ((areas.sum() - positive.sum()) / B**2 - p_neg).abs()
    positive, negatives = (positive - p_pos).abs(), (areas - p_neg).abs().sum() - (positive - p_neg).abs().sum()
    if reading == 'sum':
        return positive.sum() + negatives
    return positive.mean() + negatives / max(1, B * (B - 1))


# ------------------------------------------------------------------------------------------------
# 3.6 Caption alignment: Eq. 6
# ------------------------------------------------------------------------------------------------

def acl_c(C, A, tau=TAU, answers=None):
    """Eq. 6, L_ACL_C: caption embeddings C (B, D) of the language model's answers against A (B, D). Scalar.

    Paper: plain InfoNCE, in which two pairs with one answer (two dogs) are each other's negatives though C_i = C_j.
    answers (B,), equal numbers for equal answers, takes such twins out of the denominators.
    """
    S = cosine_similarities(C, A)                                   # (B, B)
    if answers is not None:
        twins = answers[:, None] == answers[None, :]
        S = S.masked_fill(twins & ~torch.eye(len(S), dtype=torch.bool, device=S.device), float('-inf'))
    return info_nce(S, tau)


# ------------------------------------------------------------------------------------------------
# 3.5 and 3.6 Training objective: Eq. 5 and 7
# ------------------------------------------------------------------------------------------------

def total_loss(terms, weights):
    """Eq. 5, and Eq. 7 when terms holds 'acl_c': the sum of lambda_k * L_k.

    terms, weights: dicts of scalars under the same names (acl_i, acl_f, reg, acl_c). A term left out counts 0.
    """
    return sum(weights[name] * value for name, value in terms.items())
