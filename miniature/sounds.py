"""The sounds of the miniature: two seconds of audio per class, synthesised with NumPy.

The paper trains on VGGSound clips (section 4.1). Here every clip is made from a random generator,
so that the whole method runs on a laptop with nothing to download. The file holds, in this order:
building blocks, one function per sounding class, one per ambient sound (heard, but nothing in the
picture makes it), the functions that the rest of the repository calls, and the caption phrases for
each sound.

Listen to three examples of each sound:
    python -m miniature.sounds sounds
"""
import argparse
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16_000                # Hz, what the audio encoder expects
SECONDS = 2.0                       # length of a clip; the paper's clips are 10 s
FLOOR_DB = (12.0, 35.0)             # the noise floor lies this far below the signal's RMS
PEAK = (0.15, 0.9)                  # peak level of a clip, 1 is full scale
# log10 of the peak of near-silent noise; one 16-bit step is 10^-4.5
SILENT_PEAK_LOG10 = (-6.0, -4.3)
FIRST_ONSET = 0.12  # s, the latest start of a sound: a clip of gaps looks like silence
TOP = 7_800.0                       # Hz, no partial is placed above this (Nyquist is 8000 Hz)


# -------------------------------------- building blocks --------------------------------------

def length(seconds):
    """Number of samples in `seconds`."""
    return round(seconds * SAMPLE_RATE)


def sweep(frequency):
    """A sine whose frequency in Hz is given at every sample. (n,) -> (n,) in -1..1"""
    return np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE)


def sine(n, rate, phase=0.0):
    """A sine of `rate` Hz: a steady tone, or, when slow, what modulates one. -> (n,) in -1..1"""
    return np.sin(2 * np.pi * rate * np.arange(n) / SAMPLE_RATE + phase)


def ring(frequencies, amplitudes, decays, seconds):
    """Sum of exponentially damped sines: anything struck or plucked.

    frequencies (Hz), amplitudes, decays (s until 1/e): (P,) each. -> (n,)
    """
    n = length(seconds)
    block = 256
    pole = (2j * np.pi * np.asarray(frequencies) - 1 / np.asarray(decays)) / SAMPLE_RATE  # (P,)
    # exp(pole (a + b)) = exp(pole a) exp(pole b): P (n / 256 + 256) exponentials instead of P n
    starts = np.exp(np.outer(np.arange(0, n, block), pole))  # (n/256, P)
    within = np.exp(np.outer(pole, np.arange(block))) * np.asarray(amplitudes)[:, None]  # (P, 256)
    return (starts @ within).imag.reshape(-1)[:n]                                             # (n,)


def voice(frequency, gain, harmonics=25):
    """Harmonic sum with a spectral envelope: anything with a throat, an engine or a horn.

    frequency: (n,) the fundamental in Hz at every sample.
    gain(hertz, position): level of a harmonic when `position` (0..1) of the sound has passed.
    """
    n = len(frequency)
    hop = 16    # the envelope moves slowly, so it is computed every 16 samples
    coarse = frequency[::hop]
    position = np.linspace(0, 1, n)[::hop]    # (n/16,)
    turn = np.exp(2j * np.pi * np.cumsum(frequency) / SAMPLE_RATE).astype(np.complex64)       # (n,)
    y = np.zeros(n, np.float32)
    harmonic = np.ones(n, np.complex64)
    for k in range(1, harmonics + 1):
        if k * coarse.min() > TOP:
            break
        harmonic *= turn            # turn^k: its imaginary part is the sine of the k-th harmonic
        level = (gain(k * coarse, position) * (k * coarse < TOP)).astype(np.float32)  # (n/16,)
        if level.max() > 1e-3:
            y += np.repeat(level, hop)[:n] * harmonic.imag
    return y


def formant(hertz, centre, width):
    """Resonance of a throat: 1 at `centre`, 1/e at `width` Hz from it."""
    return np.exp(-((hertz - centre) / width) ** 2)


def band(x, low, high):
    """Keep roughly low..high Hz of x. (n,) -> (n,)"""
    f = np.fft.rfftfreq(len(x), 1 / SAMPLE_RATE)
    keep = 1 / (1 + (low / np.maximum(f, 1)) ** 6) / (1 + (f / high) ** 6)
    return np.fft.irfft(np.fft.rfft(x) * keep, len(x))


def hiss(rng, n, low, high):
    """Unit-power noise between low and high Hz. -> (n,)"""
    whole = -(-n // 640) * 640      # a Fourier transform of a round length is several times faster
    x = band(rng.standard_normal(whole), low, high)[:n]
    return x / np.sqrt(np.mean(x ** 2))


def room(x, rng, decay, level):
    """x plus the reverberation of a room whose echoes fade to 1/e in `decay` s. (n,) -> (n,)"""
    m = length(4 * decay)
    tail = rng.standard_normal(m) * np.exp(-np.arange(m) / (decay * SAMPLE_RATE))
    tail *= level / np.sqrt(np.sum(tail ** 2))
    size = 1 << (len(x) + m).bit_length()       # padded, or the tail would wrap round to the start
    echo = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(tail, size), size)
    return x + echo[:len(x)]


def add(y, x, start):
    """Add x into y from `start` seconds on, in place; what does not fit is cut off."""
    i = length(start)
    y[i:i + len(x)] += x[:max(0, len(y) - i)]


def fill(rng, n, event):
    """Fill n samples with one event after another.

    event(index) -> (waveform, seconds until the next event starts). Events may overlap.
    """
    y = np.zeros(n)
    index = 0
    start = rng.uniform(0, min(FIRST_ONSET, 0.1 * n / SAMPLE_RATE))
    while start < n / SAMPLE_RATE:
        x, step = event(index)
        add(y, x, start)
        start += step
        index += 1
    return y


# ------------------------- sounding classes: (rng, n) -> (n,), any level -------------------------

def bell(rng, n):
    """A church bell's partials (hum, prime, tierce, quint, ...), struck at a regular pace."""
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.51, 2.66, 3.01, 4.1])
    decays = np.array([1.2, 1, 0.8, 0.6, 0.5, 0.35, 0.3, 0.25, 0.15]) * rng.uniform(0.7, 1.1)
    levels = np.array([0.5, 1, 0.7, 0.5, 0.8, 0.4, 0.4, 0.3, 0.3]) * rng.uniform(0.6, 1.4, 9)
    strike = ring(rng.uniform(380, 850) * ratios, levels, decays, 3.0)
    pace = rng.uniform(0.5, 1.0)
    return fill(rng, n, lambda i: (strike * rng.uniform(0.7, 1), pace * rng.uniform(0.9, 1.1)))


def drum(rng, n):
    """Two drums, low and high: a falling tone and the slap of the skin, in a room."""
    def hit(pitch):
        t = np.arange(length(0.6)) / SAMPLE_RATE
        tone = sweep(pitch * (1 + rng.uniform(0.8, 1.6) * np.exp(-t / 0.03)))
        slap = hiss(rng, len(t), 150, 3000) * np.exp(-t / 0.03)
        return tone * np.exp(-t / rng.uniform(0.1, 0.18)) + 0.35 * slap

    low = rng.uniform(50, 85)
    hits = [hit(low), hit(low * rng.uniform(1.3, 1.8))]
    pace = rng.uniform(0.18, 0.36)

    def event(index):
        step = pace * (0.5 if rng.random() < 0.3 else 1.0)
        return hits[rng.integers(2)] * rng.uniform(0.6, 1), step

    return room(fill(rng, n, event), rng, decay=rng.uniform(0.1, 0.2), level=0.4)


def siren(rng, n):
    """A horn that glides, or jumps, between two pitches about an octave apart."""
    glide = sine(n, rng.uniform(0.6, 2.2), rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.4:
        glide = np.tanh(20 * glide)             # the two-tone horn
    low = rng.uniform(550, 800)
    ratio = rng.uniform(1.7, 2.2)
    dullness = rng.uniform(800, 1600)
    return voice(low * ratio ** ((glide + 1) / 2), lambda hertz, _: np.exp(-hertz / dullness),
                 harmonics=8)


def bird(rng, n):
    """Short chirps that sweep up or down between 2.5 and 6.5 kHz."""
    centre = rng.uniform(3200, 5700)
    flutter = rng.uniform(15, 40)

    def event(index):
        m = length(rng.uniform(0.05, 0.16))
        first, last = centre + rng.uniform(-800, 800, 2)
        chirp = sweep(np.linspace(first, last, m) + 300 * sine(m, flutter)) * np.hanning(m)
        return chirp * rng.uniform(0.6, 1), m / SAMPLE_RATE + rng.uniform(0.03, 0.22)

    return fill(rng, n, event)


def dog(rng, n):
    """Barks: a short rise and fall of a rough voice with an open-mouth resonance near 900 Hz."""
    pitch = rng.uniform(150, 300)
    mouth = rng.uniform(700, 1100)
    pause = rng.uniform(0.06, 0.3)

    def event(index):
        m = length(rng.uniform(0.13, 0.24))
        p = np.linspace(0, 1, m)
        bark = voice(pitch * rng.uniform(0.9, 1.1) * (1 + 0.6 * np.sin(np.pi * p)),
                     lambda hertz, _: formant(hertz, mouth, 700) + 0.25 * formant(hertz, 2200, 900))
        breath = 0.6 * hiss(rng, m, 500, 3500)
        bark = (bark + breath) * np.sin(np.pi * p ** 0.6)
        return bark, m / SAMPLE_RATE + pause * rng.uniform(0.7, 1.3)

    return fill(rng, n, event)


def cat(rng, n):
    """Meows: a long voice whose mouth opens and closes, so the resonance rises and falls."""
    pitch = rng.uniform(420, 620)
    wide = rng.uniform(1000, 1500)

    def mouth(hertz, position):
        centre = 900 + wide * np.sin(np.pi * position)
        return formant(hertz, centre, 600) + 0.15 * formant(hertz, 3500, 1200) + 0.1

    def event(index):
        m = length(rng.uniform(0.5, 0.9))
        p = np.linspace(0, 1, m)
        bend = (1 + 0.45 * np.sin(np.pi * p ** 0.8)) * (1 + 0.01 * sine(m, 6))
        meow = voice(pitch * rng.uniform(0.93, 1.07) * bend, mouth) * np.sin(np.pi * p) ** 0.7
        return meow, m / SAMPLE_RATE + rng.uniform(0.05, 0.25)

    return fill(rng, n, event)


def car(rng, n):
    """An engine: many low harmonics that rev up and down over a rumble."""
    rev = 1 + 0.25 * sine(n, rng.uniform(0.15, 0.6), rng.uniform(0, 2 * np.pi))
    firing = rng.uniform(35, 85) * rev
    muffler = rng.uniform(280, 450)
    engine = voice(firing, lambda hertz, _: np.exp(-hertz / muffler))
    engine *= 1 + 0.3 * sweep(firing / 4)       # cylinders never fire quite alike
    return engine + rng.uniform(0.4, 1.0) * hiss(rng, n, 30, 500)


def clock(rng, n):
    """Tick, tock: a click, the ring of the works and the knock of the case, in a small room."""
    def beat(works, case):
        m = length(0.3)
        x = ring([works, works * 1.47, case], [1, 0.5, 0.35], [0.03, 0.02, 0.05], 0.3)
        click = rng.standard_normal(m) * np.exp(-np.arange(m) / (0.004 * SAMPLE_RATE))
        return x + click

    works = rng.uniform(2200, 2900)
    case = rng.uniform(300, 600)
    pace = rng.uniform(0.2, 0.36)
    beats = [beat(works, case), beat(works * rng.uniform(1.2, 1.4), case * 1.1)]
    ticking = fill(rng, n, lambda i: (beats[i % 2] * rng.uniform(0.9, 1), pace))
    return room(ticking, rng, decay=rng.uniform(0.12, 0.22), level=0.8)


def whistle(rng, n):
    """A referee's whistle: a steady high tone that the pea inside makes tremble, and breath."""
    pitch = rng.uniform(2100, 3300)
    pea = rng.uniform(18, 40)

    def event(index):
        m = length(rng.uniform(0.35, 1.1))
        tremble = sine(m, pea)
        blow = sweep(pitch + 120 * tremble) * (0.65 + 0.35 * tremble)
        blow += 0.12 * hiss(rng, m, 0.7 * pitch, 1.4 * pitch)
        edge = np.minimum(1, np.minimum(np.arange(m), np.arange(m)[::-1]) / length(0.02))
        return blow * edge, m / SAMPLE_RATE + rng.uniform(0.08, 0.25)

    return fill(rng, n, event)


def guitar(rng, n):
    """Plucked strings: every harmonic decays on its own, the high ones sooner."""
    k = np.arange(1, 21)
    body = rng.uniform(95, 140)         # Hz
    place = rng.uniform(0.12, 0.35)     # where along the string it is plucked
    scale = np.array([0, 2, 4, 7, 9, 12, 14, 16, 19])  # semitones, two octaves pentatonic
    pace = rng.uniform(0.18, 0.36)

    def event(index):
        # strings are stiff
        hertz = body * 2 ** (rng.choice(scale) / 12) * k * np.sqrt(1 + 1e-4 * k ** 2)
        levels = np.sin(np.pi * k * place) / k * (hertz < TOP)
        note = ring(hertz, levels, 0.5 / (1 + 0.12 * k), 1.2)
        return note * rng.uniform(0.6, 1), pace * rng.uniform(0.85, 1.05)

    return fill(rng, n, event)


def telephone(rng, n):
    """An electronic ring: two tones chopped some twenty times a second, with short pauses."""
    first = rng.uniform(950, 1250)
    second = rng.uniform(1300, 1600)
    warble = rng.uniform(16, 26)
    on = rng.uniform(0.3, 0.5)
    off = rng.uniform(0.12, 0.3)
    m = length(on)
    tones = sine(m, first) + sine(m, second) + 0.4 * sine(m, 2.7 * first)
    burst = tones * (0.55 + 0.45 * np.tanh(6 * sine(m, warble)))
    return fill(rng, n, lambda i: (burst, on + off))


def frog(rng, n):
    """Croaks: a train of some forty pulses per second, each ringing in the throat."""
    throat = rng.uniform(500, 1000)
    rate = rng.uniform(28, 60)
    pulse = ring([throat, 2.3 * throat], [1, 0.5], [0.007, 0.007], 0.03)

    def event(index):
        seconds = rng.uniform(0.25, 0.55)
        croak = np.zeros(length(seconds + 0.03))
        for start in np.arange(0, seconds, 1 / rate):
            add(croak, pulse * np.sin(np.pi * min(1, start / seconds + 0.1)), start)
        return croak, seconds + rng.uniform(0.1, 0.3)

    return fill(rng, n, event)


# ------------------------------- ambient sounds: (rng, n) -> (n,) -------------------------------

def noise(rng, n):
    """Coloured noise, power ~ 1 / f^exponent: white at 0, pink at 1, brown at 2."""
    exponent = rng.uniform(0, 2)
    f = np.fft.rfftfreq(n, 1 / SAMPLE_RATE)
    white = np.fft.rfft(rng.standard_normal(n))
    return np.fft.irfft(white / np.maximum(f, 20) ** (exponent / 2), n)


def rain(rng, n):
    """A bright hiss with some sixty drops per second on top."""
    y = hiss(rng, n, 1500, 7000)
    m = 200
    fade = np.exp(-np.arange(m) / (0.002 * SAMPLE_RATE))
    for _ in range(round(rng.uniform(40, 80) * n / SAMPLE_RATE)):
        drop = rng.standard_normal(m) * fade * rng.uniform(1, 6)
        add(y, drop, rng.uniform(0, n / SAMPLE_RATE))
    return y


def wind(rng, n):
    """Gusts: a low rush that swells and fades, and a howl that swells with it."""
    gust = 1 + 0.7 * sine(n, rng.uniform(0.2, 0.8), rng.uniform(0, 2 * np.pi))
    howl = rng.uniform(350, 800)
    rush = gust * hiss(rng, n, 80, rng.uniform(300, 600))
    return rush + 0.5 * gust ** 2 * hiss(rng, n, 0.9 * howl, 1.1 * howl)


def speech(rng, n):
    """Babble: syllables of one voice, each with two formants of a random vowel."""
    pitch = rng.uniform(95, 220)

    def event(index):
        m = length(rng.uniform(0.1, 0.28))
        first = rng.uniform(300, 800)
        second = rng.uniform(900, 2300)

        def vowel(hertz, _):
            return formant(hertz, first, 150) + 0.5 * formant(hertz, second, 200)
        syllable = voice(pitch * rng.uniform(0.85, 1.15) * np.linspace(1, 1.1, m), vowel)
        return syllable * np.hanning(m), m / SAMPLE_RATE + rng.uniform(0, 0.12)

    return fill(rng, n, event)


SYNTH = {'bell': bell, 'drum': drum, 'siren': siren, 'bird': bird, 'dog': dog, 'cat': cat,
         'car': car, 'clock': clock, 'whistle': whistle, 'guitar': guitar, 'telephone': telephone,
         'frog': frog, 'noise': noise, 'rain': rain, 'wind': wind, 'speech': speech}
AMBIENT = ('noise', 'rain', 'wind', 'speech')       # nothing in a picture makes these


# -------------------------------------- what a caller uses --------------------------------------

def sound(name, rng, seconds=SECONDS):
    """One clip of a sounding class, an ambient sound or 'silence', different for every draw.

    rng: numpy.random.Generator; the same state gives the same clip.
    Returns (round(seconds * SAMPLE_RATE),) float32 in -1..1. Raises ValueError for an unknown name.
    """
    n = length(seconds)
    if name == 'silence':           # half of the time exact zeros, as a muted recording has
        peak = 0.0 if rng.random() < 0.5 else 10 ** rng.uniform(*SILENT_PEAK_LOG10)
        y = rng.standard_normal(n)
    elif name in SYNTH:
        peak = rng.uniform(*PEAK)
        y = SYNTH[name](rng, n)
        floor = np.sqrt(np.mean(y ** 2)) * 10 ** (-rng.uniform(*FLOOR_DB) / 20)
        y = y + floor * rng.standard_normal(n)
    else:
        raise ValueError(f"there is no sound called {name!r}; choose 'silence' or one of "
                         f"{', '.join(SYNTH)}")
    return (y * (peak / np.abs(y).max())).astype(np.float32)                                  # (n,)


def mixture(*waveforms):
    """Two or more clips heard at once, each at gain 0.5 (VGGSound-Duet's construction).

    waveforms: (n,) each. Returns (n,) float32; within -1..1 for two clips, not bounded so for more.
    Raises ValueError when there are none or their lengths differ.
    """
    lengths = {len(x) for x in waveforms}
    if len(lengths) != 1:
        raise ValueError(f"a mixture needs waveforms of one length, got lengths {sorted(lengths)}")
    return (0.5 * np.sum(waveforms, axis=0)).astype(np.float32)                               # (n,)


# What an audio captioner may say of each sound: two phrases name the object, two what is heard.
DESCRIPTIONS = {
    'bell': ('a bell rings', 'a church bell tolling', 'a metallic ringing that slowly fades',
             'chiming in regular strokes'),
    'drum': ('a drum is played', 'someone beats two drums', 'deep thumping in a rhythm',
             'low hits echo in a room'),
    'siren': ('a siren wails', 'an emergency siren', 'a loud tone rises and falls',
              'an alarm between two pitches'),
    'bird': ('a bird sings', 'birds chirping', 'quick high chirps', 'bright tweeting up and down'),
    'dog': ('a dog barks', 'a barking dog', 'short deep barking',
            'an animal barks again and again'),
    'cat': ('a cat meows', 'a meowing cat', 'a long drawn whining cry', 'an animal mews'),
    'car': ('a car engine running', 'a car drives', 'an engine revs up and down',
            'a low motor rumble'),
    'clock': ('a clock ticks', 'the ticking of a clock', 'tick tock in even steps',
              'small sharp clicks at a steady pace'),
    'whistle': ('a whistle is blown', "a referee's whistle", 'a shrill trembling tone',
                'long piercing high blasts'),
    'guitar': ('a guitar is played', 'guitar strings are plucked', 'soft plucked notes of a melody',
               'gentle string music'),
    'telephone': ('a telephone rings', 'a phone ringing', 'electronic warbling with short pauses',
                  'two fast beeping tones'),
    'frog': ('a frog croaks', 'a croaking frog', 'rough throaty pulses',
             'low rattling calls by a pond'),
    'noise': ('static noise', 'a constant hiss', 'steady noise without any change',
              'a radio between stations'),
    'rain': ('rain is falling', 'heavy rain', 'water drops patter', 'many drops hit a roof'),
    'wind': ('wind is blowing', 'strong wind', 'gusts rush and howl', 'air swells and fades'),
    'speech': ('a person speaks', 'someone is talking', 'a human voice', 'mumbled words'),
    'silence': ('silence', 'nothing is heard', 'no sound at all', 'complete quiet'),
}


def main():
    parser = argparse.ArgumentParser('python -m miniature.sounds',
                                     description='Write three clips of every sound.')
    parser.add_argument('folder', type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*SYNTH, 'silence']:
        for example in range(3):
            clip = sound(name, np.random.default_rng(example))
            soundfile.write(folder / f'{name}_{example}.wav', clip, SAMPLE_RATE)    # 16 bits
    print(f'wrote {3 * (len(SYNTH) + 1)} clips to {folder}')


if __name__ == '__main__':
    from launch import run_script           # here, not above: drawing processes need no torch
    run_script('miniature.sounds', main, 'interrupted')
