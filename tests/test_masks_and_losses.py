"""Masks and equations against cases small enough to work out by hand."""

import math

import pytest
import torch

import losses
from masks import MaskGenI, binary_gumbel, mask_gen_f, to_grid, to_image


# ---- masks

def test_gumbel_mask_is_binary_and_repeats_with_its_noise():
    logits, noise = torch.randn(4, 7, 7), torch.rand(4, 7, 7)
    mask = binary_gumbel(logits, noise)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mask, binary_gumbel(logits, noise))


def test_gumbel_mask_is_on_with_the_sigmoid_s_probability():
    torch.manual_seed(0)
    share = binary_gumbel(torch.full((200_000,), 1.0)).mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.005)


def test_gumbel_gradient_is_that_of_the_relaxed_sample():
    logits = torch.tensor([0.3], requires_grad=True)
    binary_gumbel(logits, torch.tensor([0.5])).sum().backward()     # u = 0.5 is no noise
    p = 1 / (1 + math.exp(-0.3))
    assert logits.grad.item() == pytest.approx(p * (1 - p), rel=1e-5)


def test_inference_shifts_by_b_over_w_and_ignores_the_slope():
    gen = MaskGenI(w=10, b=14)
    expected = [0.5, 1 / (1 + math.exp(-1.4))]
    assert gen.inference(torch.tensor([-1.4, 0.0])).tolist() == pytest.approx(expected)


def test_feature_mask_by_hand():
    M_G = torch.tensor([[[[0.0, 4.0], [1.0, 2.0]]]])                    # scaled: 0, 1, 0.25, 0.5
    expected = [1 / (1 + math.exp(-(x - 0.5) / 0.07)) for x in (0, 1, 0.25, 0.5)]
    assert mask_gen_f(M_G, (2, 2)).flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_feature_mask_is_never_all_zeros_though_its_brightest_pixel_may_lie_off_the_grid():
    least = 1 / (1 + math.exp(0.5 / 0.07))                              # 7.9e-4
    constant = mask_gen_f(torch.full((1, 1, 4, 4), -3.0), (2, 2))
    assert constant.flatten().tolist() == pytest.approx([least] * 4)
    assert mask_gen_f(torch.randn(2, 2, 8, 8) - 9, (8, 8)).amax((2, 3)).min() > 0.99
    off_the_grid = torch.full((1, 1, 4, 4), -9.0)
    off_the_grid[..., 1, 1] = 5.0               # the grid of 2 x 2 samples the pixels 0 and 2
    found = mask_gen_f(off_the_grid, (2, 2)).flatten().tolist()
    assert found == pytest.approx([least] * 4, rel=1e-4)


def test_grid_takes_the_top_left_pixel_of_each_patch_and_image_interpolates_between_centres():
    pixels = torch.arange(16.0).view(1, 1, 4, 4)
    assert to_grid(pixels, (2, 2)).flatten().tolist() == [0, 2, 8, 10]
    enlarged = to_image(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), (4, 4))
    assert torch.equal(enlarged, torch.tensor([0, 0.25, 0.75, 1]).expand(1, 1, 4, 4))


# ---- equations

def test_eq1_by_hand():
    S = torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    tau = 0.5

    def nce(right, *others):
        all_of_them = sum(math.exp(x / tau) for x in (right, *others))
        return -math.log(math.exp(right / tau) / all_of_them)
    rows, columns = (nce(1, 0) + nce(1, 0.5)) / 2, (nce(1, 0.5) + nce(1, 0)) / 2
    assert losses.info_nce(S, tau).item() == pytest.approx((rows + columns) / 2, rel=1e-6)
    # both directions count: an asymmetric matrix has different ones
    S = torch.tensor([[1.0, 0.9], [0.0, 1.0]])
    one_way, other_way = losses.info_nce_rows(S, tau), losses.info_nce_rows(S.t(), tau)
    assert losses.info_nce(S, tau).item() == pytest.approx((one_way + other_way).item() / 2)


def test_eq2_pools_under_each_pair_s_own_mask():
    v_D = torch.tensor([[[[1.0, 3.0]], [[10.0, 30.0]]]])                 # (1, 2, 1, 2)
    M_F = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])                   # (1, 2, 1, 2)
    v_F = torch.tensor([[1.0, 10.0], [2.0, 20.0]])
    assert torch.allclose(losses.masked_features(M_F, v_D)[0], v_F)


def test_eq2_of_an_empty_mask_is_zero_not_nan():
    assert losses.masked_features(torch.zeros(1, 1, 2, 2), torch.randn(1, 3, 2, 2)).abs().sum() == 0


@pytest.mark.parametrize('reading', ['paper', 'release'])
def test_an_empty_mask_leaves_eq3_and_its_gradients_bounded(reading):
    generator = torch.Generator().manual_seed(0)
    M_F = (torch.rand(3, 3, 4, 4, generator=generator) > 0.5).float()
    v_D = torch.randn(3, 8, 4, 4, generator=generator)
    A = torch.randn(3, 8, generator=generator)
    M_F[1, 1] = M_F[0, 2] = 0           # of a positive pair and of a negative one
    M_F.requires_grad_(), A.requires_grad_()
    S = losses.feature_similarities(losses.masked_features(M_F, v_D), A, reading=reading)
    losses.info_nce(S).backward()
    for gradient in (M_F.grad, A.grad):
        assert gradient.isfinite().all() and 0 < gradient.abs().max() < 100
    # the masks that are not empty: S by the formula of Eq. 2 and 3, one pair at a time
    M_F, A = M_F.detach(), A.detach()
    for i in range(3):
        for j in range(3):
            v = (M_F[i, j] * v_D[i]).sum((1, 2))
            other = A[j] if reading == 'paper' else A[i]
            right = 0.0 if v.norm() == 0 else float(v @ other / (v.norm() * other.norm()))
            assert S[i, j].item() == pytest.approx(right, abs=1e-6), (i, j)


def test_a_faint_soft_mask_is_not_taken_for_an_empty_one():
    torch.manual_seed(0)
    v_D, A, faint = torch.randn(1, 8, 4, 4), torch.randn(1, 8), torch.rand(1, 1, 4, 4)
    S = [losses.feature_similarities(losses.masked_features(scale * faint, v_D), A)
         for scale in (1, 1e-5)]
    assert S[1].item() == pytest.approx(S[0].item(), abs=1e-5)


def test_eq3_readings_compare_with_different_audios():
    A = torch.eye(2)
    v_F = torch.zeros(2, 2, 2)
    v_F[0, 1], v_F[1, 0] = A[1], A[0]    # the other's sound alone
    v_F[0, 0], v_F[1, 1] = A[0], A[1]
    # paper: S_ij = v_ij . A_j is 1 everywhere; release: S_ij = v_ij . A_i is the identity
    for reading, value in (('paper', math.log(2)), ('release', math.log(1 + math.exp(-1)))):
        S_F = losses.feature_similarities(v_F, A, reading=reading)
        assert losses.info_nce(S_F, tau=1.0).item() == pytest.approx(value)


def test_eq4_readings_by_hand():
    areas = torch.tensor([[0.2, 0.1], [0.3, 0.8]])
    # release: |0.5 - 0.4| + |0.4 / 4|; sum: 0.2 + 0.4 + 0.1 + 0.3; mean: 0.3 + 0.2
    for reading, value in (('release', 0.2), ('sum', 1.0), ('mean', 0.5)):
        found = losses.area_regulariser(areas, 0.4, 0.0, reading).item()
        assert found == pytest.approx(value, rel=1e-5)


def test_eq6_is_eq1_between_captions_and_audio():
    C, A = torch.randn(4, 8), torch.randn(4, 8)
    assert losses.acl_c(C, A).item() == pytest.approx(losses.acl_i(C, A).item())


def test_eq6_can_leave_equal_answers_out_of_the_negatives():
    A = torch.eye(3)
    C = torch.stack([A[0], A[0], A[2]])                 # two dogs and a drum
    plain = losses.acl_c(C, A, tau=1.0)
    masked = losses.acl_c(C, A, tau=1.0, answers=torch.tensor([7, 7, 1]))

    # masked: rows 1 and 2 against themselves and the drum, S = [1, 0], [0, 0]; row 3 against
    # both dogs, S = [0, 0, 1]
    def nce(right, *wrong):
        return -right + math.log(sum(math.exp(s) for s in (right, *wrong)))
    rows = (nce(1, 0) + nce(0, 0) + nce(1, 0, 0)) / 3
    columns = (nce(1, 0) + nce(0, 0) + nce(1, 0, 0)) / 3
    assert masked.item() == pytest.approx((rows + columns) / 2) and masked < plain
    distinct = losses.acl_c(C, A, tau=1.0, answers=torch.tensor([0, 1, 2]))
    assert distinct.item() == pytest.approx(plain.item())


def test_eq5_and_eq7_weigh_the_terms():
    terms = {'acl_i': torch.tensor(1.0), 'acl_f': torch.tensor(2.0), 'reg': torch.tensor(3.0)}
    weights = {'acl_i': 1.0, 'acl_f': 0.5, 'reg': 2.0, 'acl_c': 10.0}
    assert losses.total_loss(terms, weights).item() == 8
    terms['acl_c'] = torch.tensor(0.1)
    assert losses.total_loss(terms, weights).item() == pytest.approx(9)
