"""The words of the miniature: how scenes are described to the tiny CLIP, and its tokenizer.

The prompts are those of Table 12 and the released code's; classes, colours and places are the drawings', and the words for
sounds the synthesiser's, so that captions and the language model's answers (section 3.6) can be encoded as well.
"""

import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from miniature.drawings import CLASSES, COLOURS, PLACES
from miniature.sounds import DESCRIPTIONS

TEMPLATES = ('a photo of', 'a photograph of', 'an image of', 'a picture of', '')       # Table 12's, and one more
PARTICIPLES = {'bell': 'chiming', 'drum': 'beating', 'siren': 'wailing', 'bird': 'chirping', 'dog': 'barking',
               'cat': 'meowing', 'car': 'rumbling', 'clock': 'ticking', 'whistle': 'blowing', 'guitar': 'strumming',
               'telephone': 'ringing', 'frog': 'croaking'}
NAMELESS = ('', 'a', 'a thing', 'an object', 'one thing', 'the object')    # prompts that name no class
MORE_WORDS = ('the photo shows one and with on in front of behind small large left right top bottom middle animal '
              'instrument machine toy thing object nothing sound noise silence music is not no background making')


def with_article(words):
    return f'{"an" if words[0] in "aeiou" else "a"} {words}'


def phrase(thing, rng, colour_share=0.4):
    """'a dog', 'a red dog', now and then 'a barking dog'."""
    name = CLASSES[thing[0]]
    if rng.random() < colour_share:
        return with_article(f'{thing[1]} {name}')
    if name in PARTICIPLES and rng.random() < 0.12:
        return with_article(f'{PARTICIPLES[name]} {name}')
    return with_article(name)


def in_template(words, rng):
    return f'{TEMPLATES[rng.integers(len(TEMPLATES))]} {words}'.strip()


def build_tokenizer(longest):
    """A CLIP tokenizer, texts of at most `longest` tokens, whose byte pairs were merged on the world's own words: each
    of them is one token. Other words fall into letters and syllables, as in the real one."""
    phrases = [*CLASSES, *COLOURS, *PLACES, *TEMPLATES, *PARTICIPLES.values(), MORE_WORDS, 'a an',
               *(text for texts in DESCRIPTIONS.values() for text in texts)]
    words = sorted({word for text in phrases for word in text.lower().split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix='</w>', unk_token='<|endoftext|>'))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=letters, end_of_word_suffix='</w>', show_progress=False,
        special_tokens=['<|startoftext|>', '<|endoftext|>']))
    state = json.loads(bpe.to_str())['model']
    for letter in letters:                              # a letter that ends a word is a token of its own in CLIP
        state['vocab'].setdefault(f'{letter}</w>', len(state['vocab']))
    return CLIPTokenizer(vocab=state['vocab'], merges=[tuple(pair) for pair in state['merges']],
                         model_max_length=longest)
