"""The template for classes of one's own: from data to predictions, on tiny images."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import mmseg.models  # noqa: F401, registers mmsegmentation's parts
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from mmseg.registry import DATASETS, MODELS
from PIL import Image
from torch import nn

from builders import ROOT, WIDTHS, generator, meta_state, shapes_of
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.checkpoints.weights import WEIGHTS, Weights
from mmseg_twins.cli import check_dataset, predict, test
from mmseg_twins.cli.new import assignment, fill
from mmseg_twins.engine import StartFrom

CONFIGS = ROOT / 'configs'
TEMPLATE = CONFIGS / 'custom/twins_custom.py'
CLASSES = ['sky', 'road', 'car']
COLORS = np.array([[90, 160, 230], [110, 100, 100], [220, 40, 50]])
BASES = [
    'twins_svt-s_uperhead_8x2_512x512_160k_ade20k',
    'twins_pcpvt-s_uperhead_8x2_512x512_130e_ade20k',
    'twins_pcpvt-b_fpn_fpnhead_8x4_512x512_80k_ade20k',
    'cityscapes/twins_svt-s_uperhead_8x1_512x1024_160k_cityscapes',
    'heads/twins_svt-s_segformer_8x2_512x512_160k_ade20k',
    'demo/twins_svt_fpn_streets',
]


def draw(folder: Path, split: str, name: str, size: tuple[int, int]) -> None:
    """Draws sky over road, a car, and a corner that is ignored."""
    width, height = size
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] = 1
    labels[height // 2 - 8 : height // 2 + 8, 10:30] = 2
    noise = generator(name).normal(0, 8, (height, width, 3))
    image = np.clip(COLORS[labels] + noise, 0, 255).astype(np.uint8)
    labels[:4, :4] = 255
    for kind, array in (('images', image), ('annotations', labels)):
        path = folder / kind / split / f'{name}.{"jpg" if kind == "images" else "png"}'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Six images to train on and twenty to validate on, of many sizes."""
    folder = tmp_path_factory.mktemp('custom') / 'data'
    for split, count in (('training', 6), ('validation', 20)):
        for i in range(count):
            draw(folder, split, f'{split}{i}', (64 + 3 * i, 96 - 2 * i))
    return folder


def read(folder: Path, **values) -> Config:
    """The template with values at its top, as a user edits a copy of it."""
    base = CONFIGS / f'{values.pop("base", BASES[0])}.py'
    code = {name: assignment(name, value) for name, value in values.items()}
    code['_base_'] = f'_base_ = {str(base)!r}'
    path = folder / 'config.py'
    path.write_text(fill(TEMPLATE.read_text(), code))
    return Config.fromfile(path)


def narrow(cfg: Config) -> Config:
    """A UPerNet's config with few channels, which loads data in this process."""
    cfg = copy.deepcopy(cfg)
    few = dict(
        embed_dims=WIDTHS, num_heads=[1, 2, 3, 4], depths=[2, 1, 1, 1], init_cfg=None
    )
    cfg.merge_from_dict(
        {
            'model.backbone': few,
            'model.decode_head': dict(in_channels=WIDTHS, channels=8),
            'model.auxiliary_head': dict(in_channels=WIDTHS[2], channels=8),
            'env_cfg.mp_cfg.mp_start_method': 'fork',
        }
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    return cfg


def train(folder: Path, **values) -> Runner:
    cfg = narrow(read(folder, **values))
    cfg.work_dir = str(folder)
    cfg.dump(folder / 'narrow.py')
    cfg.experiment_name = cfg.visualizer.name = f'custom_{folder.name}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def log_of(runner: Runner) -> str:
    (log,) = Path(runner.work_dir).glob('*/*.log')
    return log.read_text()


@pytest.fixture(scope='module')
def settings(data: Path) -> dict:
    """What is edited in the template, but for `weights`."""
    return dict(data_root=str(data), classes=CLASSES, iterations=10, crop_size=64)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory) -> Path:
    """A backbone without the norms after its stages, as an ImageNet classifier's."""
    folder = tmp_path_factory.mktemp('backbone')
    with DefaultScope.overwrite_default_scope('mmseg'):
        state = MODELS.build(narrow(read(folder)).model.backbone).state_dict()
    state = {name: value for name, value in state.items() if 'norm_list' not in name}
    torch.save(state, folder / 'backbone.pth')
    return folder / 'backbone.pth'


@pytest.fixture(scope='module')
def trained(tmp_path_factory, settings: dict, backbone: Path) -> Runner:
    """A training of 10 iterations that has started from a backbone."""
    folder = tmp_path_factory.mktemp('trained')
    return train(folder, weights=str(backbone), **settings)


def test_ten_iterations_from_a_backbone_end_in_a_checkpoint(trained, backbone):
    count = len(torch.load(backbone, weights_only=True))
    log = log_of(trained)
    assert f'StartFrom: loaded {count} tensors from {backbone}; left out: ' in log
    assert 'backbone.norm_list.3.bias, decode_head, auxiliary_head\n' in log
    assert re.search(r'Iter\(train\) \[10/10\].* loss: \d', log)
    assert Path(trained.work_dir, 'iter_10.pth').is_file()
    assert list(Path(trained.work_dir).glob('best_mIoU_iter_10.pth'))


def test_validation_reports_each_class_of_images_of_all_sizes(trained):
    log = log_of(trained)
    rows = re.findall(r'^\| +(\w+) +\| +([\d.]+|nan) +\|', log, flags=re.MULTILINE)
    assert [name for name, _ in rows] == CLASSES
    assert 'Iter(val) [20/20]' in log


def test_a_segmentor_is_fine_tuned_for_another_number_of_classes(
    tmp_path, settings, trained
):
    weights = Path(trained.work_dir, 'iter_10.pth')
    classes = [*CLASSES, 'person']
    runner = train(tmp_path, **{**settings, 'classes': classes}, weights=str(weights))
    assert 'left out: decode_head.conv_seg.weight' in log_of(runner)
    assert runner.iter == 10
    assert runner.model.decode_head.conv_seg.out_channels == 4
    assert runner.model.auxiliary_head.conv_seg.out_channels == 4


def test_training_from_scratch_needs_no_weights(tmp_path, settings):
    runner = train(tmp_path, weights=None, **settings)
    assert 'training from scratch' in log_of(runner)
    assert runner.iter == 10


def test_the_rate_is_scaled_to_the_batch(trained):
    images = trained.cfg.train_dataloader.batch_size
    groups = trained.optim_wrapper.optimizer.param_groups
    (rate,) = {group['initial_lr'] for group in groups}
    assert rate == pytest.approx(trained.cfg.learning_rate * images / 8)


@pytest.mark.parametrize('options', [[], ['--tta']], ids=['single scale', 'tta'])
def test_the_commands_test_and_predict_take_the_config(
    trained, data, tmp_path, options
):
    folder = Path(trained.work_dir)
    arguments = [str(folder / 'narrow.py'), str(folder / 'iter_10.pth')]
    work_dir = ['--work-dir', str(tmp_path / 'test')]
    cfg_options = ['--cfg-options', f'visualizer.name={tmp_path.name}']
    test.main([*arguments, *work_dir, *cfg_options, *options])
    (log,) = tmp_path.glob('test/*/*.log')
    assert re.search(r'mIoU: [\d.]+', log.read_text())

    images = sorted((data / 'images/validation').iterdir())[:3]
    out = ['--out-dir', str(tmp_path / 'out'), '--device', 'cpu']
    assert predict.main([*arguments, *map(str, images), *out, *options]) == 0
    for image in images:
        labels = Image.open(tmp_path / 'out/labels' / f'{image.stem}.png')
        assert labels.size == Image.open(image).size
        assert set(np.unique(labels)) <= {0, 1, 2}


def test_the_check_of_datasets_finds_nothing_wrong(trained, capsys):
    config = str(Path(trained.work_dir, 'narrow.py'))
    assert check_dataset.main([config, '--jobs', '1']) == 0
    assert 'car' in capsys.readouterr().out


@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_masks_count_from_zero_or_from_one(tmp_path, settings, data, reduce_zero_label):
    cfg = read(tmp_path, **settings, reduce_zero_label=reduce_zero_label)
    file = data / 'annotations/validation/validation0.png'
    expected = np.array(Image.open(file)).astype(int)
    if reduce_zero_label:
        expected = np.where(np.isin(expected, (0, 255)), 255, expected - 1)
    with DefaultScope.overwrite_default_scope('mmseg'):
        sample = DATASETS.build(cfg.val_dataloader.dataset)[0]['data_samples']
    assert np.array_equal(sample.gt_sem_seg.data[0].numpy(), expected)


@pytest.mark.parametrize('base', BASES)
def test_every_kind_of_config_can_be_inherited(tmp_path, base):
    cfg = read(tmp_path, base=base, classes=CLASSES, crop_size=256)
    with DefaultScope.overwrite_default_scope('mmseg'), torch.device('meta'):
        model = MODELS.build(cfg.model)
    heads = [model.decode_head, getattr(model, 'auxiliary_head', None)]
    assert {head.num_classes for head in heads if head} == {3}
    assert model.test_cfg.mode == 'whole'
    assert cfg.model.data_preprocessor.size == (256, 256)
    assert cfg.model.backbone.get('init_cfg') is None
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type == 'BaseSegDataset'
        assert loader.dataset.data_root == cfg.data_root
    assert cfg.tta_pipeline[-1].transforms[0][2].scale == (1024, 256)
    assert 'tta_model' in cfg


def layout_of(weights: Weights) -> str:
    """The layout of a file of published weights."""
    if weights.heads is None:
        return 'official-cls'
    if weights.author == 'SSSegmentation':
        return 'ssseg-upernet'
    return 'mmseg-upernet' if weights.heads == 'uperhead' else 'mmseg-fpn'


@pytest.mark.parametrize('name', WEIGHTS)
def test_published_weights_fit_the_config_that_they_belong_to(tmp_path, name):
    weights = WEIGHTS[name]
    shapes = shapes_of(layout_of(weights), weights.variant)
    found, _ = convert_state_dict(meta_state(shapes))
    cfg = read(tmp_path, base=weights.config.removesuffix('.py'), classes=CLASSES)
    with DefaultScope.overwrite_default_scope('mmseg'), torch.device('meta'):
        state = MODELS.build(cfg.model).state_dict()

    loaded = StartFrom(checkpoint=name).select(found, state)

    prefix = '' if weights.heads else 'backbone.'
    given = {prefix + name for name in found}
    assert given - loaded.keys() == {name for name in given if 'conv_seg' in name}


@pytest.mark.parametrize('iterations', [10, 15, 400, 40_000])
def test_the_rate_warms_up_and_falls_to_zero(tmp_path, iterations):
    cfg = read(tmp_path, iterations=iterations)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(one, default_args=dict(optimizer=optimizer))
        for one in cfg.param_scheduler
    ]
    optimizer.step()
    rates = []
    for _ in range(cfg.train_cfg.max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    peak = int(np.argmax(rates))
    assert rates[0] == pytest.approx(1e-6)
    assert rates[peak] == pytest.approx(1.0)
    assert peak < max(2, min(1500, iterations / 8))
    assert np.all(np.diff(rates[: peak + 1]) > 0)
    assert np.all(np.diff(rates[peak + 1 :]) < 0)
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ('iterations', 'interval'), [(10, 10), (700, 500), (20_000, 2000)]
)
def test_validation_runs_about_ten_times(tmp_path, iterations, interval):
    cfg = read(tmp_path, iterations=iterations)
    assert cfg.train_cfg.val_interval == interval
    assert cfg.default_hooks.checkpoint.interval == interval
