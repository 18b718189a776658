"""The words of the miniature: how scenes and sounds are described to its models, and tokenizers.

The prompts are those of Table 12 and the released code's; classes, colours and places are the
drawings', and the words for sounds the synthesiser's, so that captions and the language model's
answers (section 3.6) can be encoded as well.
"""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer

from miniature.backgrounds import PLACES
from miniature.drawings import CLASSES, COLOURS, SOUNDING
from miniature.sounds import AMBIENT, DESCRIPTIONS, PEAK

# Table 12's, and none
TEMPLATES = ('a photo of', 'a photograph of', 'an image of', 'a picture of', '')
PARTICIPLES = {'bell': 'chiming', 'drum': 'beating', 'siren': 'wailing', 'bird': 'chirping',
               'dog': 'barking', 'cat': 'meowing', 'car': 'rumbling', 'clock': 'ticking',
               'whistle': 'blowing', 'guitar': 'strumming', 'telephone': 'ringing',
               'frog': 'croaking'}
NAMELESS = ('', 'a', 'a thing', 'an object', 'one thing', 'the object')     # prompts of no class
MORE_WORDS = ('the photo shows one and with on in front of behind small large left right top '
              'bottom middle animal instrument machine toy thing object nothing sound noise '
              'silence music is not no background making')


def with_article(words):
    return f'{"an" if words[0] in "aeiou" else "a"} {words}'


def phrase(thing, rng, colour_share=0.4):
    """'a dog', 'a red dog', now and then 'a barking dog'. thing: (index into CLASSES, colour)"""
    name = CLASSES[thing[0]]
    if rng.random() < colour_share:
        return with_article(f'{thing[1]} {name}')
    if name in PARTICIPLES and rng.random() < 0.12:
        return with_article(f'{PARTICIPLES[name]} {name}')
    return with_article(name)


def in_template(words, rng):
    return f'{TEMPLATES[rng.integers(len(TEMPLATES))]} {words}'.strip()


def build_tokenizer(longest):
    """A CLIP tokenizer, texts of at most `longest` tokens, trained on the world's own words.

    Each of them is one token. Other words are split into letters and syllables, as in CLIP's.
    """
    phrases = [*CLASSES, *COLOURS, *PLACES, *TEMPLATES, *PARTICIPLES.values(), MORE_WORDS, 'a an']
    for texts in DESCRIPTIONS.values():
        phrases += texts
    words = sorted({word for text in phrases for word in text.lower().split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix='</w>', unk_token='<|endoftext|>'))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=letters, end_of_word_suffix='</w>', show_progress=False,
        special_tokens=['<|startoftext|>', '<|endoftext|>']))
    state = json.loads(bpe.to_str())['model']
    for letter in letters:                      # CLIP has tokens for letters that end a word
        state['vocab'].setdefault(f'{letter}</w>', len(state['vocab']))
    merges = [tuple(pair) for pair in state['merges']]
    return CLIPTokenizer(vocab=state['vocab'], merges=merges, model_max_length=longest)


# ------------------------------------------------------------------------------------------------
# What the tiny captioners learn to say, and the tiny language model to answer (section 3.6)
# ------------------------------------------------------------------------------------------------

WHERE = {'plain wall': 'in front of a plain wall', 'evening sky': 'under an evening sky',
         'striped curtain': 'before a striped curtain', 'checkered floor': 'on a checkered floor',
         'cloudy sky': 'under a cloudy sky', 'open field': 'in an open field',
         'spotted carpet': 'on a spotted carpet'}
FAR = 0.14          # where the largest box covers less than this, a caption starts with the place
# The fainter a clip, the vaguer its caption. Peaks (1 is full scale) from which on a sound is
# named, and from which on its description fits no other sound. Real audio captions are often no
# better than the vague ones: "a ringing sound repeats".
NAMED = 0.75
TOLD_APART = 0.62
HALF_HEARD = (PEAK[0] + TOLD_APART) / 2         # below it, the second of a class's vague phrases
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
KINDS = ('both', 'image', 'audio')      # of captions that the language model is given: Table 10
OFF_SCREEN = 0.08           # pairs whose sound comes from nothing in the picture
MISTAKE = 0.05              # objects that an image caption omits or mistakes


def enumerated(phrases):
    """'a dog', 'a dog and a cup', 'a dog, a cup and a tree'"""
    parts = (', '.join(phrases[:-1]), phrases[-1])
    return ' and '.join(part for part in parts if part)


def image_caption(things, place, largest, rng):
    """What is in sight, silent or not: it does not say what sounds.

    things: (class, colour) pairs, the most striking first. largest: share of the picture under the
    largest box.
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
    """The sounding classes that an audio caption fits."""
    return [name for name in VAGUE if caption in DESCRIPTIONS[name] + VAGUE[name]]


def captions_and_answer(kind, rng):
    """A pair's image and audio caption as the captioners would word them, and the right answer.

    The answer is the sound's source where the captions of this kind allow it, else another thing
    that they allow, else UNKNOWN: the captions are always enough to find it.
    """
    sounding = []
    while not sounding:
        names = list(rng.choice(CLASSES, rng.integers(1, 4), replace=False))
        sounding = [name for name in names if name in SOUNDING]
    source = str(rng.choice(sounding))
    if kind == 'both' and rng.random() < OFF_SCREEN:
        source = str(rng.choice([name for name in HEARD if name not in names]))
    heard = audio_caption(source, rng.uniform(*PEAK), rng)
    seen = as_captioned(names, rng)
    things = [(name, str(rng.choice(list(COLOURS)))) for name in seen]
    place = str(rng.choice(PLACES))
    image = image_caption(things, place, rng.choice([0.0, 1.0], p=[0.2, 0.8]), rng)
    if kind == 'image':
        fitting = [name for name in seen if name in SOUNDING]
    else:
        fitting = could_be(heard)
        if kind == 'both':
            fitting = [name for name in seen if name in fitting]
    if source in fitting:
        return image, heard, source
    return image, heard, str(rng.choice(fitting)) if fitting else UNKNOWN


def as_captioned(names, rng):
    """The names that an image caption gives for these, with its mistakes; at least one."""
    seen = []
    for name in names:
        omitted = rng.random() <= MISTAKE / 2 and len(names) > 1
        if not omitted:
            mistaken = rng.random() < MISTAKE / 2
            seen.append(str(rng.choice(CLASSES) if mistaken else name))
    return seen or [str(names[0])]


def word_tokenizer(texts, specials, template=None):
    """A tokenizer of words: every word and sign of the texts is one token, others are <unk>.

    specials: the special tokens, which get the first numbers. template: what surrounds an encoded
    text, as ('<s>', '$A'), or None. -> tokenizers.Tokenizer, to be wrapped by transformers
    """
    words = Tokenizer(models.WordLevel(unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split('\n', 'isolated'), pre_tokenizers.Metaspace(prepend_scheme='always'),
        pre_tokenizers.Punctuation('isolated')])
    words.decoder = decoders.Metaspace(prepend_scheme='always')
    words.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=list(specials),
                                                               show_progress=False))
    if template:
        used = [(token, words.token_to_id(token)) for token in template if token != '$A']
        words.post_processor = processors.TemplateProcessing(single=' '.join(template),
                                                             special_tokens=used)
    return words
