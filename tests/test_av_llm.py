"""The second variant, section 3.6: the audio is aligned with the language model's answers too."""

import json

import pytest
import torch
from tiny import tiny, tiny_root, training, write_captions  # noqa: F401

import captions
import losses
from model import load_model


def test_pairs_without_an_answer_take_no_part():
    A, C = torch.randn(4, 8, requires_grad=True), torch.randn(3, 8)
    term = losses.acl_c_of_answered(C, torch.tensor([2, -1, 0, -1]), A, tau=0.3)
    assert term.item() == pytest.approx(losses.acl_c(C[[2, 0]], A[[0, 2]], tau=0.3).item())
    term.backward()
    assert A.grad[[1, 3]].abs().max() == 0 and A.grad[[0, 2]].abs().min() > 0


def test_one_answer_in_a_batch_has_nothing_to_be_contrasted_with():
    A = torch.randn(3, 8, requires_grad=True)
    term = losses.acl_c_of_answered(torch.randn(2, 8), torch.tensor([-1, 1, -1]), A)
    term.backward()                                     # DDP waits for every gradient
    assert term.item() == 0 and A.grad.abs().max() == 0


def test_raw_answers_are_encoded_without_a_template(tmp_path):
    model, tokenizer = load_model('miniature')
    path = tmp_path / 'c.jsonl'
    answers = {'a': 'dog', 'b': 'bell', 'c': ''}
    path.write_text('\n'.join(json.dumps({'id': i, 'object': o}) for i, o in answers.items()))
    C, row_of, _ = captions.load_answers(path, model, tokenizer, list(answers))
    ids = tokenizer(['dog', 'bell'], padding=True, return_tensors='pt')
    expected = model.clipseg.clip.get_text_features(**ids).pooler_output
    assert torch.allclose(C[[row_of['a'], row_of['b']]], expected, atol=1e-6)


@pytest.mark.parametrize('flags, tau, masked', [
    ('', 0.07, False), ('--tau 0.3 --same-answers masked', 0.3, True)])
def test_av_llm_trains_with_given_captions(
        training, tmp_path, capsys, flags, tau, masked):                    # noqa: F811
    answers = write_captions(tmp_path / 'c.jsonl', lambda n: ['bell', 'dog', ''][n % 3])
    seen = training('--variant', 'av_llm', '--captions', str(answers), '--batch-size', '12',
                    *flags.split())
    assert '8 of 12 pairs have an answer, 2 different ones' in capsys.readouterr().out
    assert seen.code == 0 and seen.saved['variant'] == 'av_llm'
    logged = seen.log[0]
    terms = [logged[name] for name in ('acl_i', 'acl_f', 'reg', 'acl_c')]
    assert terms[3] > 0 and logged['loss'] == pytest.approx(sum(terms), rel=1e-4)
    C, rows = seen.answers[0]
    has = rows >= 0
    wanted = losses.acl_c(C[rows[has]], seen.forwards[0]['out'].A[has], tau,
                          rows[has] if masked else None)
    assert terms[3] == pytest.approx(wanted.item(), rel=1e-4)
