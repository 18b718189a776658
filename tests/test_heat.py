"""A video's heatmaps follow its sound, and the written video keeps its time stamps and sound."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from figures.pictures import heat_colours
from media import SampleError
from model import PRESETS, ROOT, load_model
from test_extract import write_video
from videos import drawn, heat
from videos.drawn import NAMES, TURN, draw_clip
from videos.extract import read_sound
from videos.heat import embed_moments, heat_video, heatmaps, main, read_frames

CONFIG = PRESETS['miniature']


@pytest.fixture(scope='module')
def model():
    return load_model('miniature', ROOT / 'miniature/weights/av.pt')[0]


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp('clip') / 'clip.mp4'
    return path, draw_clip(path)


def test_the_heat_moves_to_the_other_object_when_its_sound_begins(model, clip):
    path, places = clip
    samples, rate = read_sound(path, 0.0, 60.0)
    A = embed_moments(model, torch.from_numpy(samples[0]), 0.2, CONFIG.seconds, CONFIG.seconds)
    assert rate == 16_000 and len(A) == 2 * TURN / 0.2 + 1
    on_sounding, on_other = np.zeros((2, round(2 * TURN)))
    for seconds, frame in list(read_frames(path))[::5]:
        [found] = heatmaps(model, [frame], [seconds], A, 0.2, CONFIG.image_size)
        means = [found[place].mean() for place in places]
        now = int(seconds // TURN)
        on_sounding[int(seconds)] += means[now]
        on_other[int(seconds)] += means[1 - now]
    right = on_sounding > on_other
    assert len(NAMES) == 2 and right.mean() >= 0.9, right


def test_a_window_is_centred_at_its_moment_and_followed_by_silence():
    heard = []
    ear = SimpleNamespace(prompt_before=torch.zeros(1),
                          embed_audio=lambda wav: heard.append(wav) or wav[:, :1])
    wav = torch.arange(1.0, 32_001)
    assert embed_moments(ear, wav, 0.5, 1.0, 2.0).shape == (5, 1)       # at 0, 0.5, ... 2 s
    [windows] = heard
    around = torch.cat([torch.zeros(8000), wav, torch.zeros(8000)])     # from 0.5 s before it
    for k, window in enumerate(windows):
        assert torch.equal(window[:16_000], around[8000 * k:][:16_000])
        assert len(window) == 32_000 and not window[16_000:].any()


def test_each_frame_and_each_moment_is_encoded_once(model, tmp_path):
    path = write_video(tmp_path / 'a.mp4', [k / 10 for k in range(30)], sound=(0, 3),
                       codec='mpeg4', audio_codec='aac')
    frames, sounds = [], []
    hooks = [model.clipseg.clip.vision_model.embeddings.register_forward_hook(
                 lambda _, given, out: frames.append(len(out))),
             model.beats.register_forward_hook(lambda _, given, out: sounds.append(len(out)))]
    heat_video(model, CONFIG, path, tmp_path / 'heat.mp4', 0.5, 2.0)
    for hook in hooks:
        hook.remove()
    assert sum(frames) == 30
    assert sum(sounds) == 3 / 0.5 + 1


def test_the_blend_between_two_moments_is_linear(model):
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    A = model.embed_audio(torch.rand(3, 32_000) * 2 - 1).detach()
    begin, middle, end, last, after = heatmaps(model, [frame] * 5, [0.0, 0.05, 0.2, 0.4, 9.0], A,
                                               0.2, 96)
    assert begin.shape == (40, 60)
    assert np.allclose(middle, 0.75 * begin + 0.25 * end, atol=1e-5)
    assert np.allclose(last, after, atol=1e-5)
    assert not np.allclose(begin, end, atol=1e-3) and not np.allclose(end, last, atol=1e-3)


def test_moments_of_a_third_of_a_second_do_not_drift_from_their_sounds(model, tmp_path,
                                                                       monkeypatch):
    path = write_video(tmp_path / 'a.mkv', [0, 0.5], sound=(0, 1), codec='mpeg4')
    given = []
    monkeypatch.setattr(heat, 'heatmaps', lambda *a: given.append(a[4]) or heatmaps(*a))
    monkeypatch.setattr(heat, 'embed_moments', lambda *a: given.append(a[2:]) or embed_moments(*a))
    heat_video(model, CONFIG, path, tmp_path / 'heat.mp4', 1 / 3, 1.0)
    every = 5333 / 16_000                       # embed_moments takes a window every 5333 samples
    assert given == [(every, 1.0, CONFIG.seconds), every]


@pytest.mark.parametrize('side_by_side, width', [(False, 64), (True, 192)])
def test_the_written_video_keeps_its_time_stamps_and_its_sound(model, tmp_path, side_by_side,
                                                               width):
    times = [0, 0.1, 0.25, 0.3, 0.9, 1.5, 2.0]
    path = write_video(tmp_path / 'a.mkv', times, 48_000, 2, sound=(3, 6), codec='mpeg4')
    out = tmp_path / 'heat.mp4'
    heat_video(model, CONFIG, path, out, 0.5, 2.0, side_by_side)
    with av.open(str(out)) as container:
        assert [float(f.time) for f in container.decode(video=0)] == pytest.approx(times, abs=0.002)
        assert container.streams.video[0].width == width
    before, after = (read_sound(file, 0.0, 2.5)[0] for file in (path, out))
    assert after.shape == before.shape
    for at in range(10_000, 110_000, 20_000):
        part = slice(at, at + 10_000)
        assert after[0, part].std() == pytest.approx(before[0, part].std(), rel=0.05)


def test_a_large_video_is_reduced_and_a_gif_has_five_frames_a_second(model, tmp_path):
    path = write_video(tmp_path / 'a.mkv', [k / 25 for k in range(25)], size=(1602, 400),
                       sound=(0, 1), codec='mpeg4')
    assert {frame.size for _, frame in read_frames(path)} == {(1280, 320)}
    small = write_video(tmp_path / 'b.mkv', [k / 25 for k in range(25)], sound=(0, 1))
    heat_video(model, CONFIG, small, tmp_path / 'heat.gif', 0.5, 2.0)
    with Image.open(tmp_path / 'heat.gif') as animation:
        assert (animation.n_frames, animation.info['duration']) == (5, 200)     # milliseconds
    assert {path.name for path in tmp_path.iterdir()} == {'a.mkv', 'b.mkv', 'heat.gif'}


def test_frames_are_upright_and_their_times_count_from_the_first(tmp_path, monkeypatch):
    path = write_video(tmp_path / 'a.mkv', [0.5, 0.6], sound=None, codec='mpeg4')
    monkeypatch.setattr(heat, 'upright', lambda frame: frame.to_image().rotate(90, expand=True))
    times, frames = zip(*read_frames(path))
    assert times == pytest.approx((0, 0.1)) and {frame.size for frame in frames} == {(32, 64)}


def test_side_by_side_are_the_frame_its_heatmap_and_the_overlay():
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    found = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    sheet = heat.draw_frame(frame, found, True)
    parts = [np.asarray(frame), heat_colours(found), heat.draw_frame(frame, found, False)]
    assert np.array_equal(sheet, np.concatenate(parts, 1))


def test_options_reach_the_model_and_the_video(tmp_path, monkeypatch):
    told = []
    loaded = 'model', None, 'miniature', None, None
    monkeypatch.setattr(heat, 'load', lambda device, *given, **more: told.append(given) or loaded)
    monkeypatch.setattr(heat, 'heat_video', lambda *given: told.append(given))
    out = str(tmp_path / 'h.gif')
    main('a.mp4 --checkpoint c.pt --variant av_llm --every 0.5 --window 1 --side-by-side '
         f'--device cpu --out {out}'.split())
    assert told == [('c.pt', 'av_llm', None), ('model', CONFIG, 'a.mp4', out, 0.5, 1.0, True)]


def test_an_error_within_the_video_leaves_no_file(model, tmp_path, monkeypatch):
    path = write_video(tmp_path / 'a.mkv', [0, 0.5], sound=(0, 1), codec='mpeg4')

    def fail(*values):
        raise OSError('no space')

    monkeypatch.setattr(heat, 'draw_frame', fail)
    with pytest.raises(OSError, match='no space'):
        heat_video(model, CONFIG, path, tmp_path / 'heat.mp4', 0.5, 2.0)
    assert {path.name for path in tmp_path.iterdir()} == {'a.mkv'}


def test_the_command_draws_its_own_clip(tmp_path, monkeypatch, capsys):
    clips = []
    monkeypatch.setattr(heat, 'draw_clip', lambda path: clips.append(write_video(
        path, [0, 0.5], sound=(0, 1), codec='mpeg4', audio_codec='aac')))
    main(['--out', str(tmp_path / 'heat.mp4'), '--device', 'cpu'])
    assert len(clips) == 1 and (tmp_path / 'heat.mp4').stat().st_size
    assert 'heatmaps of a drawn clip' in capsys.readouterr().out


def test_what_cannot_be_done_is_one_sentence_and_leaves_no_file(model, tmp_path, monkeypatch):
    mute = write_video(tmp_path / 'mute.mp4', [0, 1], sound=None, codec='mpeg4')
    with pytest.raises(SampleError, match='mute.mp4 has no audio track'):
        heat_video(model, CONFIG, mute, tmp_path / 'heat.mp4', 0.5, 2.0)
    for window in ('5', '0', 'nan'):
        with pytest.raises(ValueError, match=f'--window {window} must be 0.1 to 2 seconds'):
            main([str(mute), '--out', str(tmp_path / 'heat.mp4'), '--window', window,
                  '--device', 'cpu'])
    for wrong in (['--out', 'heat.avi'], ['--every', '0'], ['--every', 'inf'],
                  [str(mute), '--out', str(mute)]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ['mute.mp4']
    (tmp_path / 'folder.mp4').mkdir()
    monkeypatch.setattr(heat, 'load', None)             # not reached
    with pytest.raises(OSError, match='folder.mp4: it is no file'):
        main([str(mute), '--out', str(tmp_path / 'folder.mp4')])


def test_a_clip_that_cannot_be_written_names_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, 'TURN', 0.1)
    with pytest.raises(OSError, match='cannot write .*: it is no file'):
        draw_clip(tmp_path)


def test_a_gif_of_a_very_narrow_video_is_a_pixel_wide(tmp_path):
    heat.write_gif(tmp_path / 'heat.gif', [(0, np.zeros((1200, 2, 3), np.uint8))])
    assert Image.open(tmp_path / 'heat.gif').size == (1, 240)
