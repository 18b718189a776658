"""--negatives global in one process: others' rows in their places, every image's own sound."""

import pytest
import torch

import losses
import model as model_file
from tiny import SIZE, tiny, tiny_root, training        # noqa: F401


def test_rows_come_in_the_order_of_ranks_and_gradients_go_back_to_their_own(monkeypatch):
    """Process 1 of 3, of which the others have 10 less and 10 more."""
    def all_gather(parts, x):
        for k, part in enumerate(parts):
            part.copy_(x + 10 * (k - 1))

    for key, value in (('is_initialized', lambda: True), ('get_rank', lambda: 1),
                       ('get_world_size', lambda: 3), ('all_gather', all_gather),
                       ('all_reduce', lambda total: total.mul_(2))):
        monkeypatch.setattr(losses.dist, key, value)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    every = losses.all_gather(x)
    assert every.tolist() == [-9, -8, 1, 2, 11, 12] and losses.first_own_row(2) == 2
    (every * torch.arange(6.0)).sum().backward()
    assert x.grad.tolist() == [4, 6]            # rows 2 and 3, asked for by all: here twice
    assert losses.all_gather(torch.tensor([1, 2])).dtype == torch.int64


def test_every_image_is_grounded_under_all_sounds_and_masked_by_its_own(tiny, monkeypatch):
    model, _ = model_file.load_model('miniature')
    torch.manual_seed(0)
    image = torch.randn(2, 3, SIZE, SIZE)
    wav = torch.rand(2, 8000) - 0.5
    others = torch.randn(3, 16)
    monkeypatch.setattr(model_file, 'all_gather', lambda A: torch.cat([others, A]))
    monkeypatch.setattr(model_file, 'first_own_row', lambda b: 3)
    local = model(image, wav, 'soft')
    every = model(image, wav, 'soft', negatives='global')
    assert local.A.shape == (2, 16) and local.first == 0 and every.first == 3
    assert every.M_G.shape == (2, 5, SIZE, SIZE)
    assert torch.allclose(every.A, torch.cat([others, local.A]), atol=1e-6)
    assert torch.allclose(every.M_G[:, 3:], local.M_G, atol=1e-5)
    assert torch.allclose(every.M_I, local.M_I, atol=1e-5)
    assert torch.allclose(every.v_I, local.v_I, atol=1e-4)


@pytest.mark.parametrize('acl_f', ['paper', 'release'])
def test_gathered_terms_are_those_of_one_process_with_all_pairs(acl_f, monkeypatch):
    torch.manual_seed(0)
    A, v_I, v_D = (torch.randn(*shape) for shape in ((4, 8), (4, 8), (4, 8, 2, 2)))
    M_F = torch.rand(4, 4, 2, 2)
    areas = torch.rand(4, 4)
    C = torch.randn(3, 8)
    answers = torch.tensor([0, 2, -1, 1])

    def terms(mine, first, gather):
        monkeypatch.setattr(losses, 'all_gather', gather)
        out = model_file.Alignment(A=A, M_G=None, areas=areas[mine], M_I=None, v_I=v_I[mine],
                                   M_F=M_F[mine], v_D=v_D[mine], first=first)
        found = losses.loss_terms(out, acl_f=acl_f)
        found['acl_c'] = losses.acl_c_of_answered(C, answers[mine], A)
        return {key: value.item() for key, value in found.items()}

    alone = terms(slice(0, 4), 0, None)                     # not called
    first_half = []
    terms(slice(0, 2), 0, lambda x: first_half.append(x) or torch.cat([x, x]))
    both = terms(slice(2, 4), 2, lambda x: torch.cat([first_half.pop(0), x]))
    assert both == pytest.approx(alone) and not first_half
    assert set(alone) == {'acl_i', 'acl_f', 'reg', 'acl_c'}


def test_the_choice_reaches_the_model(training):
    for choice in ('local', 'global'):
        assert training('--negatives', choice, folder=choice).forwards[0]['negatives'] == choice
