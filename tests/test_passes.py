"""Each frame and each sound goes through its frozen encoder once within a benchmark."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

import evaluate
import heldout
import model as model_file
from beats import BEATs
from tiny import tiny, tiny_clipseg  # noqa: F401

SCENES = ('bell_dog_1', 'cat_owl_2', 'bell_owl_3')      # of IS4, two samples each
CLIPS = ('a', 'b', 'c')                                 # of AVSBench S4, five frames each


def frame(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (32, 32), (level, 40, 255 - level)).save(path)


def mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((32, 32), np.uint8)
    pixels[8:20, 4:16] = 255
    Image.fromarray(pixels).save(path)


def sound(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(0, level, 8000), 16_000)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('passes')
    boxes = []
    for number, scene in enumerate(SCENES):
        for k, name in enumerate(scene.split('_')[:2]):
            frame(root / f'is4/visual_frames/{scene}_{name}.png', 60 * number)  # a copy for each
            mask(root / f'is4/gt_masks/{scene}_{name}.png')
            sound(root / f'is4/audio_wav/{scene}_{name}.wav', 0.2 + number / 5 + k / 10)
            boxes.append({'image': f'{scene}_{name}.png', 'audio': '', 'gt_box': [20, 60, 90, 150]})
    # listed by sound: the two samples of a frame stand apart
    boxes.sort(key=lambda entry: entry['image'].rpartition('_')[2])
    (root / 'is4/synthetic3240_bbox.json').write_text(json.dumps(boxes))
    names = [f'{clip}_{k}' for k in range(1, 6) for clip in CLIPS]
    for number, name in enumerate(names):
        frame(root / f'avsbench/s4/visual_frames/{name}.png', 15 * number)
        mask(root / f'avsbench/s4/gt_masks/{name}.png')
    for number, clip in enumerate(CLIPS):
        sound(root / f'avsbench/s4/audio_wav/{clip}.wav', 0.3 + number / 5)
    lines = [f'{name},{["dog", "guitar", "man"][CLIPS.index(name[0])]}' for name in names]
    (root / 'avsbench/s4/avs1_s4_test.csv').write_text('\n'.join(lines))
    boxes = [{'image': f'{name}.png', 'gt_box': [20, 60, 90, 150]} for name in names]
    (root / 'avsbench/s4/s4_box.json').write_text(json.dumps(boxes))
    entries = [{'file': name, 'class': 'dog', 'bbox': [[0.1, 0.2, 0.5, 0.6]]} for name in 'xyz']
    (root / 'vggss').mkdir()
    (root / 'vggss/vggss.json').write_text(json.dumps(entries))
    for number, name in enumerate('xyz'):
        frame(root / f'vggss/frames/{name}.png', 80 * number)
        sound(root / f'vggss/audio/{name}.wav', 0.4 + number / 5)
    return root


class Passes:
    """How many images and how many sounds went through the encoders of any model."""

    def __init__(self):
        self.frames = self.sounds = 0
        self.vision = type(tiny_clipseg()[0].clip.vision_model.embeddings)
        self.hooks = [register_module_forward_hook(self.count)]

    def count(self, module, inputs, output):
        if isinstance(module, self.vision):
            self.frames += len(output)
        if isinstance(module, BEATs):
            self.sounds += len(output)


@pytest.fixture
def passes(tiny):
    counted = Passes()
    yield counted
    for hook in counted.hooks:
        hook.remove()


@pytest.mark.parametrize('batch_size', [1, 4, 64])
@pytest.mark.parametrize('name, samples, frames, sounds', [
    ('is4', 6, 3, 6), ('avs_s4', 15, 15, 3),
    ('robust_s4', 60, 15, 3 + 1 + 15)])         # sounds of clips, silence, noise of each sample
def test_a_benchmark_is_encoded_once_for_all_its_tasks_rows_and_conditions(
        passes, root, name, samples, frames, sounds, batch_size):
    results = evaluate.evaluate(evaluate.parse_args(
        ['--untrained', '--benchmarks', name, '--data-root', str(root),
         '--batch-size', str(batch_size)]))
    for task, sets in results.items():
        if task != 'clipseg_gt_text' and sets:
            assert sets[name]['n'] == samples
    assert (passes.frames, passes.sounds) == (frames, sounds)


def test_held_out_scores_encode_once_too(passes, root):
    model, tokenizer = model_file.load_model('miniature')
    _, counts = heldout.held_out(model, tokenizer, 'miniature', root, batch_size=4)
    assert counts == {'boxes': 3, 'masks': 6, 'multi': 6, 'pairs': 3, 'silence': 3}
    # VGG-SS: three frames, each under its sound, silence, and a noise; IS4 as above
    assert (passes.frames, passes.sounds) == (3 + 3, 3 + 1 + 3 + 6)


@pytest.mark.parametrize('name', ['is4', 'robust_s4'])
def test_scores_do_not_depend_on_the_batch_size(tiny, root, name):
    args = ['--untrained', '--benchmarks', name, '--data-root', str(root), '--batch-size']
    one, many = (evaluate.evaluate(evaluate.parse_args([*args, size])) for size in ('1', '7'))
    for task in one:
        for sets in (one[task], many[task]):
            assert list(sets)
        found, wanted = (sets.get(name) for sets in (many[task], one[task]))
        assert found == pytest.approx(wanted, abs=0.01, nan_ok=True) if wanted else found == wanted
