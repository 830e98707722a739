"""``tools/predict.py``: its files and its messages."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.structures import SegDataSample
from PIL import Image

from mmseg_twins.apis import Predictor, draw_overlay
from mmseg_twins.cli import predict as tool
from mmseg_twins.cli.image_files import write_png

pytestmark = pytest.mark.usefixtures('pictures')


@pytest.fixture
def run(capsys):
    """Run the command; return its exit status, and its stdout and stderr."""

    def run_tool(*arguments: str) -> tuple[int, str, str]:
        try:
            status = tool.main(['config.py', *arguments, '--device', 'cpu'])
        except SystemExit as exit_:
            status = exit_.code
        return status, *capsys.readouterr()

    return run_tool


def read(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def make_predictor() -> Predictor:
    return Predictor(Config.fromfile('config.py'), 'weights.pth', device='cpu')


def test_labels_and_overlays_are_what_the_model_predicts(run):
    status, said, _ = run('weights.pth', '.', '--out-dir', 'out')

    assert (status, said) == (0, '2 images done; results are in out\n')
    predictor = make_predictor()
    for name in ('a.png', 'b.png'):
        labels = predictor(name).labels
        with Image.open(f'out/labels/{name}') as file:
            assert (file.format, file.mode) == ('PNG', 'L')
            assert np.array_equal(np.asarray(file), labels)
        drawn = draw_overlay(
            read(name), labels, classes=predictor.classes, palette=predictor.palette
        )
        assert np.array_equal(read(f'out/overlays/{name}'), drawn)


def test_augmented_predictions_are_the_average_of_all_views(run):
    assert run('weights.pth', 'a.png', '--out-dir', 'out', '--tta')[0] == 0

    segmentor = make_predictor()
    image = cv2.imread('a.png')
    total = 0
    for scale in ((128, 64), (192, 96)):
        ratio = min(scale[0] / 90, scale[1] / 70)
        size = (int(90 * ratio + 0.5), int(70 * ratio + 0.5))
        for flip in (False, True):
            view = cv2.resize(image, size)
            view = view[:, ::-1].copy() if flip else view
            sample = SegDataSample(
                metainfo=dict(ori_shape=(70, 90), img_shape=view.shape[:2], flip=flip)
            )
            if flip:
                sample.set_metainfo(dict(flip_direction='horizontal'))
            tensor = torch.from_numpy(view.transpose(2, 0, 1).copy())
            with torch.no_grad():
                (result,) = segmentor.model.test_step(
                    dict(inputs=[tensor], data_samples=[sample])
                )
            total = total + result.seg_logits.data.softmax(dim=0)
    labels = read('out/labels/a.png')
    assert np.array_equal(labels, total.argmax(dim=0).numpy())
    assert not np.array_equal(labels, segmentor('a.png').labels)


def test_unreadable_files_are_named_and_skipped(run):
    Path('0.png').write_bytes(b'no image')
    Path('empty.jpg').touch()
    status, said, error = run('weights.pth', '.', '--out-dir', 'out')

    assert (status, said) == (1, '2 images done, 2 skipped; results are in out\n')
    assert '0.png is skipped: it cannot be decoded' in error
    assert 'empty.jpg is skipped: it cannot be decoded' in error
    assert sorted(path.name for path in Path('out/labels').iterdir()) == [
        'a.png',
        'b.png',
    ]


def test_results_are_replaced_with_force_only(run):
    Path('out/labels').mkdir(parents=True)
    Path('out/labels/a.png').write_text('mine')
    arguments = ('weights.pth', 'a.png', 'b.png', '--out-dir', 'out')
    status, _, error = run(*arguments)
    assert status == 2
    assert '1 of the 4 result files exist already (out/labels/a.png)' in error
    assert list(Path('out').rglob('*.*')) == [Path('out/labels/a.png')]
    assert Path('out/labels/a.png').read_text() == 'mine'

    assert run(*arguments, '--force')[0] == 0
    assert read('out/labels/a.png').shape == (70, 90)


def test_an_interruption_leaves_whole_files(run, monkeypatch):
    def interrupt(path, pixels, *, force):
        if path.name == 'b.png':
            raise KeyboardInterrupt
        write_png(path, pixels, force=force)

    monkeypatch.setattr(tool, 'write_png', interrupt)
    status, _, error = run('weights.pth', 'a.png', 'b.png', '--out-dir', 'out')

    assert status == 130
    assert error.endswith('predict.py: interrupted; the results so far are complete\n')
    files = [path for path in Path('out').rglob('*') if path.is_file()]
    assert sorted(files) == [Path('out/labels/a.png'), Path('out/overlays/a.png')]


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['no.pth', '.'], "checkpoint: 'no.pth' does not exist"),
        (['weights.pth', 'c.png'], "image: 'c.png' does not exist; did you mean"),
        (['weights.pth', 'empty'], "image: the folder 'empty' has no files that end"),
        (['weights.pth', '.', '--opacity', '1.5'], "'1.5' is no number from 0 to 1"),
        (['a.png', '.'], 'a.png is no checkpoint'),
        (
            ['weights.pth', '.', '--cfg-options', 'model.decode_head.num_classes=5'],
            'weights.pth does not fit the config: 2 tensors are of another shape: '
            'another number of classes (decode_head.conv_seg.weight is 3x8x1x1 there '
            'and 5x8x1x1 in the model, ',
        ),
        (
            [
                'weights.pth',
                '.',
                '--cfg-options',
                'model.backbone.type=mmseg_twins.PCPVT',
            ],
            'tensors are unexpected (backbone.',
        ),
        (['backbone.pth', '.'], 'a bare backbone belongs in init_cfg'),
        (
            ['weights.pth', '.', '--tta', '--cfg-options', 'tta_model=None'],
            '--tta: the config has no tta_model',
        ),
        (
            ['weights.pth', '.', '--cfg-options', 'test_dataloader=None'],
            'prediction needs a test_dataloader.dataset.pipeline',
        ),
    ],
)
def test_mistakes_get_one_sentence(run, arguments, said):
    Path('empty').mkdir()
    state = torch.load('weights.pth', weights_only=True)['state_dict']
    backbone = {
        name.removeprefix('backbone.'): tensor
        for name, tensor in state.items()
        if name.startswith('backbone.')
    }
    torch.save({'state_dict': backbone}, 'backbone.pth')
    status, _, error = run(*arguments, '--out-dir', 'out')

    assert status == 2
    assert error.splitlines()[-1].startswith('predict.py: error: ')
    assert said in error.splitlines()[-1]
    assert not Path('out').exists()


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path('ran'),))


def test_nothing_in_a_checkpoint_runs(run):
    torch.save({'state_dict': {}, 'other': Hostile()}, 'hostile.pth')
    status, _, error = run('hostile.pth', '.', '--out-dir', 'out')

    assert status == 2
    assert 'hostile.pth is refused' in error
    assert not Path('ran').exists()
