"""Sounds, pictures and masks as other programs write them: the right values, or one sentence."""

import importlib.util
import os
import re
import struct
import subprocess
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import media
from benchmarks import maps
from figures.own import one_pair
from model import PRESETS

RATE = 16000
TONE = 0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)      # 2 s
RMS = 0.3 / 2**0.5                                                     # 0.212
PCM = (TONE * 32767).astype('<i2').tobytes()
LIST = b'LIST' + struct.pack('<I', 18) + b'INFOISFT' + struct.pack('<I', 6) + b'encode'


def wav_file(path, stated, samples=PCM, riff=None, bits=16, tag=1, more=b'', before=b'', after=b''):
    """A mono WAV whose data chunk states a size of `stated` bytes. more: of the format chunk."""
    form = struct.pack('<HHIIHH', tag, 1, RATE, RATE * bits // 8, bits // 8, bits) + more
    body = b'WAVEfmt ' + struct.pack('<I', len(form)) + form + before + b'data'
    body += struct.pack('<I', stated) + samples + after
    path.write_bytes(b'RIFF' + struct.pack('<I', len(body) if riff is None else riff) + body)
    return path


def rms(wav):
    return wav.pow(2).mean().sqrt().item()


def refused(read, path, words):
    with pytest.raises(media.SampleError, match=words) as error:
        read(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def first_second(path):
    return media.read_audio(path, 1.0)


# ---- the length of a WAV

@pytest.mark.parametrize('riff, stated', [
    (0x7FFFF024, 0x7FFFF000), (0x7FFFFFFF, 0x7FFFFFFF), (0x80000000, 0x7FFFFFDC),
    (0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (36, 0), (0xFFFFFFFF, 0), (36 + len(PCM), 0)])
@pytest.mark.parametrize('before', [b'', LIST])
def test_a_wav_whose_size_is_a_placeholder_ends_where_its_file_ends(tmp_path, riff, stated, before):
    path = wav_file(tmp_path / 'a.wav', stated, riff=riff, before=before)
    whole = media.read_audio(path, 3.0)
    assert np.allclose(whole[:2 * RATE], TONE, atol=1e-4) and not whole[2 * RATE:].any()
    assert rms(media.read_audio(path, 2.0)) == pytest.approx(RMS, abs=1e-3)
    assert media.read_channels(path, 4.0)[2 * RATE:].tolist() == whole[:2 * RATE].tolist()
    total = ' of 2.0' if stated else ''
    assert media.part_heard(path, 0.5) == f'the first 0.5{total} s of a.wav'
    assert media.part_heard(path, 2.0) is None


def test_a_wav_is_judged_by_its_samples_and_not_by_the_size_around_them(tmp_path):
    for riff in (0, 100, 44 + len(PCM), 0x7FFFFFF0):    # 44: a recorder that counts its header
        path = wav_file(tmp_path / 'a.wav', len(PCM), riff=riff)
        assert rms(media.read_audio(path, 2.0)) == pytest.approx(RMS, abs=1e-3)
    path = wav_file(tmp_path / 'a.wav', len(PCM), after=LIST[:-3])
    assert rms(media.read_audio(path, 2.0)) == pytest.approx(RMS, abs=1e-3)
    for lacking in (1, len(PCM) // 2):
        path = wav_file(tmp_path / 'cut.wav', len(PCM), PCM[:-lacking])
        refused(first_second, path, f'is cut short by {lacking} bytes')


def test_placeholders_of_other_sample_formats(tmp_path):
    u8 = (TONE * 127 + 128).astype(np.uint8).tobytes()[:-1]                         # an odd number
    i24 = b''.join(int(v * 8388607).to_bytes(3, 'little', signed=True) for v in TONE)
    f32 = TONE.astype('<f4').tobytes()
    guid = bytes.fromhex('0100000000001000800000aa00389b71')
    extensible = struct.pack('<HHI', 22, 16, 4) + guid
    for more in ({'samples': u8, 'bits': 8}, {'samples': i24, 'bits': 24},
                 {'samples': i24[:-1], 'bits': 24}, {'samples': f32, 'bits': 32, 'tag': 3},
                 {'tag': 0xFFFE, 'more': extensible}):
        for stated in (0xFFFFFFFF, 0):
            path = wav_file(tmp_path / 'a.wav', stated, **more)
            incomplete = more.get('samples') == i24[:-1] and stated == 0
            if incomplete and av.__version__ < '18':        # the last for Python 3.10
                refused(lambda path: media.read_audio(path, 2.0), path, 'Invalid data')
                continue
            assert np.allclose(media.read_audio(path, 2.0)[:-2], TONE[:-2], atol=2 / 127)


def test_a_size_of_0_before_eight_channels(tmp_path):
    path = tmp_path / 'a.wav'
    soundfile.write(path, np.repeat(TONE[:, None], 8, 1), RATE)
    head, samples = path.read_bytes().split(b'data')
    path.write_bytes(head + b'data' + bytes(4) + samples[4:])
    assert np.allclose(media.read_audio(path, 2.0), TONE, atol=1e-4)


@pytest.mark.parametrize('kind', [
    {'format': 'AIFF'}, {'format': 'AU'}, {'format': 'W64'}, {'format': 'RF64'}, {'endian': 'BIG'}])
def test_a_format_whose_truncation_goes_unnoticed_is_read_where_it_is_long_enough(tmp_path, kind):
    path = tmp_path / 'a.wav'
    soundfile.write(path, TONE, RATE, **{'format': 'WAV', **kind})
    assert np.allclose(media.read_audio(path, 1.0), TONE[:RATE], atol=1e-4)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 4])
    refused(first_second, path, f'ends early.*{kind.get("format", "WAV")}.*save it as wav')


def test_a_damaged_header_does_not_ask_for_all_memory(tmp_path):
    path = wav_file(tmp_path / 'a.wav', len(PCM))
    content = bytearray(path.read_bytes())
    content[22:28] = struct.pack('<HI', 144, 10**9)     # channels, and samples a second
    path.write_bytes(content)
    refused(first_second, path, 'odd rate')


# ---- the length of a FLAC, an MP3 and an OGG

def test_a_flac_of_unknown_length_is_read_to_its_end_and_refused_when_cut(tmp_path):
    path = tmp_path / 'a.flac'
    soundfile.write(path, TONE, RATE)
    known = path.read_bytes()
    unknown = bytearray(known)
    unknown[21] &= 0xF0                                         # the number of samples, 36 bits
    unknown[22:26] = bytes(4)
    unknown[26:42] = bytes(16)                                  # and their checksum
    path.write_bytes(unknown)
    for seconds in (0.5, 2.0, 3.0):
        wav = media.read_audio(path, seconds)
        assert np.allclose(wav[:2 * RATE], TONE[:len(wav)], atol=1e-4)
        assert not wav[2 * RATE:].any()
    assert media.part_heard(path, 0.5) == 'the first 0.5 s of a.flac'
    assert media.part_heard(path, 2.0) is None
    for content in (unknown, known):
        path.write_bytes(content[:len(content) // 2])
        refused(lambda path: media.read_audio(path, 2.0), path, 'not a readable sound .*lost sync')
    more = bytearray(known)
    more[22:26] = struct.pack('>I', len(TONE) + 1)
    path.write_bytes(more)
    refused(lambda path: media.read_audio(path, 3.0), path, 'cut short by 1 samples')


@pytest.fixture(scope='module', params=['VARIABLE', 'CONSTANT'])
def mp3(request, tmp_path_factory):
    """{'full', 'no_xing'}: noise, silence and from 0.9 s on a tone."""
    path = tmp_path_factory.mktemp('mp3') / 'a.mp3'
    high = np.zeros(2 * 44100)
    high[:3500] = 0.4 * np.random.default_rng(0).standard_normal(3500)
    high[40000:] = 0.3 * np.sin(2 * np.pi * 440 * np.arange(48200) / 44100)
    soundfile.write(path, high, 44100, subtype='MPEG_LAYER_III', bitrate_mode=request.param,
                    compression_level=0.0)
    full = path.read_bytes()
    kilobits = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][full[2] >> 4]
    return {'full': full, 'no_xing': full[144 * kilobits * 1000 // 44100 + (full[2] >> 1 & 1):]}


def test_an_mp3_that_does_not_state_its_length_is_decoded_to_its_end(tmp_path, mp3):
    id3 = b'ID3\x03\x00\x00\x00\x00\x02\x01TIT2' + struct.pack('>I', 247) + bytes(3) + b'x' * 246
    title = b'TAG' + bytes(125)
    path = tmp_path / 'a.mp3'
    for content in (id3 + mp3['full'], mp3['full']):
        path.write_bytes(content)
        right = rms(media.read_audio(path, 2.1))
        assert right == pytest.approx(0.164 * (2 / 2.1) ** 0.5, abs=1e-3)
        assert media.part_heard(path, 1.0) == 'the first 1.0 of 2.0 s of a.mp3'
    raw = mp3['no_xing']
    for content in (raw, id3 + raw, raw + title, id3 + raw + title):
        path.write_bytes(content)
        assert rms(media.read_audio(path, 2.1)) == pytest.approx(right, abs=1e-3)
    assert media.part_heard(path, 1.0) == 'the first 1.0 s of a.mp3'
    assert media.part_heard(path, 2.1) is None
    sizes = mp3['full'].replace(b'\0\0\0\x0f', b'\0\0\0\x0e', 1)      # of all but the frames
    path.write_bytes(sizes)
    assert media.part_heard(path, 1.0) == 'the first 1.0 s of a.mp3'
    path.write_bytes(raw[:-100])                # as a stream ends: within a frame
    assert rms(media.read_audio(path, 2.0)[RATE:int(1.9 * RATE)]) == pytest.approx(RMS, abs=5e-3)
    soundfile.write(path, np.stack([TONE, TONE], 1), RATE, subtype='MPEG_LAYER_III')
    path.write_bytes(raw + path.read_bytes())   # another rate, and two channels
    assert media.read_audio(path, 2.0).any()
    refused(lambda path: media.read_audio(path, 3.0), path, 'not a readable sound')


def test_an_mp3_that_states_its_length_is_refused_when_it_is_cut_short(tmp_path, mp3):
    path = tmp_path / 'a.mp3'
    path.write_bytes(mp3['full'][:len(mp3['full']) // 2])
    refused(lambda path: media.read_audio(path, 2.0), path, 'cut short by')


def test_a_chain_of_oggs_is_refused_where_only_its_first_would_be_heard(tmp_path):
    path, noise = tmp_path / 'a.ogg', np.random.default_rng(0).normal(0, 0.1, 8 * RATE)
    for second in (TONE, noise):
        oggs = []
        for part in (TONE, second):
            soundfile.write(path, part, RATE)
            oggs.append(path.read_bytes())
            assert media.read_audio(path, 10.0).shape == (10 * RATE,)
        path.write_bytes(b''.join(oggs))
        refused(lambda path: media.read_audio(path, 4.0), path, 'a chain of several sounds')
        assert rms(media.read_audio(path, 2.0)) == pytest.approx(RMS, abs=5e-3)
    first, second = (re.split(b'(?=OggS\0)', ogg)[1:] for ogg in oggs)     # their pages
    path.write_bytes(b''.join([first[0], second[0], *first[1:], *second[1:]]))
    whole = media.read_audio(path, 4.0)         # two streams at once are no chain
    assert rms(whole[:2 * RATE]) == pytest.approx(RMS, abs=5e-3) and not whole[2 * RATE:].any()


@pytest.mark.parametrize('subtype', ['VORBIS', 'OPUS'])
def test_an_ogg_that_is_cut_anywhere_is_refused_where_sound_is_lacking(tmp_path, subtype):
    path = tmp_path / 'a.ogg'
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 8 * RATE), RATE, subtype=subtype)
    whole = path.read_bytes()
    assert media.read_audio(path, 10.0)[7 * RATE:8 * RATE].any()
    assert media.part_heard(path, 8.0) is None
    pages = [page.start() for page in re.finditer(b'OggS', whole)]
    for cut in (pages[-1], pages[-1] + 5, pages[-1] + 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(lambda path: media.read_audio(path, 8.0), path, 'is cut short')
        assert media.read_audio(path, 1.0).any()


# ---- samples

def stereo(path, left, right, **more):
    soundfile.write(path, np.stack([left, right], 1), RATE, subtype='FLOAT', **more)
    return path


def test_channels_that_cancel_each_other_are_heard_by_the_loudest_and_told_once(
        tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(media, 'files_that_cancel', [])
    for name, right in (('a', -TONE), ('b', -TONE), ('c', -0.8 * TONE), ('d', 0.2 - TONE)):
        wav = media.read_audio(stereo(tmp_path / f'{name}.wav', TONE, right), 2.0)
        assert np.allclose(wav, TONE, atol=1e-6), name
    wav = media.read_audio(stereo(tmp_path / 'e.wav', -0.8 * TONE, TONE), 2.0)
    assert np.allclose(wav, TONE, atol=1e-6)                            # the second is the loudest
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(tmp_path / 'a.wav') in said[0] and 'cancel each other' in said[0]
    both = media.read_channels(tmp_path / 'a.wav', 4.0)
    assert np.allclose(both[2 * RATE:], -TONE, atol=1e-6)               # AVSBench hears each anyway


def test_left_and_right_are_the_first_two_of_more_channels(tmp_path):
    levels = np.repeat([[0.1, 0.2, 0.3, 0.4]], RATE, 0)
    soundfile.write(tmp_path / 'a.wav', levels, RATE, subtype='FLOAT')
    both = media.read_channels(tmp_path / 'a.wav', 2.0)
    assert np.allclose(both[:RATE], 0.1) and np.allclose(both[RATE:], 0.2)


def test_other_channels_are_averaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(media, 'files_that_cancel', [])
    one, two = np.random.default_rng(0).normal(0, 0.1, (2, 2 * RATE))
    silence = np.zeros_like(one)
    for left, right in ((one, two), (one, -0.5 * one + 0.5 * two), (one, silence),
                        (silence, silence), (0 * one + 0.25, 0 * one - 0.25)):
        wav = media.read_audio(stereo(tmp_path / 'a.wav', left, right), 2.0)
        assert np.allclose(wav, (left + right) / 2, atol=1e-6)
    many = np.zeros((2 * RATE, 16))
    many[:, 3] = one                                            # one microphone of sixteen
    soundfile.write(tmp_path / 'a.wav', many, RATE, subtype='FLOAT')
    assert np.allclose(media.read_audio(tmp_path / 'a.wav', 2.0), one / 16, atol=1e-6)
    assert capsys.readouterr().err == ''


def test_floats_at_the_scale_of_integers_are_refused_and_a_slight_overshoot_is_not(tmp_path):
    path = tmp_path / 'a.wav'
    for gain, peak in ((32767 / 0.3, '3.277e[+]04'), (1e30 / 0.3, '1e[+]30'), (11 / 0.3, '11')):
        soundfile.write(path, TONE * gain, RATE, subtype='FLOAT')
        for read in (media.read_audio, media.read_channels):
            refused(lambda path: read(path, 2.0), path, f'samples up to {peak}.*full scale is 1')
    for gain in (4, 30):                                                # peaks of 1.2 and 9
        soundfile.write(path, TONE * gain, RATE, subtype='FLOAT')
        assert rms(media.read_audio(path, 2.0)) == pytest.approx(gain * RMS, rel=1e-3)
    soundfile.write(path, np.array([0.1, np.inf]), RATE, subtype='FLOAT')
    refused(first_second, path, 'not numbers')


def test_samples_without_a_header_are_one_sentence(tmp_path):
    path = tmp_path / 'x.raw'
    path.write_bytes(PCM)
    refused(first_second, path, 'x.raw is not a readable sound')


# ---- what is no file

def test_a_pipe_or_folder_in_place_of_a_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    for name in ('pipe', 'folder'):
        for read in (first_second, media.read_image, media.read_own_image, media.read_mask,
                     media.read_pickled_mask):
            refused(read, tmp_path / name, 'is a folder or a pipe')
    os.mkfifo(tmp_path / 'confidence.csv')
    with pytest.raises(ValueError, match='confidence.csv is a folder or a pipe'):
        maps.read_confidences(tmp_path)
    for suffix in ('npy', 'png'):
        os.mkfifo(tmp_path / f'a.{suffix}')
    with pytest.raises(media.SampleError, match='no heatmap'):
        maps.read_heatmap(tmp_path, 'a', (224, 224))


def test_a_sound_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, 'Permission denied')
    path = wav_file(tmp_path / 'a.wav', len(PCM))
    monkeypatch.setattr(media, 'open', forbidden, raising=False)
    refused(first_second, path, 'not a readable sound .*Permission denied')


def test_a_sound_is_read_whatever_bytes_its_name_has(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b'/\xff.wav'))
    wav_file(path, len(PCM))
    assert torch.equal(first_second(path), first_second(wav_file(tmp_path / 'a.wav', len(PCM))))


# ---- pictures

def noise_picture(size=(60, 40)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3))
    return Image.fromarray(pixels.astype(np.uint8))


def half_clear(mode):
    """A picture: its left half is clear, with noise beneath, its right half of one colour."""
    picture = noise_picture()
    picture.paste((200, 30, 30), (30, 0, 60, 40))
    alpha = Image.new('L', picture.size, 0)
    alpha.paste(255, (30, 0, 60, 40))
    picture.putalpha(alpha)
    if mode == 'P':                                     # each colour of the palette has its own
        return picture.quantize(64)
    return picture.convert(mode)


def test_two_frames_stand_side_by_side_each_brought_to_its_half_as_one_frame_is():
    pictures = [noise_picture(), noise_picture((300, 90))]
    both = media.displayable(media.normalise(media.side_by_side(pictures)))         # (224, 448, 3)
    halves = [media.displayable(media.evaluation_image(one, 224)) for one in pictures]
    assert (both == np.concatenate(halves, 1)).all()


@pytest.mark.parametrize('mode, suffix, colour', [
    ('RGBA', 'png', (200, 30, 30)), ('LA', 'png', (81, 81, 81)), ('P', 'png', (200, 30, 30)),
    ('RGBA', 'webp', (200, 30, 30)), ('RGBA', 'tif', (200, 30, 30))])
def test_what_is_transparent_is_white_whatever_is_hidden_there(tmp_path, mode, suffix, colour):
    path = tmp_path / f'a.{suffix}'
    half_clear(mode).save(path, **({'lossless': True} if suffix == 'webp' else {}))
    for picture in (media.read_image(path), media.read_own_image(path)[0]):
        pixels = np.asarray(picture)
        assert pixels.shape == (40, 60, 3) and (pixels[:, :30] == 255).all()
        assert (pixels[:, 30:] == colour).all()


@pytest.mark.parametrize('mode, suffix, clear', [
    ('L', 'png', 7), ('RGB', 'png', (1, 2, 3)), ('1', 'png', 1), ('P', 'png', 7), ('P', 'gif', 7)])
def test_one_colour_declared_transparent_is_white(tmp_path, mode, suffix, clear):
    picture = Image.new(mode, (60, 40), clear)
    if mode == 'P':
        picture.putpalette(bytes(range(30)))                    # 0: (0, 1, 2)
    picture.paste(0, (30, 0, 60, 40))
    picture.save(tmp_path / f'a.{suffix}', transparency=255 if mode == '1' else clear)
    pixels = np.asarray(media.read_image(tmp_path / f'a.{suffix}'))
    assert (pixels[:, :30] == 255).all() and (pixels[:, 30:] <= 2).all()


def test_half_transparent_pixels_are_blended_and_palettes_with_alpha_are_read():
    half = Image.new('RGBA', (2, 2), (0, 100, 200, 128))
    assert np.abs(np.asarray(media.opaque(half, 'white')) - (127, 177, 227)).max() <= 1
    assert (np.asarray(media.opaque(half_clear('P').convert('PA'), 'white'))[:, :30] == 255).all()


@pytest.mark.parametrize('save', [{}, {'quality': 75}])
def test_jpeg_masks_are_cut_at_128_whatever_their_name_and_set(tmp_path, save):
    mask = np.zeros((224, 224), np.uint8)
    mask[60:150, 40:170] = 255
    Image.fromarray(mask).save(tmp_path / 'a.png', 'JPEG', **save)
    assert torch.equal(media.read_mask(tmp_path / 'a.png'), torch.from_numpy(mask / 255).float())
    for grey, is_object in ((127, False), (128, True)):
        Image.new('L', (224, 224), grey).save(tmp_path / 'a.png', 'JPEG', quality=100)
        assert (media.read_mask(tmp_path / 'a.png') == is_object).all()
    Image.fromarray(mask // 255 * 3).save(tmp_path / 'a.png')
    assert media.read_mask(tmp_path / 'a.png').sum() == 11700 == (mask > 0).sum()


def test_a_transparent_pixel_of_a_mask_is_no_object(tmp_path):
    for mode in ('RGBA', 'LA', 'P'):
        half_clear(mode).save(tmp_path / 'a.png')
        mask = media.read_mask(tmp_path / 'a.png')
        assert mask[:, 112:].all() and not mask[:, :112].any()


def test_formats_that_are_not_meant_are_refused_and_start_no_other_program(tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError('a program was started')
    monkeypatch.setattr(subprocess, 'Popen', started)                   # Ghostscript
    for kind in ('EPS', 'ICO', 'TGA'):
        noise_picture().save(tmp_path / 'a.png', kind)
        for read in (media.read_image, media.read_mask, media.read_own_image):
            refused(read, tmp_path / 'a.png', 'not a readable picture.*JPEG, PNG, WEBP, BMP, GIF')
    Image.new('L', (224, 224)).save(tmp_path / 'b.png', 'BMP')
    with pytest.raises(media.SampleError, match='b.png is not a readable heatmap'):
        maps.read_heatmap(tmp_path, 'b', (224, 224))


def test_the_first_picture_of_several_and_unusual_colours_are_read(tmp_path):
    path, first = tmp_path / 'ein Bild, größer.img', noise_picture()
    others = [Image.new('RGB', first.size)]
    for kind in ('PNG', 'GIF', 'WEBP', 'TIFF', 'MPO'):
        first.save(path, kind, save_all=True, append_images=others)
        assert np.asarray(media.read_image(path)).std() > 40
    Image.new('CMYK', (8, 8), (0, 255, 255, 0)).save(path, 'JPEG')
    assert np.abs(np.asarray(media.read_image(path), int) - (254, 0, 0)).max() < 5
    path.write_bytes(path.read_bytes()[:-200])
    refused(media.read_image, path, 'not a readable picture')
    path.write_bytes(b'')
    refused(media.read_image, path, 'not a readable picture')


# ---- a picture and a sound of one's own

def test_large_pictures_are_brought_down_upright(tmp_path):
    turned = Image.Exif()
    turned[274] = 6                                                     # hold it clockwise
    picture = Image.new('RGB', (4000, 1000), 'blue')
    picture.paste('red', (0, 0, 2000, 1000))
    for kind in ('JPEG', 'PNG', 'TIFF'):
        picture.save(tmp_path / 'a', kind, exif=turned)
        image, large = media.read_own_image(tmp_path / 'a')
        assert image.size == (400, 1600) and large
        assert image.getpixel((200, 100))[0] > 250 and image.getpixel((200, 1500))[2] > 250
    for size, shown in (((20000, 3), (1600, 1)), ((3, 20000), (1, 1600)), ((1600, 9), (1600, 9))):
        Image.new('RGB', size).save(tmp_path / 'a', 'PNG')
        image, large = media.read_own_image(tmp_path / 'a')
        assert image.size == shown and large == (size != shown)


def test_a_picture_far_beyond_pillow_s_limit_is_one_sentence(tmp_path, monkeypatch):
    noise_picture().save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    refused(media.read_own_image, tmp_path / 'a.png', 'not a readable picture.*exceeds limit')


class Blank(torch.nn.Linear):
    """A model that sees nothing."""

    def heatmap(self, image, wav, size):
        return torch.zeros(1, *size)


def test_how_much_of_a_sound_is_heard_is_told(tmp_path, capsys, mp3):
    noise_picture((2000, 25)).save(tmp_path / 'a.png')
    late = np.concatenate([np.zeros(3 * RATE), TONE])
    soundfile.write(tmp_path / 'late.wav', late, RATE)
    soundfile.write(tmp_path / 'silent.wav', late[:RATE], RATE)
    soundfile.write(tmp_path / 'short.wav', -np.abs(TONE), RATE)
    (tmp_path / 'long.mp3').write_bytes(2 * mp3['no_xing'])
    pcm = (late[::-1] * 32767).astype('<i2').tobytes()
    wav_file(tmp_path / 'pipe.wav', 0xFFFFFFFF, pcm)
    picture, out = tmp_path / 'a.png', tmp_path / 'o.png'
    for name, words in (
            ('late.wav', ['hears the first 2.0 of 5.0 s of late.wav, all of it silent']),
            ('silent.wav', ['hears silent.wav, all of it silent']), ('short.wav', []),
            ('long.mp3', ['hears the first 2.0 s of long.mp3']),
            ('pipe.wav', ['hears the first 2.0 of 5.0 s of pipe.wav'])):
        one_pair(Blank(1, 1), PRESETS['miniature'], picture, tmp_path / name, out)
        *said, last = capsys.readouterr().out.splitlines()
        assert said == words and 'overlay, brought down to 1600 x 20 pixels; ' in last
    with Image.open(out) as shown:
        assert shown.size == (3 * 1600, 20)


def test_a_picture_of_ninety_megapixels_clutters_nothing(tmp_path, monkeypatch):
    noise_picture().save(tmp_path / 'a.png')                            # 2,400 pixels
    spec = importlib.util.spec_from_file_location('media_again', media.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)                # Pillow's: 89 million
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        media.read_image(tmp_path / 'a.png')
        assert said.pop().category is Image.DecompressionBombWarning
        spec.loader.exec_module(again)                                  # sets the filter
        assert again.read_own_image(tmp_path / 'a.png')[0].size == (60, 40) and not said
