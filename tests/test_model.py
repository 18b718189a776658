"""The model's structure: what trains, what is frozen, prompts and tokens, weights that ship."""

import torch
import pytest

import losses
from speed.costs import count_vision
from model import (PROMPT, embed_image, embed_prompt, encode_image, load_model, prompt_ids,
                   read_checkpoint)


@pytest.fixture(scope='module')
def loaded():
    torch.manual_seed(0)
    return load_model('miniature')


@pytest.fixture(scope='module')
def pairs():
    torch.manual_seed(1)
    return torch.randn(3, 3, 64, 64), torch.rand(3, 16000) - 0.5


def objective(out):
    return sum(losses.loss_terms(out).values())


def test_texts_longer_than_the_encoder_reads_are_cut_to_what_it_reads(loaded):
    model, tokenizer = loaded
    longest = model.clipseg.config.text_config.max_position_embeddings
    cut, longer = model.embed_text(tokenizer, ['dog ' * longest, 'dog ' * 2 * longest])
    assert torch.allclose(cut, longer, atol=1e-5)
    assert not torch.allclose(cut, model.embed_text(tokenizer, ['dog'])[0], atol=1e-2)


@pytest.mark.parametrize('word', ['dog', 'telephone', 'red'])
def test_a_word_in_place_of_the_audio_token_gives_clip_s_own_text_feature(loaded, word):
    model, tokenizer = loaded
    (word_id,) = tokenizer(word, add_special_tokens=False).input_ids
    token = model.clipseg.clip.text_model.embeddings.token_embedding.weight[word_id].view(1, 1, -1)
    A = embed_prompt(model.clipseg, model.prompt_before, token, model.prompt_after)
    text = tokenizer(PROMPT.replace('<*>', word), return_tensors='pt')
    assert torch.allclose(A, model.clipseg.clip.get_text_features(**text).pooler_output, atol=1e-5)


def test_only_projection_pooling_and_w_b_train(loaded, pairs):
    model, _ = loaded
    objective(model(*pairs)).backward()
    for name, parameter in model.named_parameters():
        trained = name.startswith(('audio_proj.', 'masker_i.'))
        assert parameter.requires_grad == trained and (parameter.grad is not None) == trained, name
        if trained and not name.endswith('feature_reduce.bias'):    # which the softmax ignores
            assert parameter.grad.abs().sum() > 0, name
    model.zero_grad()


@pytest.mark.parametrize('term', ['acl_i', 'acl_f', 'reg'])
def test_each_loss_alone_reaches_the_projection(loaded, pairs, term):
    model, _ = loaded
    out = model(*pairs)
    out.A = out.A.detach()                                          # through the masks alone
    losses.loss_terms(out)[term].backward()
    assert model.audio_proj.fc1.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_frozen_parts_stay_in_eval_mode(loaded):
    model, _ = loaded
    model.train()
    frozen = [*model.clipseg.modules(), *model.beats.modules()]
    assert model.audio_proj.training and not any(module.training for module in frozen)
    model.eval()


def test_vision_runs_twice_per_step_whatever_the_batch(loaded, pairs):
    model, _ = loaded
    assert count_vision(model, lambda: model(*pairs)) == 2
    assert count_vision(model, lambda: model(*(part[:2] for part in pairs))) == 2


@torch.no_grad()
def test_the_image_embedding_and_activations_are_those_of_transformers(loaded, pairs):
    clipseg = loaded[0].clipseg
    out = clipseg.clip.vision_model(pairs[0], output_hidden_states=True)
    vision = encode_image(clipseg, pairs[0])
    embedding = clipseg.clip.visual_projection(out.pooler_output)
    assert torch.allclose(embed_image(clipseg, pairs[0]), embedding, atol=1e-5)
    for ours, layer in zip(vision.activations, clipseg.extract_layers, strict=True):
        assert torch.allclose(ours, out.hidden_states[layer + 1], atol=1e-4)


def step(model, pairs, **options):
    """A step's loss and gradients, with the same noise and dropout. -> scalar, {name: gradient}"""
    torch.manual_seed(4)
    model.train()
    B, _, H, W = pairs[0].shape
    noise = [torch.rand(B, N, H, W).clamp(1e-6) for N in (B, 1)]
    loss = objective(model(*pairs, noise=noise, **options))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.eval()
    return loss.item(), gradients


@pytest.fixture(scope='module')
def plain_step(loaded, pairs):
    return step(loaded[0], pairs)


@pytest.mark.parametrize('chunk', [1, 6, 100])
def test_chunks_of_pairs_give_the_plain_step_s_loss_and_gradients(loaded, pairs, plain_step, chunk):
    plain, expected = plain_step
    loss, gradients = step(loaded[0], pairs, pair_chunk=chunk)
    assert loss == pytest.approx(plain, rel=1e-5) and gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        if name.endswith('feature_reduce.bias'):        # its gradient is 0: the softmax ignores it
            continue
        assert (gradient - expected[name]).norm() <= 1e-3 * expected[name].norm(), name


def test_heatmap_at_any_size_and_equal_to_training_s_diagonal(loaded, pairs):
    model, _ = loaded
    out, heat = model(*pairs), model.heatmap(*pairs, size=(64, 64))
    own = out.M_G.diagonal().permute(2, 0, 1)
    assert torch.allclose(heat, model.masker_i.inference(own), atol=1e-4)
    assert model.heatmap(*pairs, size=(40, 64)).shape == (3, 40, 64)


@pytest.mark.parametrize('k', [1, 2, 4, 8])
def test_audio_tokens(pairs, k):
    model, _ = load_model('miniature', audio_tokens=k)
    assert model.audio_proj(model.beats(pairs[1])).shape == (3, k, 128)
    assert model.embed_audio(pairs[1]).shape == (3, 128)


@pytest.mark.parametrize('prompt', ['A photograph of a <*>', 'An image of a <*>', '<*>',
                                    'the <*> is making a sound'])
def test_prompts(loaded, prompt):
    before, after = prompt_ids(loaded[1], prompt)
    words = prompt.split('<*>')
    assert len(before) == 1 + len(words[0].split()) and len(after) == 1 + len(words[1].split())


def test_prompt_without_its_token_is_refused(loaded):
    with pytest.raises(ValueError, match='exactly once'):
        prompt_ids(loaded[1], 'A photo of a dog')


@pytest.mark.parametrize('image_mask', ['hard', 'soft', 'feature'])
@pytest.mark.parametrize('feature_mask', ['feature', 'image'])
def test_mask_variants_of_table_13(loaded, pairs, image_mask, feature_mask):
    out = loaded[0](*pairs, image_mask, feature_mask)
    assert out.M_I.shape == (3, 1, 64, 64) and out.M_F.shape == (3, 3, 8, 8)
    assert out.areas.shape == (3, 3)
    is_binary = set(out.M_I.unique().tolist()) <= {0.0, 1.0}
    assert is_binary == (image_mask == 'hard')


def test_a_released_checkpoint_keeps_its_own_prompt(tmp_path, loaded, capsys):
    saved = {'audio_proj': loaded[0].audio_proj.state_dict(),
             'masker_i': {'w': torch.tensor([9.0]), 'b': torch.tensor([12.0])}}
    torch.save(saved, tmp_path / 'released.pt')
    model, tokenizer = load_model('miniature', tmp_path / 'released.pt')
    assert 'A photo of <*>' in capsys.readouterr().out
    assert model.prompt_before.tolist() == tokenizer('A photo of').input_ids[:-1]
    assert model.masker_i.w.item() == 9.0


def test_a_checkpoint_of_another_size_is_named(tmp_path, loaded):
    torch.save({'audio_proj': {k: v[..., :5] for k, v in loaded[0].audio_proj.state_dict().items()},
                'masker_i': loaded[0].masker_i.state_dict()}, tmp_path / 'small.pt')
    with pytest.raises(ValueError, match='small.pt does not fit'):
        load_model('miniature', tmp_path / 'small.pt')


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / 'x.pt').write_text('hello')
    with pytest.raises(ValueError, match='x.pt is no checkpoint .*: train one with train.py'):
        read_checkpoint(tmp_path / 'x.pt')
