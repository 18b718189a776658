"""The second variant, section 3.6: the audio is aligned with the language model's answers too."""

import json
from types import SimpleNamespace

import pytest
import torch

import captions
import losses
import train
from data import read_ids
from model import load_model


def write_answers(path, ids, answer):
    rest = {'image_caption': 'x', 'audio_caption': 'y', 'models': {}, 'error': None}
    lines = [json.dumps({'id': i, 'object': answer(i), **rest}) + '\n' for i in ids]
    path.write_text(''.join(lines))
    return path


def alignment(A):
    """What loss_terms needs for Eq. 6 alone."""
    return SimpleNamespace(A=A)


ARGS = SimpleNamespace(lambda_i=0, lambda_f=0, lambda_reg=0, lambda_c=1, tau=0.07,
                       same_answers='negatives')


def test_pairs_without_an_answer_take_no_part():
    A, C = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8)
    term = train.loss_terms(alignment(A), ARGS, C, torch.tensor([2, -1, 0, -1]))['acl_c']
    assert term.item() == pytest.approx(losses.acl_c(C[[2, 0]], A[[0, 2]]).item())
    term.backward()
    assert A.grad[[1, 3]].abs().max() == 0 and A.grad[[0, 2]].abs().min() > 0


def test_one_answer_in_a_batch_has_nothing_to_be_held_against():
    A = torch.randn(3, 8, requires_grad=True)
    rows = torch.tensor([-1, 1, -1])
    term = train.loss_terms(alignment(A), ARGS, torch.randn(2, 8), rows)['acl_c']
    term.backward()                                     # DDP waits for every gradient
    assert term.item() == 0 and A.grad.abs().max() == 0


def test_raw_answers_are_encoded_without_a_template(tmp_path):
    model, tokenizer = load_model('miniature')
    said = {'a': 'dog', 'b': 'bell', 'c': ''}
    path = write_answers(tmp_path / 'c.jsonl', said, said.get)
    C, row_of, _ = captions.load_answers(path, model, tokenizer, list(said))
    ids = tokenizer(['dog', 'bell'], padding=True, return_tensors='pt')
    expected = model.clipseg.clip.get_text_features(**ids).pooler_output
    assert torch.allclose(C[[row_of['a'], row_of['b']]], expected, atol=1e-6)


def test_av_llm_trains_with_given_captions(small_world, script, tmp_path):
    ids = read_ids(small_world / 'vggsound/train.csv')
    answers = write_answers(tmp_path / 'c.jsonl', ids,
                            lambda i: ['bell', 'dog', ''][int(i[5:10]) % 3])
    done = script('train.py', '--variant', 'av_llm', '--data-root', small_world, '--steps', 2,
                  '--batch-size', 8, '--captions', answers, '--out', tmp_path / 'run')
    assert done.returncode == 0, done.stderr
    assert '64 of 96 pairs have an answer, 2 different ones' in done.stdout
    saved = torch.load(tmp_path / 'run/last.pt', weights_only=True)
    assert saved['variant'] == 'av_llm'
    logged = json.loads((tmp_path / 'run/log.jsonl').read_text().splitlines()[0])
    assert logged['acl_c'] > 0
    terms = sum(logged[name] for name in ('acl_i', 'acl_f', 'reg', 'acl_c'))
    assert logged['loss'] == pytest.approx(terms, rel=1e-4)
