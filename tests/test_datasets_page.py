"""docs/datasets.md: its commands bring each release's own layout to where benchmarks/ looks."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from benchmarks import BENCHMARKS
from benchmarks.check import check
from conftest import ROOT

PAGE = (ROOT / 'docs/datasets.md').read_text(encoding='utf-8')
DOWNLOADS = re.compile(r'^( *)(git|curl|unzip|tar|python -m) .*', re.M)
LVS = 'lists/Localizing-Visual-Sounds-the-Hard-Way/metadata/'
ALIGNMENT = 'lists/SSLalignment/metadata/'
RELEASE = 'lists/ACL-SSL/AVSBench/metadata/'
pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='the page is for bash')


def commands(name):
    """What the section about a set has one type, its downloads replaced by nothing."""
    section = re.search(rf'^### [^\n]*`{name}`.*?(?=^##)', PAGE, re.M | re.S)[0]
    lines = [line[4:] for line in section.splitlines() if line.startswith('    ')]
    return DOWNLOADS.sub(r'\1:', '\n'.join(lines))


def write(*paths):
    """Make a small file of the kind that each name says, or of a text: (name, text)."""
    for path in paths:
        path, text = path if isinstance(path, tuple) else (path, None)
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            file.write_text(text, encoding='utf-8')
        elif file.suffix == '.wav':
            soundfile.write(file, np.sin(np.arange(32_000)), 16_000)
        elif file.suffix == '.pkl':
            file.write_bytes(pickle.dumps(np.ones((8, 8))))
        else:
            Image.fromarray(np.full((8, 8), 18, np.uint8)).save(file)


def boxes(*names):
    return json.dumps([{'image': f'any/folder/{name}.jpg', 'audio': f'{name}.wav',
                        'gt_box': [1, 2, 30, 40]} for name in names])


XML = '<root><annotator><bbox>{}</bbox></annotator></root>'.format(
    ''.join(f'<n>{number}</n>' for number in (1, 5, 5, 90, 90)))
ARCHIVES = {
    'flickr': [(f'{LVS}flickr_test.csv', '123,0\n1234,7\n'),
               (f'{ALIGNMENT}flickr_test_plus_silent.csv',
                'video,audio,label\n123,1234,non-sounding\n1234,123,non-sounding\n'),
               ('Annotations/123.xml', XML), ('Annotations/1234.xml', XML),
               'Data/0/1234.mp4/frame1.jpg', 'Data/0/1234.mp4/1234.wav', 'Data/3/123.jpg',
               'Data/3/123.wav', 'Data/4/99123.jpg'],
    'is4': [(f'{ALIGNMENT}synthetic3240_bbox.json', boxes('a_b_1_a', 'a_b_1_b')),
            *(f'{part}/a_b_1_{name}.{suffix}' for name in 'ab' for part, suffix in
              (('images', 'jpg'), ('audio_wav', 'wav'), ('gt_segmentation', 'png')))],
    'vpo_ss': [(f'{ALIGNMENT}vpo_ss_bbox.json', boxes('000000000007_45')),
               (f'{ALIGNMENT}vpo_ms_bbox.json', boxes('000000000008_1', '000000000008_2')),
               ('VPO/VPO-SS/vpo_ss_data_stereo.csv',
                'img_Id,ann_Ids,cateName,cateId,vgg_file\n7,45,dog,18,x\n9,46,dog,18,x\n'),
               ('VPO/VPO-MS/vpo_ms_data_stereo.csv',
                'img_Id,ann_Ids,cateName,cateId,vgg_file\n8,1,dog,18,x\n8,2,cat,17,y\n'),
               'VPO/VPO-SS/data/dog/000000000007.jpg', 'VPO/VPO-MS/data/000000000008.jpg',
               'VPO/VPO-SS/mask/dog/000000000007_000000000045.png',
               'VPO/VPO-MS/mask/000000000008.png', 'VGGSound/audios/x.wav',
               'VGGSound/audios/y.wav'],
    'avs_s4': [(f'{RELEASE}avs1_s4_test.csv', 'x_1,dog\ny_1,cat\n'),
               (f'{RELEASE}avs1_ms3_test.csv', 'z_0_1,"man, dog"\nw_1,piano\n'),
               (f'{ALIGNMENT}s4_box.json', boxes('x_1', 'y_1')),
               *(f'Single-source/s4_data/{part}_1.png' for name in ('dog/x/x', 'cat/y/y')
                 for part in (f'visual_frames/test/{name}', f'gt_masks/test/{name}')),
               *(f'Single-source/s4_data/audio_wav/test/{name}.wav' for name in ('dog/x', 'cat/y')),
               *(f'Multi-sources/ms3_data/{part}_1.png' for name in ('z_0', 'w') for part in
                 (f'visual_frames/{name}/{name}.mp4', f'gt_masks/test/{name}/{name}')),
               *(f'Multi-sources/ms3_data/audio_wav/test/{name}.wav' for name in ('z_0', 'w'))],
    'ade20k': [('ADE20KSoundPrompted/prompted_segmentation.csv',
                'image_location,vggsound_file,ade_class_id\na.jpg,any/x.wav,3\n'),
               'ADE20KSoundPrompted/frames/a.jpg', 'ADE20KSoundPrompted/audio/x.wav',
               'ADE20KSoundPrompted/annotations/a_seg.png'],
    'vgg_instruments': [('lists/AVGN/metadata/vgginstruments_multi_test.csv',
                         's0,banjo,s1,sitar\n'),
                        *(f'vgginstruments/{part}' for k in (0, 1) for part in
                          (f'frames/s{k}.jpg', f'audio/s{k}.wav', f'anno/s{k}.pkl'))]}


@pytest.mark.parametrize('name, others', [
    ('flickr', ['ext_flickr']), ('is4', []), ('vpo_ss', ['vpo_ms']), ('ade20k', []),
    ('avs_s4', ['avs_ms3', 'robust_s4', 'robust_ms3']), ('vgg_instruments', [])])
def test_the_commands_of_a_set_leave_nothing_missing(name, others, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable), prepend=os.pathsep)
    write(*ARCHIVES[name])
    subprocess.run(['bash', '-e', '-c', commands(name)], check=True)
    counts, sentences = check([name, *others], Path('data'), 2.0)
    assert not any(sentences.values()), sentences
    assert all(found['samples'] for found in counts.values())


def test_masks_of_vpo_hold_the_class_of_their_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', os.path.dirname(sys.executable), prepend=os.pathsep)
    write(*ARCHIVES['vpo_ss'])                      # each pixel is of class 18
    subprocess.run(['bash', '-e', '-c', commands('vpo_ss')], check=True)
    masks = Path('data/vpo_ms/gray_masks')
    dog, cat = (np.asarray(Image.open(masks / f'000000000008_{k}.png')) for k in (1, 2))
    assert dog.min() == 255 and cat.max() == 0


def test_each_set_has_a_section_that_ends_in_its_check():
    headings = re.findall(r'^### (.*)$', PAGE, re.M)
    for name in BENCHMARKS:
        assert any(f'`{name}`' in heading for heading in headings), name
        section = re.search(rf'^### [^\n]*`{name}`.*?(?=^##)', PAGE, re.M | re.S)[0]
        last = [line for line in section.splitlines() if line.startswith('    ')][-1]
        assert re.search(rf'benchmarks\.check --preset paper --benchmarks .*\b{name}\b', last)
