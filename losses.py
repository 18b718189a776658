"""Equations 1 to 7 of the paper (sections 3.3 to 3.6).

    terms = loss_terms(out)                     # Eq. 1, Eq. 2 and 3, Eq. 4, of a model.Alignment
    loss = total_loss(terms, weights)           # Eq. 5; with terms['acl_c'] of Eq. 6: Eq. 7

Symbols: A (N, D) audio-driven embeddings, v_I (B, D) and v_F (B, N, D) audio-grounded visual
embeddings at the image and at the feature level, C (B, D) caption embeddings, tau the temperature.
Pair (i, j) is image i with audio j: a positive pair if i == j, else a negative. B == N, except with
--negatives global (the last section), where each process has all N audios and B of the N images.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F

TAU = 0.07                 # temperature of Eq. 1 (section 4.1)
P_POS, P_NEG = 0.4, 0.0    # area priors p+ and p- of Eq. 4 (section 3.4)
EMPTY = 1e-6               # a mask is empty below this sum, or its v_F below this norm


# ============ 3.3 Alignment: Eq. 1, 2 and 3 ============

def cosine_similarities(x, y):
    """(B, D), (N, D) -> S (B, N), S_ij = cos(x_i, y_j)."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).t()


def info_nce_rows(S, tau=TAU):
    """InfoNCE in one direction: row i of S (B, B) is a query, its entry i the positive."""
    return F.cross_entropy(S / tau, torch.arange(len(S), device=S.device))


def info_nce(S, tau=TAU):
    """Eq. 1's symmetric InfoNCE(S): the mean over rows and over columns of S (B, B). Scalar."""
    return (info_nce_rows(S, tau) + info_nce_rows(S.t(), tau)) / 2


def acl_i(v_I, A, tau=TAU):
    """Eq. 1, L_ACL_I, of images masked by their own sounds, v_I (B, D), and A (B, D). Scalar."""
    return info_nce(cosine_similarities(v_I, A), tau)


def masked_features(M_F, v_D):
    """Eq. 2: the spatial features under each pair's mask, averaged.

    M_F (B, N, h, w), v_D (B, D, h, w) -> v_F (B, N, D)
    Paper [13]: divides by each pair's own mask sum; the release by the sum of all masks plus 1e-6.
    The two differ by a factor, which the cosine similarity takes out.
    """
    pooled = torch.einsum('bnhw,bdhw->bnd', M_F, v_D)               # (B, N, D)
    total = M_F.sum((2, 3)).unsqueeze(-1)                           # (B, N, 1)
    return pooled / torch.where(total < EMPTY, 1.0, total)          # an empty mask: v_F = 0


def feature_similarities(v_F, A, first=0, reading='paper'):
    """Eq. 3's S^F: the similarity of each pair's masked feature to an audio.

    v_F (B, N, D), A (N, D) -> S^F (B, N)
    first: the row of A at which the images' own audios begin (global negatives).
    Paper [14]: S^F_ij = v^F_ij . A_j, the audio that made the mask. The release takes A_i, the
    image's own audio (reading='release'): the masks of other sounds should not cover its source.
    Paper [15]: section 3.3 warns of empty masks, which M_I in the place of M_F can be (Table 13),
    but does not say what S^F is then. v_F is 0, and the cosine's gradient would divide by its norm;
    so S is set to 0, without a gradient.
    """
    audio = A.unsqueeze(0)                                          # (1, N, D): A_j
    if reading == 'release':
        audio = A[first:first + len(v_F)].unsqueeze(1)              # (B, 1, D): A_i
    empty = v_F.detach().norm(dim=-1) < EMPTY                       # (B, N)
    v_F = torch.where(empty.unsqueeze(-1), 1.0, v_F)        # a v_F of 0 has no finite gradient
    S = F.cosine_similarity(v_F, audio, dim=-1)                     # (B, N)
    return S.masked_fill(empty, 0.0)


# ============ 3.4 Area regularisation: Eq. 4 ============

def area_regulariser(areas, p_pos=P_POS, p_neg=P_NEG, reading='release'):
    """Eq. 4, L_Reg: masks of positive pairs should cover p_pos of an image, of negatives p_neg.

    areas (B, B), areas[i, j] the mean of the mask of image i under audio j -> scalar
    Paper [16]: Eq. 4 is a sum of absolute differences over B positives and B(B - 1) negatives
    (reading='sum'). At B = 16 that is about twenty times any other term (in the miniature, before
    and after training), which cannot be meant with all lambdas 1. The default is the release's:
    |mean of the positives - p_pos| + |sum of the negatives / B^2 - p_neg|, the absolute value of a
    mean, divided by B^2 although there are only B^2 - B negatives. reading='mean' is Eq. 4 with
    each sum divided by its count.
    """
    B = len(areas)
    positive = areas.diagonal()                                     # (B,)
    # Negatives are the total minus the diagonal: to select them by a boolean mask, the CPU would
    # have to synchronise with the GPU and ask how many there are.
    if reading == 'release':
        negative = (areas.sum() - positive.sum()) / B**2
        return (positive.mean() - p_pos).abs() + (negative - p_neg).abs()
    off_negative = (areas - p_neg).abs().sum() - (positive - p_neg).abs().sum()
    off_positive = (positive - p_pos).abs()                         # (B,)
    if reading == 'sum':
        return off_positive.sum() + off_negative
    return off_positive.mean() + off_negative / max(1, B * (B - 1))


def mean_areas(areas, first=0):
    """For the log: areas (B, N) -> their means over positive and over negative pairs."""
    B, N = areas.shape
    positive = areas.diagonal(first).sum()
    return {'area_pos': positive / B, 'area_neg': (areas.sum() - positive) / (B * (N - 1))}


# ============ 3.6 Caption alignment: Eq. 6 ============

def acl_c(C, A, tau=TAU, answers=None):
    """Eq. 6, L_ACL_C, of the language model's answers, C (B, D), and A (B, D). Scalar.

    Paper [30]: plain InfoNCE, so two pairs with the same answer (two dogs) are each other's
    negatives though C_i = C_j. answers (B,), equal numbers for equal answers, takes such pairs out
    of the denominators.
    """
    S = cosine_similarities(C, A)                                   # (B, B)
    if answers is not None:
        equal = answers[:, None] == answers[None, :]
        itself = torch.eye(len(S), dtype=torch.bool, device=S.device)
        S = S.masked_fill(equal & ~itself, float('-inf'))
    return info_nce(S, tau)


def acl_c_of_answered(C, answers, A, tau=TAU, same_answers='negatives'):
    """Eq. 6 over the pairs of a batch that have an answer.

    C (texts, D), a row per different answer; answers (B,), on the CPU, each pair's row of C or -1;
    A (N, D) -> scalar. same_answers: 'negatives', or 'masked', as acl_c does with `answers`.
    Paper [28]: silent on pairs to which the language model has no answer. They take no part,
    neither as queries nor as negatives; with fewer than two answers there is nothing to contrast.
    """
    answers = rows_of_all(answers, len(A))                              # (N,)
    pairs = (answers >= 0).nonzero()[:, 0]  # on the CPU: nonzero would synchronise with a GPU
    if len(pairs) < 2:
        return 0.0 * A.sum()                # has a gradient, as DDP waits for that of every weight
    answers = answers[pairs].to(A.device)
    pairs = pairs.to(A.device)
    return acl_c(C[answers], A[pairs], tau, answers if same_answers == 'masked' else None)


# ============ 3.5 and 3.6 Training objective: Eq. 5 and 7 ============

def loss_terms(out, tau=TAU, p_pos=P_POS, p_neg=P_NEG, area='release', acl_f='paper'):
    """The terms of Eq. 5 in float32. out: a model.Alignment -> {'acl_i', 'acl_f', 'reg'}: scalars

    area, acl_f: the readings of Eq. 4 and of Eq. 3. With --negatives global: out.A has the audios
    of all processes, and the terms are over all their pairs. Else rows_of_all changes nothing.
    """
    A = out.A.float()                                                   # (N, D)
    N = len(A)
    v_I = rows_of_all(out.v_I.float(), N)                               # (N, D)
    v_F = masked_features(out.M_F.float(), out.v_D.float())             # (B, N, D), Eq. 2
    S_F = feature_similarities(v_F, A, out.first, acl_f)                # (B, N)
    S_F = rows_of_all(S_F, N)                                           # (N, N)
    areas = rows_of_all(out.areas.float(), N)                           # (N, N)
    return {'acl_i': acl_i(v_I, A, tau),                                # Eq. 1
            'acl_f': info_nce(S_F, tau),                                # Eq. 3
            'reg': area_regulariser(areas, p_pos, p_neg, area)}         # Eq. 4


def total_loss(terms, weights):
    """Eq. 5, and Eq. 7 where terms holds 'acl_c': the sum of lambda_k L_k. Scalar.

    weights: {'acl_i', 'acl_f', 'reg', 'acl_c': lambda}. A lambda of 0 leaves its term out.
    """
    return sum(weights[name] * value for name, value in terms.items() if weights[name])


# ============ --negatives global: the pairs of all processes as each other's negatives ============
# Each of P processes has B pairs, N = P * B in all. It grounds its B images under all N audios,
# which gives B rows of the N x N pairs of Eq. 3 and 4. A and v_I (B, D) and the rows (B, N) of S^F
# and of the areas are all-gathered: each process then has what a single one with N pairs has.
# (Otherwise B == N, and rows_of_all gathers nothing.)
#
# The gradients, too, are those of a single process. Every process computes the complete loss. In
# the backward pass all_gather() sums each row's gradients over the P processes, which gives P times
# the gradient, and DistributedDataParallel's mean over the processes divides by P.

class Gather(torch.autograd.Function):
    """All-gather with gradients: x (B, ...) of each process -> (N, ...), in order of ranks."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format)
                 for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)                                         # (N, ...)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()                           # (N, ...)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]      # (B, ...), its own rows


def all_gather(x):
    """All-gather with gradients: x (B, ...), B the same on each rank -> (N, ...) of all ranks."""
    if not dist.is_initialized():
        return x
    return Gather.apply(x.float() if x.is_floating_point() else x)


def rows_of_all(x, N):
    """x (B, ...) -> (N, ...): x itself if B == N, else the rows of all processes."""
    return x if len(x) == N else all_gather(x)


def first_own_row(B):
    """The row of all_gather(x) at which this process's own B rows begin: rank * B."""
    return dist.get_rank() * B if dist.is_initialized() else 0
