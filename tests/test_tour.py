"""docs/tour.ipynb: its cells run in order, and what its text says of their results is so."""

import json
import os
import re
import sys
from types import SimpleNamespace

import matplotlib
import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT
from miniature import world

NOTEBOOK = json.loads((ROOT / 'docs/tour.ipynb').read_text(encoding='utf-8'))
CODE = [''.join(c['source']) for c in NOTEBOOK['cells'] if c['cell_type'] == 'code']
TEXT = [''.join(c['source']) for c in NOTEBOOK['cells'] if c['cell_type'] == 'markdown']


@pytest.fixture(scope='module')
def tour(small_world):
    """The names that the notebook has defined at its end, run in docs/ on the small world."""
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    player = SimpleNamespace(Audio=lambda data, rate: (data, rate), display=lambda *shown: None)
    space = {}
    with pytest.MonkeyPatch.context() as patch, matplotlib.rc_context(), torch.random.fork_rng():
        patch.chdir(ROOT / 'docs')
        patch.setattr(sys, 'path', [*sys.path])
        patch.setattr(world, 'build', lambda root: small_world)
        patch.setitem(sys.modules, 'IPython.display', player)       # a notebook has it
        for number, code in enumerate(CODE, 1):
            exec(compile(code, f'code cell {number} of docs/tour.ipynb', 'exec'), space)
            for figure in map(plt.figure, plt.get_fignums()):
                figure.canvas.draw()
            plt.close('all')
    return SimpleNamespace(**space)


# ---- the file

def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK['nbformat'], NOTEBOOK['nbformat_minor']) == (4, 5)
    ids = [cell['id'] for cell in NOTEBOOK['cells']]
    assert len({*ids}) == len(ids)
    assert all(re.fullmatch(r'[\w-]{1,64}', name, re.ASCII) for name in ids)
    for cell in NOTEBOOK['cells']:
        if cell['cell_type'] == 'code':
            assert cell['outputs'] == [] and cell['execution_count'] is None
    assert not re.search(r'''['"(](/\w|[A-Z]:\\)''', '\n'.join(CODE + TEXT))    # absolute paths


def test_cells_are_few_and_short_and_each_is_explained():
    assert len(CODE) <= 20
    for code in CODE:
        lines = code.splitlines()
        assert len(lines) <= 14 and max(map(len, lines)) <= 100, code
    kinds = [cell['cell_type'] for cell in NOTEBOOK['cells']]
    assert kinds == ['markdown', 'code'] * len(CODE)
    for text in TEXT[1:]:
        assert re.search(r'\((Section|Sections|Figure) \d', text), text
    headings = ' '.join(re.findall(r'\*\*Equations? ([\d, and]+)', '\n'.join(TEXT)))
    assert re.findall(r'\d', headings) == [*'1234567']


@pytest.mark.parametrize('folder', ['.', 'docs'])
def test_the_first_cell_makes_the_repository_importable(folder, monkeypatch):
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.setattr(sys, 'path', [place for place in sys.path if place != str(ROOT)])
    with matplotlib.rc_context():
        exec(CODE[0], {})
    assert os.getcwd() == sys.path[0] == str(ROOT)


# ---- what its text says

def test_only_the_projection_and_w_and_b_are_trained(tour):
    trained = {name.split('.')[0] for name, p in tour.model.named_parameters() if p.requires_grad}
    assert trained == {'audio_proj', 'masker_i'}


def test_attention_sums_to_one_and_is_what_makes_the_token(tour):
    assert tour.attention.shape == (2, 1, 96)
    assert torch.allclose(tour.attention.sum(-1), torch.ones(2, 1), atol=1e-5)
    projection = tour.model.audio_proj
    patches = projection.fc2(F.gelu(projection.fc1(tour.features)))         # (2, 96, 128)
    assert torch.allclose(tour.attention @ patches, tour.tokens, atol=1e-4)
    assert not projection.fga.reduce_potentials[0]._forward_hooks


def test_the_token_is_nearest_to_the_name_of_the_object_and_so_is_A(tour):
    assert tour.nearest == tour.names
    assert tour.found == tour.names
    own = torch.tensor([tour.interactive.classes.index(name) for name in tour.interactive.classes])
    nearest = tour.losses.cosine_similarities(tour.one_of_each, tour.texts).argmax(1)
    assert (nearest == own).float().mean() > 0.9


def test_both_masks_are_what_the_text_calls_them(tour):
    assert tour.M_I.detach().unique().tolist() == [0, 1]
    assert tour.M_F.min() > 0 and tour.M_F.max() < 1
    assert tour.cells.shape == (1, 1, 12, 12)
    hard, soft = tour.slopes
    assert (hard >= 0).all() and hard.max() > 0
    middle = (tour.M_F.detach()[0, 0] - 0.5).abs() < 0.3                    # the edge
    assert soft[middle].mean() > 10 * soft[~middle].mean()


def test_the_equations_one_by_one_are_those_of_the_training_loss(tour):
    of_training = tour.losses.loss_terms(tour.out)
    for name, value in (('acl_i', tour.eq_1), ('acl_f', tour.eq_3), ('reg', tour.eq_4)):
        assert torch.equal(of_training[name], value), name
    assert torch.isclose(tour.eq_5, tour.eq_1 + tour.eq_3 + tour.eq_4)
    assert torch.isclose(tour.eq_7, tour.eq_5 + tour.eq_6)
    chance = torch.tensor(8.0).log()
    assert max(tour.eq_1, tour.eq_3, tour.eq_6) < chance / 2
    to_the_letter = tour.losses.area_regulariser(tour.areas, reading='sum')
    assert to_the_letter > 10 * tour.eq_4


def test_the_area_term_pulls_all_of_a_mask_in_one_direction(tour):
    *_, contrastive, area = tour.shown
    assert (area >= 0).all() or (area <= 0).all()
    assert contrastive.min() < 0 < contrastive.max()


def test_forty_steps_lower_the_loss(tour):
    loss = tour.curves.sum(1)                                               # Eq. 5
    assert len(loss) == 40 and loss[-8:].mean() < 0.85 * loss[:8].mean(), loss
    contrastive = tour.curves[:, :2]                                        # Eq. 1 and 3
    assert (contrastive[-8:].mean(0) < contrastive[:8].mean(0)).all()


def test_before_training_both_objects_are_lit_and_afterwards_the_one_that_sounds(tour):
    masks = torch.stack([sample['mask'] for sample in tour.pair])
    masks = F.interpolate(masks[:, None], size=tour.image.shape[-2:])[:, 0]  # (2, 96, 96)
    lit = {stage: torch.einsum('shw,ohw->so', heat, masks) / masks.sum((1, 2))
           for stage, heat in tour.maps.items()}                            # (sound, object)
    assert lit['untrained'].min() > 0.5
    for stage in ('400 steps', 'oracle'):
        own = lit[stage].diagonal()
        assert (own > lit[stage].flip(1).diagonal() + 0.2).all(), (stage, lit[stage])


def test_ones_own_pair_gives_a_heatmap_of_the_pictures_size(tour):
    assert tour.heat.shape == (tour.picture.height, tour.picture.width)
    assert 0 <= tour.heat.min() and 0.5 < tour.heat.max() <= 1
