"""A video's frame at 5.0 s and its sound are found by their time stamps, whatever the file."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from media import SampleError
from videos import extract
from videos.extract import FRAME_AT, main, read_frame, read_sound

RATE = 16_000


def grey_of_index(k):
    """The grey of frame k, at least 37 apart from those of the 4 frames on either side."""
    return 20 + 37 * k % 200


def write_video(path, times, rate=RATE, channels=1, sound=(0, 10), late=0.0, pause=0.0,
                size=(64, 32), codec='ffv1', audio_codec='pcm_s16le'):
    """A grey video with a frame at each of `times`, and a tone whose loudness grows with time.

    The left half of each frame is dark. sound: from and to in seconds; late: its first time stamp;
    pause: seconds between the time stamps of its halves.
    """
    width, height = size
    with av.open(str(path), 'w') as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = width, height, 'yuv420p'
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.gop_size = 12
        if sound:
            audio = container.add_stream(audio_codec, rate=rate,
                                         layout='stereo' if channels == 2 else 'mono')
        for k, t in enumerate(times):
            pixels = np.full((height, width, 3), grey_of_index(k), np.uint8)
            pixels[:, :width // 2] = 10
            frame = av.VideoFrame.from_ndarray(pixels, 'rgb24')
            frame.pts, frame.time_base = round(t * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound:
            samples = tone(*sound, rate)
            for k in range(0, len(samples), 1024):
                block = np.repeat(samples[k:k + 1024], channels)[None]
                frame = av.AudioFrame.from_ndarray(block, 's16', audio.layout.name)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = k + round(late * rate)
                if k >= len(samples) // 2:
                    frame.pts += round(pause * rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def tone(begin, end, rate):
    """440 Hz whose amplitude is its time over 20 s."""
    t = np.arange(round(begin * rate), round(end * rate)) / rate
    return (32767 * t / 20 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)


def grey_of(image):
    """The grey of the bright half."""
    return np.asarray(image)[8:-8, image.width * 3 // 4, :].mean()


def loudness(samples, rate, at):
    """The amplitude around a time."""
    near = samples[round((at - 0.05) * rate):round((at + 0.05) * rate)]
    return np.sqrt(2 * np.mean(np.square(near, dtype=np.float64)))


TIMES = {'25': [k / 25 for k in range(250)], '29.97': [k * 1001 / 30000 for k in range(300)],
         'variable': [*np.arange(0, 4.9, 0.07), 4.91, 6.5, 8, 9, 9.9]}
SHOWN = {'25': 125, '29.97': 149, 'variable': 70}       # index of the last frame until 5.0 s


@pytest.mark.parametrize('rate, suffix, codec', [
    ('25', 'mkv', 'ffv1'), ('29.97', 'mkv', 'ffv1'), ('variable', 'mkv', 'ffv1'),
    ('25', 'mov', 'mpeg4'), ('variable', 'mov', 'mpeg4'), ('25', 'avi', 'ffv1'),
    ('29.97', 'mp4', 'mpeg4'), ('25', 'avi', 'mpeg4'), ('25', 'webm', 'libvpx')])
def test_the_frame_is_the_one_shown_at_five_seconds(tmp_path, rate, suffix, codec):
    sound = 'libopus' if suffix == 'webm' else 'aac' if suffix == 'mp4' else 'pcm_s16le'
    path = write_video(tmp_path / f'a.{suffix}', TIMES[rate], codec=codec, audio_codec=sound)
    assert abs(grey_of(read_frame(path, FRAME_AT)) - grey_of_index(SHOWN[rate])) < 10


def test_the_last_frame_is_shown_for_its_duration(tmp_path):
    times = [*TIMES['25'][:124], 4.98]                  # and 0.04 s long
    path = write_video(tmp_path / 'a.mp4', times, codec='mpeg4', sound=None)
    assert abs(grey_of(read_frame(path, FRAME_AT)) - grey_of_index(124)) < 10


def test_a_frame_of_a_long_video_is_found_from_a_key_frame(tmp_path):
    times = [k / 25 for k in range(25 * 60)]
    path = write_video(tmp_path / 'a.mp4', times, codec='mpeg4', sound=None)
    for at in (5.0, 33.0, 59.9):
        assert abs(grey_of(read_frame(path, at)) - grey_of_index(int(25 * at + 1e-6))) < 10


ONE = (1 << 16).to_bytes(4, 'big')
MINUS = (0xFFFF << 16).to_bytes(4, 'big')
ZERO = bytes(4)
IDENTITY = ONE + ZERO * 3 + ONE + ZERO * 3         # the first two rows of an mp4's display matrix


@pytest.mark.parametrize('matrix, size, bright', [
    (ZERO + ONE + ZERO + MINUS + ZERO * 4, (32, 64), 'bottom'),                 # 90 clockwise
    (MINUS + ZERO * 3 + MINUS + ZERO * 3, (64, 32), 'left'),                    # 180
    (ZERO + MINUS + ZERO + ONE + ZERO * 4, (32, 64), 'top')])                   # 90 to the left
def test_a_frame_stands_upright_as_the_file_says(tmp_path, matrix, size, bright):
    path = write_video(tmp_path / 'a.mp4', TIMES['25'], codec='mpeg4', sound=None)
    content = path.read_bytes()
    place = content.index(IDENTITY, content.index(b'tkhd'))
    path.write_bytes(content[:place] + matrix + content[place + len(matrix):])
    image = read_frame(path, FRAME_AT).convert('L')
    picture = np.asarray(image).astype(int)
    halves = {'left': picture[:, :picture.shape[1] // 2], 'top': picture[:picture.shape[0] // 2],
              'right': picture[:, picture.shape[1] // 2:], 'bottom': picture[len(picture) // 2:]}
    assert image.size == size
    assert max(halves, key=lambda side: halves[side].mean()) == bright


@pytest.mark.parametrize('suffix, codec, late', [('mkv', 'pcm_s16le', 0), ('mp4', 'aac', 0),
                                                 ('webm', 'libopus', 0), ('mkv', 'pcm_s16le', 1.5),
                                                 ('mp4', 'aac', 1.5), ('avi', 'pcm_s16le', 0)])
def test_the_sound_lies_where_its_time_stamps_say(tmp_path, suffix, codec, late):
    picture = 'libvpx' if suffix == 'webm' else 'mpeg4'
    path = write_video(tmp_path / f'a.{suffix}', TIMES['25'], 48_000, 2, (0, 10), late,
                       codec=picture, audio_codec=codec)
    samples, rate = read_sound(path, 0.0, 10.0)
    assert samples.shape == (2, 480_000) if suffix != 'mp4' else samples.shape[1] > 479_000
    for at in (late + 1, 5.0, 9.0):
        assert loudness(samples[0], rate, at) == pytest.approx((at - late) / 20, rel=0.05)
    if late:
        assert not samples[:, :round(1.4 * rate)].any()


def test_a_gap_in_the_time_stamps_of_a_sound_is_silent(tmp_path):
    path = write_video(tmp_path / 'a.mkv', TIMES['25'], sound=(0, 8), pause=2, codec='mpeg4')
    samples, rate = read_sound(path, 0.0, 10.0)
    assert samples.shape == (1, 160_000)
    assert loudness(samples[0], rate, 2.0) == pytest.approx(2 / 20, rel=0.05)
    assert not samples[:, round(4.1 * rate):round(5.9 * rate)].any()
    assert loudness(samples[0], rate, 9.0) == pytest.approx((9 - 2) / 20, rel=0.05)


def test_times_count_from_where_the_earliest_stream_begins(tmp_path):
    path = write_video(tmp_path / 'a.mkv', [2 + t for t in TIMES['25']], late=2, codec='mpeg4')
    assert abs(grey_of(read_frame(path, FRAME_AT)) - grey_of_index(125)) < 10
    samples, rate = read_sound(path, 0.0, 10.0)
    assert samples.shape == (1, 160_000)
    assert loudness(samples[0], rate, 5.0) == pytest.approx(5 / 20, rel=0.05)


def test_ten_seconds_are_cut_from_a_long_sound(tmp_path):
    # with two key frames a second, to which a reader may jump
    path = write_video(tmp_path / 'a.mov', [k / 25 for k in range(750)], sound=(0, 30),
                       codec='mpeg4')
    samples, rate = read_sound(path, 13.0, 10.0)
    assert samples.shape == (1, 160_000)
    expected = tone(13, 23, RATE) / 32768
    assert np.abs(samples[0] - expected).max() < 1e-3


def test_what_cannot_be_used_is_one_sentence(tmp_path):
    silent = write_video(tmp_path / 'silent.mp4', TIMES['25'], codec='mpeg4', sound=None)
    short = write_video(tmp_path / 'short.mkv', TIMES['25'][:100])
    complete = write_video(tmp_path / 'complete.mkv', TIMES['25'])
    truncated = tmp_path / 'truncated.mkv'
    truncated.write_bytes(complete.read_bytes()[:complete.stat().st_size * 3 // 4])
    headless = tmp_path / 'headless.mp4'
    headless.write_bytes(silent.read_bytes()[:2000])
    late = write_video(tmp_path / 'late.mkv', TIMES['25'], sound=(0, 1), late=11)
    for read, sentence in ((lambda: read_sound(silent, 0, 10), 'silent.mp4 has no audio track'),
                           (lambda: read_frame(short, 5), 'short.mkv shows nothing at 5.0 s'),
                           (lambda: read_sound(truncated, 0, 10), 'truncated.mkv is cut short'),
                           (lambda: read_frame(headless, 5),
                            r'headless.mp4 cannot be decoded \(Inv'),
                           (lambda: read_sound(tmp_path, 0, 10), 'a folder or a pipe'),
                           (lambda: read_frame(tmp_path / 'no.mp4', 5), 'no.mp4 is missing'),
                           (lambda: read_sound(late, 0, 10), 'late.mkv has no sound in the 10 s')):
        with pytest.raises(SampleError, match=sentence):
            read()


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / 'clips'
    folder.mkdir()
    for name in ('a_000001', 'b_000002', 'c_000003'):
        write_video(folder / f'{name}.mkv', TIMES['25'], 48_000, 2, codec='mpeg4')
    write_video(folder / 'mute_000004.mp4', TIMES['25'], codec='mpeg4', sound=None)
    (folder / 'notes.txt').write_text('no video')
    return folder


def test_a_folder_becomes_frames_and_sounds_and_the_others_are_counted(clips, tmp_path, capsys):
    out = tmp_path / 'vggsound'
    command = ['--videos', str(clips), '--out', str(out), '--processes', '1']
    assert main(command) == 1
    printed = capsys.readouterr()
    assert printed.out == f'{out}: 3 of 4 are there\n'
    assert f'{clips}/mute_000004.mp4 has no audio track: ' in printed.err.splitlines()[-1]
    samples, rate = soundfile.read(out / 'audio/b_000002.wav')
    info = soundfile.info(out / 'audio/b_000002.wav')
    assert (rate, samples.shape, info.subtype) == (16_000, (160_000,), 'PCM_16')
    assert loudness(samples, rate, 7.0) == pytest.approx(7 / 20, rel=0.05)
    with Image.open(out / 'frames/b_000002.jpg') as frame:
        assert frame.size == (64, 32) and frame.quantization[0][0] == 2   # of 95
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.*')}
    (out / 'frames/c_000003.jpg').unlink()
    assert main([*command, '--skip-bad-samples']) == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob('*.*')}
    assert after.keys() == before.keys()
    changed = {path.stem for path in after if after[path] != before[path]}
    assert changed == {'c_000003'}


def test_a_frame_of_another_source_is_not_overwritten(clips, tmp_path):
    frame = tmp_path / 'o/frames/a_000001.jpg'
    frame.parent.mkdir(parents=True)
    frame.write_bytes(b'mine')
    main(['--videos', str(clips), '--out', str(tmp_path / 'o'), '--processes', '1'])
    assert frame.read_bytes() == b'mine' and (tmp_path / 'o/audio/a_000001.wav').is_file()


def test_the_list_says_which_are_wanted(clips, tmp_path, capsys):
    listed = tmp_path / 'train.csv'
    listed.write_text('b,2,dog,train\ngone,7,cat,train\n')
    command = ['--videos', str(clips), '--out', str(tmp_path / 'o'), '--processes', '1']
    assert main([*command, '--list', str(listed)]) == 1
    printed = capsys.readouterr()
    assert f'gone_000007 has no video in {clips}' in printed.err
    assert '1 of 2 are there' in printed.out
    assert [path.name for path in (tmp_path / 'o/frames').iterdir()] == ['b_000002.jpg']
    boxes = tmp_path / 'vggss.json'
    boxes.write_text('[{"file": "a_000001", "class": "dog", "bbox": [[0, 0, 1, 1]]}]')
    assert main([*command, '--list', str(boxes)]) == 0


@pytest.mark.parametrize('names, file', [('clip', '-x_y_000007'), ('ms', '-x_y_7000_17000')])
def test_the_name_of_a_clip_becomes_an_id(tmp_path, names, file):
    write_video(tmp_path / f'{file}.mkv', TIMES['25'], codec='mpeg4')
    command = ['--videos', str(tmp_path), '--out', str(tmp_path / 'o'), '--processes', '1']
    assert main([*command, '--names', names]) == 0
    frame = Image.open(tmp_path / 'o/frames/-x_y_000007.jpg')
    assert abs(grey_of(frame) - grey_of_index(125)) < 10
    samples, rate = soundfile.read(tmp_path / 'o/audio/-x_y_000007.wav')
    assert loudness(samples, rate, 8.0) == pytest.approx(8 / 20, rel=0.05)


@pytest.mark.parametrize('list_name, content', [
    ('train.csv', '-x_y,7,dog barking,train\ngone,30,cat,test\n'),
    ('vggss.json', '[{"file": "-x_y_000007", "class": "dog", "bbox": [[0, 0, 1, 1]]},'
                   ' {"file": "gone_000030", "class": "cat", "bbox": [[0, 0, 1, 1]]}]')])
def test_ten_seconds_of_a_complete_video_are_cut_where_the_list_says(tmp_path, capsys, list_name,
                                                                    content):
    folder = tmp_path / 'videos'
    folder.mkdir()
    write_video(folder / '-x_y.mkv', [k / 25 for k in range(25 * 19)], sound=(0, 19), codec='mpeg4')
    (tmp_path / list_name).write_text(content)
    command = ['--videos', str(folder), '--out', str(tmp_path / 'o'), '--processes', '1']
    assert main([*command, '--names', 'whole', '--list', str(tmp_path / list_name)]) == 1
    printed = capsys.readouterr()
    assert '1 of 2 are there' in printed.out
    assert f'gone_000030 has no video in {folder}' in printed.err
    frame = Image.open(tmp_path / 'o/frames/-x_y_000007.jpg')
    assert abs(grey_of(frame) - grey_of_index(25 * (7 + 5))) < 10
    samples, rate = soundfile.read(tmp_path / 'o/audio/-x_y_000007.wav')
    assert samples.shape == (160_000,)
    assert loudness(samples, rate, 8.0) == pytest.approx((7 + 8) / 20, rel=0.05)


def test_names_that_are_none_and_two_videos_of_one_id_are_refused(tmp_path):
    def refused(names, kind):
        folder = tmp_path / '-'.join(names)
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        with pytest.raises(ValueError) as caught:
            extract.videos_in(folder, kind)
        return str(caught.value).replace(f'{folder}/', '')

    assert refused(['a_1.mp4'], 'ms').startswith('a_1.mp4 is not named <youtubeid>_<from>_<to> in')
    assert (refused(['a_30000_1.mp4', 'a_30999_2.mp4'], 'ms')
            == 'a_30000_1.mp4 and a_30999_2.mp4 are both a_000030: move one elsewhere')
    assert refused(['a.mp4', 'a.webm'], 'clip') == ('a.mp4 and a.webm are both a: move one '
                                                    'elsewhere')
    for wrong in ('plain', 'a_\u00b2', f'a_{"9" * 30}'):
        with pytest.raises(ValueError, match='is not <youtubeid>_<second>, .*: correct --list'):
            extract.locate(wrong, {'a': Path('a.mp4')})


def test_what_a_killed_run_has_left_half_written_goes(clips, tmp_path):
    left = tmp_path / 'o/frames/a_000001.jpg.partial123'
    left.parent.mkdir(parents=True)
    left.write_bytes(b'half')
    main(['--videos', str(clips), '--out', str(tmp_path / 'o'), '--processes', '1'])
    names = ['a_000001.jpg', 'b_000002.jpg', 'c_000003.jpg']
    assert sorted(path.name for path in left.parent.iterdir()) == names


def test_a_missing_folder_or_list_names_its_option(clips, tmp_path):
    command = ['--out', str(tmp_path / 'o'), '--videos']
    with pytest.raises(FileNotFoundError, match='there is no folder .*none: correct --videos'):
        main([*command, str(tmp_path / 'none')])
    with pytest.raises(FileNotFoundError, match='there is no list .*none.csv: correct --list'):
        main([*command, str(clips), '--list', str(tmp_path / 'none.csv')])


def test_a_folder_without_videos_and_complete_videos_without_seconds_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match='holds no video'):
        main(['--videos', str(tmp_path), '--out', str(tmp_path / 'o')])
    with pytest.raises(SystemExit):
        main(['--videos', str(tmp_path), '--out', str(tmp_path / 'o'), '--names', 'whole'])
