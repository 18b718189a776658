"""The report: one HTML file with tables, pictures and sounds, that needs nothing but itself."""

import base64
import io
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from figures import report
from test_figures import EXAMPLES, example

SCORES = {'cIoU': 12.34, 'AUC': 5.0, 'n': 7, 'n_expected': 9}


class Page(HTMLParser):
    """What a page holds: elements with their attributes, text, elements that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ('meta', 'link', 'img', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(tmp_path, examples, tables=None, facts=None):
    """The page of these tables and examples. A task without scores has an empty table."""
    path = tmp_path / 'new/report.html'
    tables = {**{e['task']: ({'ours': {}}, None) for e in examples}, **(tables or {})}
    report.report(path, tables, examples, facts or {})
    assert [file.name for file in path.parent.iterdir()] == ['report.html']
    return Page(path.read_text(encoding='utf-8'))


def sound(attributes):
    """An audio element's rate, and its samples as int16."""
    data = base64.b64decode(attributes['src'].removeprefix('data:audio/wav;base64,'))
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), '<i2')


def test_report_needs_nothing_but_itself(tmp_path):
    examples = [e for kind in EXAMPLES.values() for e in kind]
    tables = {'single': ({'ours': {'vggss': SCORES}, 'oracle': {'vggss': None}}, 'av')}
    page = page_of(tmp_path, examples, tables, facts={'preset': 'paper'})
    assert page.open == []                                          # every element is closed
    sources = [attributes[name] for _, attributes in page.elements
               for name in ('src', 'href') if name in attributes]
    assert all(source.startswith(('data:', '#')) for source in sources)
    text = (tmp_path / 'new/report.html').read_text(encoding='utf-8')
    text = re.sub(r'base64,[\w+/=]+', '', text)
    assert not re.search(r'https?:|file:|url\(|@import|fetch\(|{{|{%', text)
    assert len(page.all('audio')) == len(examples)
    anchors = {attributes['id'] for attributes in page.all('section')}
    assert {link['href'] for link in page.all('a')} == {f'#{name}' for name in anchors}
    assert len(anchors) == 5
    for attributes in page.all('img'):
        data = base64.b64decode(attributes['src'].removeprefix('data:image/jpeg;base64,'))
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.width in (56, 64, 448)


def test_sounds_of_one_frame_share_a_card(tmp_path):
    for kind, cards in (('single', 3), ('robust', 2), ('interactive', 3), ('multisource', 2)):
        assert len(page_of(tmp_path, EXAMPLES[kind]).all('article')) == cards
    page = page_of(tmp_path, EXAMPLES['interactive'])       # what a sound puts on the frame
    overlays = [image for image in page.all('img') if image['class'] == 'overlay']
    assert len(overlays) == len(EXAMPLES['interactive'])
    page = page_of(tmp_path, EXAMPLES['multisource'])       # nothing in mixtures
    assert not [image for image in page.all('img') if image['class'] == 'overlay']


def test_audio_decodes_to_the_same_samples(tmp_path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 4000).astype(np.int16)
    samples[:2] = -32768, 32767
    wav = samples.astype(np.float32) / 32768
    page = page_of(tmp_path, [example('single', 'vggss', wav=wav)])
    rate, heard = sound(page.all('audio')[0])
    assert rate == 16000 and (heard == samples).all()
    assert not any('level' in words for words in page.words[-20:])


def test_loud_noise_is_softened_and_said_so(tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)
    page = page_of(tmp_path, [example('robustness', 'robust_s4', condition='noise', wav=noise)])
    _, heard = sound(page.all('audio')[0])
    assert np.sqrt(np.mean((heard / 32768) ** 2)) == pytest.approx(report.SOFTENED, rel=0.01)
    assert np.corrcoef(heard, noise)[0, 1] > 0.999 and 'played at 17% of its level' in page.words


def test_long_sounds_are_cut_to_an_equal_share_and_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'SOUND_SECONDS', 2)
    sounds = [example('single', 'vggss', str(k), wav=np.full(32000, 0.1)) for k in range(4)]
    page = page_of(tmp_path, sounds)
    assert [len(sound(attributes)[1]) for attributes in page.all('audio')] == [8000] * 4
    assert page.words.count('the first 0.5 of 2.0 s') == 4


def test_silence_is_played(tmp_path):
    page = page_of(tmp_path, [example('single', 'vggss', wav=np.zeros(800, np.float32))])
    assert sound(page.all('audio')[0])[1].tolist() == [0] * 800


def test_text_is_escaped(tmp_path):
    evil = '<script>alert("x")</script> & $body'
    page = page_of(tmp_path, [example('single', 'vggss', label=evil)], None, {evil: evil})
    assert len(page.all('script')) == 1                             # the page's own
    assert page.words.count(evil) == 3                  # name, value, card


def test_our_rows_are_marked_and_no_others(tmp_path):
    ours = {'vggss': SCORES, 'is4': SCORES}
    page = page_of(tmp_path, [], {'single': ({'ours': ours, 'oracle': {'vggss': SCORES}}, 'av')})
    kinds = [attributes['class'] for attributes in page.all('tr') if attributes]
    assert kinds == ['ours', 'other', 'other', 'other'] * 2


def test_the_row_of_maps_on_disk_is_marked_as_ours_is(tmp_path):
    page = page_of(tmp_path, [], {'single': ({'heatmaps': {'vggss': SCORES}}, None)})
    assert [attributes['class'] for attributes in page.all('tr') if attributes] == ['ours']


def test_each_sound_of_a_card_has_its_own_name_and_puts_its_own_overlay_on_the_frame(tmp_path):
    two = [example('interactive', 'is4', group='a', label=name) for name in ('dog', 'cat')]
    page = page_of(tmp_path, two)
    words = [word for word in page.words if word in ('sound 1', 'sound 2', 'dog', 'cat')]
    assert words == ['sound 1', 'dog', 'sound 2', 'cat']
    script = (tmp_path / 'new/report.html').read_text(encoding='utf-8').partition('<script>')[2]
    assert "overlay = player.closest('.sound').querySelector('img.overlay')" in script


def test_text_oracle_is_shown_where_there_is_one(tmp_path):
    without, with_one = (page_of(tmp_path, [example('single', 'vggss', oracle=oracle)])
                         for oracle in (None, np.zeros((56, 56))))
    assert 'text oracle' not in without.words and 'text oracle' in with_one.words


def test_the_page_shows_other_methods_overlays_and_ious(tmp_path):
    mine = example('single', 'vggss')
    mine['heats'] |= {'by FNAC': mine['heats']['overlay'], 'by SLAVC': None}
    mine['scores'] |= {'by FNAC': 0.25, 'by SLAVC': None}
    page = page_of(tmp_path, [mine])
    captions = [image['alt'] for image in page.all('img')]
    assert captions == ['frame', 'ground truth', 'heatmap', 'overlay', 'by FNAC']
    assert 'by FNAC 0.25' in page.words
