"""The words of the miniature: how scenes are described to the tiny CLIP, and its tokenizer.

The prompts are those of Table 12 and the released code's; classes, colours and places are the drawings', and the words for
sounds the synthesiser's, so that captions and the language model's answers (section 3.6) can be encoded as well.
"""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer

from miniature.drawings import CLASSES, COLOURS, PLACES, SOUNDING
from miniature.sounds import AMBIENT, DESCRIPTIONS, PEAK

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


# ------------------------------------------------------------------------------------------------
# What the tiny captioners are taught to say, and the tiny language model to answer (section 3.6)
# ------------------------------------------------------------------------------------------------

WHERE = {'plain wall': 'in front of a plain wall', 'evening sky': 'under an evening sky',
         'striped curtain': 'before a striped curtain', 'checkered floor': 'on a checkered floor',
         'cloudy sky': 'under a cloudy sky', 'open field': 'in an open field', 'spotted carpet': 'on a spotted carpet'}
FAR = 0.14                  # largest box as a share of the picture, below which a caption starts with the place
# The fainter a clip, the vaguer its caption: the peaks (1 is full scale) from which on a sound is named, and described
# so that it could be no other. Real audio captions are often no better than the rest: "a ringing sound repeats".
NAMED, TOLD_APART = 0.75, 0.62
HALF_HEARD = (PEAK[0] + TOLD_APART) / 2       # below it, the second of a class's vague phrases
VAGUE = {
    'bell': ('a ringing sound repeats', 'soft notes one after another'),
    'drum': ('something is struck at a steady pace', 'a low rough rumble'),
    'siren': ('a tone goes up and down', 'high piercing tones'),
    'bird': ('an animal makes short calls', 'high piercing tones'),
    'dog': ('an animal makes short calls', 'short bursts with pauses'),
    'cat': ('an animal makes short calls', 'a tone goes up and down'),
    'car': ('a low rough rumble', 'a tone goes up and down'),
    'clock': ('something is struck at a steady pace', 'a ringing sound repeats'),
    'whistle': ('high piercing tones', 'short bursts with pauses'),
    'guitar': ('soft notes one after another', 'something is struck at a steady pace'),
    'telephone': ('a ringing sound repeats', 'short bursts with pauses'),
    'frog': ('an animal makes short calls', 'a low rough rumble'),
}
UNKNOWN = 'unknown'         # the answer when nothing in the picture can have made the sound
HEARD = (*SOUNDING, *AMBIENT, 'silence')
KINDS = ('both', 'image', 'audio')      # of captions that the language model is given, as in Table 10
OFF_SCREEN = 0.08           # pairs whose sound comes from nothing in the picture
MISTAKE = 0.05              # objects that an image caption omits or mistakes


def enumerated(phrases):
    """'a dog', 'a dog and a cup', 'a dog, a cup and a tree'"""
    return ' and '.join(part for part in (', '.join(phrases[:-1]), phrases[-1]) if part)


def image_caption(things, place, largest, rng):
    """What is in sight, silent or not: it does not say what sounds.

    things: (class, colour) pairs, the most striking first. largest: share of the picture under the largest box.
    """
    words = enumerated([with_article(f'{colour} {name}') for name, colour in things])
    if largest < FAR:
        return f'{with_article(place)} with {words}'
    chance = rng.random()
    if len(things) == 1 and chance < 0.7:
        return f'a photo of {words} {WHERE[place]}'
    if len(things) == 3 and chance < 0.7:
        return f'{words} are {WHERE[place]}'
    return words if chance > 0.92 else f'{words} {WHERE[place]}'


def audio_caption(name, peak, rng):
    """What is heard of a class, an ambient sound or silence, in a clip of this peak."""
    if name not in VAGUE:
        return DESCRIPTIONS[name][rng.integers(4)]
    if peak >= TOLD_APART:
        return DESCRIPTIONS[name][(0 if peak >= NAMED else 2) + rng.integers(2)]
    return VAGUE[name][int(peak < HALF_HEARD)]


def could_be(caption):
    """The sounding classes of which an audio caption may speak."""
    return [name for name in VAGUE if caption in DESCRIPTIONS[name] + VAGUE[name]]


def captions_and_answer(kind, rng):
    """A pair's image and audio caption as the captioners would word them, mistakes included, and the right answer.

    The answer is the sound's source where the captions of this kind allow it, else another thing that they allow, else
    UNKNOWN: it asks for nothing that cannot be worked out from the captions.
    """
    names = list(rng.choice(CLASSES, rng.integers(1, 4), replace=False))
    while not any(name in SOUNDING for name in names):
        names = list(rng.choice(CLASSES, rng.integers(1, 4), replace=False))
    source = str(rng.choice([name for name in names if name in SOUNDING]))
    if kind == 'both' and rng.random() < OFF_SCREEN:
        source = str(rng.choice([name for name in HEARD if name not in names]))
    heard = audio_caption(source, rng.uniform(*PEAK), rng)
    seen = [str(rng.choice(CLASSES)) if rng.random() < MISTAKE / 2 else str(name) for name in names
            if rng.random() > MISTAKE / 2 or len(names) == 1]
    seen = seen or [str(names[0])]
    things = [(name, str(rng.choice(list(COLOURS)))) for name in seen]
    image = image_caption(things, str(rng.choice(PLACES)), rng.choice([0.0, 1.0], p=[0.2, 0.8]), rng)
    fitting = {'both': [name for name in seen if name in could_be(heard)],
               'image': [name for name in seen if name in SOUNDING],
               'audio': could_be(heard)}[kind]
    answer = source if source in fitting else str(rng.choice(fitting)) if fitting else UNKNOWN
    return image, heard, answer


def word_tokenizer(texts, specials, template=None):
    """A tokenizer of whole words: every word and sign of the texts is one token, others are <unk>.

    specials: the special tokens, which get the first numbers. template: what surrounds an encoded text, as
    ('<s>', '$A'), or None. -> tokenizers.Tokenizer, to be wrapped by transformers
    """
    words = Tokenizer(models.WordLevel(unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split('\n', 'isolated'),
                                                   pre_tokenizers.Metaspace(prepend_scheme='always'),
                                                   pre_tokenizers.Punctuation('isolated')])
    words.decoder = decoders.Metaspace(prepend_scheme='always')
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=list(specials), show_progress=False))
    if template:
        words.post_processor = processors.TemplateProcessing(
            single=' '.join(template), special_tokens=[(s, words.token_to_id(s)) for s in template if s != '$A'])
    return words
