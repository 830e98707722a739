"""Training that begins at a segmentor of other classes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import curves
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mmseg_twins.engine import CheckLabels, StartFrom
from mmseg_twins.errors import SettingError

CONFIGS = Path(__file__).parents[2] / 'configs' / 'demo'
CONV_SEG = ('decode_head.conv_seg.weight', 'decode_head.conv_seg.bias')


class Segmentor(nn.Module):
    """The names of a segmentor, and nearly nothing behind them."""

    def __init__(self, classes: int = 8, width: int = 4) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 1)
        self.decode_head = nn.Module()
        self.decode_head.conv_seg = nn.Conv2d(width, classes, 1)
        self.decode_head.num_classes = classes
        self.decode_head.ignore_index = 255


def fake_runner(model: nn.Module, iteration: int = 0) -> SimpleNamespace:
    runner = SimpleNamespace(model=model, iter=iteration, told=[])
    runner.logger = logging.getLogger('fake')
    runner.call_hook = lambda name, **kwargs: runner.told.append((name, kwargs))
    return runner


def start(model: nn.Module, checkpoint: Path, iteration: int = 0, **kwargs):
    runner = fake_runner(model, iteration)
    StartFrom(checkpoint=str(checkpoint), **kwargs).before_train(runner)
    return runner


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A segmentor of five classes."""
    path = tmp_path / 'source.pth'
    torch.save({'state_dict': Segmentor(classes=5).state_dict(), 'meta': {}}, path)
    return path


def weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_all_but_the_classification_layer_is_taken_over(source, ending, caplog):
    state = weights(source)
    if ending == '.safetensors':
        source = source.with_suffix(ending)
        save_file(state, source)
    model = Segmentor(classes=8)
    before = model.decode_head.conv_seg.weight.clone()
    with caplog.at_level('INFO'):
        start(model, source)
    assert torch.equal(model.backbone.weight, state['backbone.weight'])
    assert torch.equal(model.decode_head.conv_seg.weight, before)
    assert f'left out, and new: {", ".join(CONV_SEG)}' in caplog.text


def test_a_layer_of_the_same_shape_is_left_out_too(source):
    model = Segmentor(classes=5)
    before = model.decode_head.conv_seg.weight.clone()
    start(model, source)
    assert torch.equal(model.decode_head.conv_seg.weight, before)


def test_hooks_that_follow_loading_see_the_weights(source):
    model = Segmentor()
    ((name, told),) = start(model, source).told
    assert name == 'after_load_checkpoint'
    value = told['checkpoint']['state_dict']['backbone.weight']
    assert torch.equal(value, weights(source)['backbone.weight'])


@pytest.mark.parametrize(('checkpoint', 'iteration'), [(True, 7), (None, 0)])
def test_weights_stay_in_a_resumed_training_and_from_scratch(
    source, checkpoint, iteration
):
    model = Segmentor()
    before = model.backbone.weight.clone()
    hook = StartFrom(checkpoint=str(source) if checkpoint else None)
    hook.before_train(fake_runner(model, iteration))
    assert torch.equal(model.backbone.weight, before)


def other_variant(state: dict) -> dict:
    return Segmentor(width=6).state_dict()


def without_bias(state: dict) -> dict:
    return {name: v for name, v in state.items() if name != 'backbone.bias'}


def with_auxiliary_head(state: dict) -> dict:
    return {**state, 'auxiliary_head.convs.0.weight': torch.zeros(1)}


def other_layout(state: dict) -> dict:
    return {'patch_embeds.0.proj.weight': torch.zeros(1)}


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (other_variant, 'backbone.weight is 6x3x1x1 there and 4x3x1x1 in the model'),
        (without_bias, '1 tensor is missing (backbone.bias)'),
        (
            with_auxiliary_head,
            '1 tensor is unexpected (auxiliary_head.convs.0.weight)',
        ),
        (other_layout, 'twins2mmseg.py converts checkpoints of other projects'),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_and_not_loaded(source, change, said):
    torch.save({'state_dict': change(weights(source))}, source)
    model = Segmentor()
    before = model.backbone.weight.clone()
    with pytest.raises(SettingError) as error:
        start(model, source)
    assert said in str(error.value)
    assert str(source) in str(error.value)
    assert torch.equal(model.backbone.weight, before)


def test_what_leave_out_names_may_differ(source):
    torch.save({'state_dict': with_auxiliary_head(weights(source))}, source)
    model = Segmentor()
    leave_out = ['decode_head.conv_seg', 'auxiliary_head']
    start(model, source, leave_out=leave_out)
    assert torch.equal(model.backbone.weight, weights(source)['backbone.weight'])


def test_a_name_in_leave_out_does_not_reach_longer_names(source):
    state = weights(source)
    torch.save(
        {'state_dict': {**state, 'decode_head.conv_seg2': state[CONV_SEG[1]]}}, source
    )
    with pytest.raises(SettingError, match='conv_seg2'):
        start(Segmentor(), source)


class Hostile:
    def __reduce__(self):
        return print, ('this must not run',)


def test_a_checkpoint_that_would_run_code_is_refused(source, capsys):
    torch.save({'state_dict': weights(source), 'more': Hostile()}, source)
    with pytest.raises(SettingError, match='builtins.print'):
        start(Segmentor(), source)
    assert 'this must not run' not in capsys.readouterr().out


def test_a_missing_or_damaged_checkpoint_gets_one_sentence(source):
    with pytest.raises(SettingError, match='there is no file .*nowhere.pth'):
        start(Segmentor(), source.with_name('nowhere.pth'))
    source.write_bytes(source.read_bytes()[:300])
    with pytest.raises(SettingError, match='damaged'):
        start(Segmentor(), source)


def test_leave_out_must_be_a_list():
    with pytest.raises(SettingError, match='no list of names'):
        StartFrom(checkpoint=None, leave_out='decode_head.conv_seg')


def batch(*labels: int) -> dict:
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor([[labels]])),
        metainfo=dict(seg_map_path='masks/a.png', reduce_zero_label=False),
    )
    return dict(inputs=[], data_samples=[sample])


def test_a_label_without_a_class_is_named_with_its_file():
    with pytest.raises(SettingError) as error:
        CheckLabels().before_train_iter(
            fake_runner(Segmentor(8)), 0, batch(0, 8, 8, 11)
        )
    for part in ('masks/a.png', 'label 8, 11 in 3 pixels', '8 classes, 0 to 7'):
        assert part in str(error.value)


def test_labels_of_classes_and_ignored_pixels_pass():
    assert CheckLabels().before_train_iter(
        fake_runner(Segmentor(8)), 0, batch(0, 7, 255)
    ) is None  # fmt: skip


@pytest.fixture(scope='module')
def custom() -> Config:
    """The config that users copy, with a tiny model."""
    cfg = Config.fromfile(CONFIGS / 'finetune_custom.py')
    dims = [8, 16, 24, 32]
    cfg.model.backbone.update(embed_dims=dims, depths=[1, 1, 1, 1])
    cfg.model.neck.update(in_channels=dims, out_channels=8)
    cfg.model.decode_head.update(in_channels=[8] * 4, channels=8)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        for step in loader.dataset.pipeline:
            if 'scale' in step:
                step['scale'] = (64, 64)
            if 'crop_size' in step:
                step['crop_size'] = (64, 64)
    cfg.train_dataloader.batch_size = 2
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.param_scheduler = []
    cfg.default_hooks.logger.interval = 1
    return cfg


@pytest.fixture
def project(tmp_path: Path, custom: Config) -> Config:
    """The tiny config with images and masks, and a checkpoint of five classes."""
    random = np.random.default_rng(0)
    data = tmp_path / 'data'
    for part in ('training', 'validation'):
        for index in range(2):
            for kind, ending, shape, top in (
                ('images', 'jpg', (64, 64, 3), 256),
                ('annotations', 'png', (64, 64), 9),
            ):
                file = data / kind / part / f'{index}.{ending}'
                file.parent.mkdir(parents=True, exist_ok=True)
                array = random.integers(top, size=shape).astype(np.uint8)
                Image.fromarray(array).save(file)
    cfg = Config(custom.to_dict())
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(data)
    cfg.work_dir = str(tmp_path / 'work')
    cfg.launcher = 'none'
    cfg.experiment_name = tmp_path.name
    cfg.visualizer.name = tmp_path.name
    cfg.custom_hooks[0].checkpoint = str(tmp_path / 'source.pth')
    model = Config(cfg.model.to_dict())
    model.decode_head.num_classes = 5
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = MODELS.build(model)
    torch.save(dict(state_dict=built.state_dict()), tmp_path / 'source.pth')
    return cfg


def test_the_config_trains_from_a_segmentor_of_other_classes(project):
    project.optim_wrapper.optimizer.lr = 0.0
    model = Runner.from_cfg(project).train()
    taken = weights(Path(project.custom_hooks[0].checkpoint))
    differing = [
        name
        for name, value in model.named_parameters()
        if not torch.equal(value.cpu(), taken[name])
    ]
    assert tuple(differing) == CONV_SEG
    assert model.decode_head.num_classes == 8
    (log,) = Path(project.work_dir).glob('*/*.log')
    assert f'left out, and new: {", ".join(CONV_SEG)}' in log.read_text()


def test_a_resumed_training_goes_on_from_its_own_checkpoint(project):
    project.default_hooks.checkpoint.interval = 1
    project.train_cfg.max_iters = 1
    Runner.from_cfg(project).train()
    project.update(resume=True, experiment_name=f'{project.experiment_name}-2')
    project.visualizer.name += '-2'
    project.train_cfg.max_iters = 2
    Runner.from_cfg(project).train()
    log = max(
        Path(project.work_dir).glob('*/*.log'), key=lambda file: file.stat().st_mtime
    )
    assert 'StartFrom: the training goes on from iteration 1' in log.read_text()


def test_a_wrong_number_of_classes_ends_the_training_at_once(project):
    project.model.decode_head.num_classes = 7
    with pytest.raises(SettingError, match='has 8 classes.*num_classes is 7'):
        Runner.from_cfg(project).train()


def test_a_copy_of_the_config_fits_a_recipe_with_two_heads(tmp_path):
    text = (CONFIGS / 'finetune_custom.py').read_text()
    recipe = CONFIGS.parent / 'twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py'
    copy = tmp_path / 'copy.py'
    copy.write_text(text.replace('./twins_svt_fpn_streets.py', str(recipe)))
    cfg = Config.fromfile(copy)
    assert cfg.model.decode_head.num_classes == 8
    assert cfg.model.auxiliary_head.num_classes == 8
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.data_preprocessor.size is None
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type == 'BaseSegDataset'
        assert loader.dataset.data_root == cfg.data_root


def test_the_configs_learning_rate_scales_with_the_batch(custom):
    assert custom.auto_scale_lr == dict(enable=True, base_batch_size=4)


def test_the_source_ignores_classes_that_it_does_not_have():
    cfg = Config.fromfile(CONFIGS / 'finetune_source.py')
    assert cfg.model.decode_head.num_classes == len(cfg.classes) == 5
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.metainfo.classes == cfg.classes
        assert loader.dataset.type == 'BaseSegDataset'


def test_the_hooks_are_found_by_their_scope():
    assert HOOKS.get('mmseg_twins.StartFrom') is StartFrom
    assert HOOKS.get('mmseg_twins.CheckLabels') is CheckLabels


def write_log(folder: Path, values: dict[int, float]) -> Path:
    log = folder / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    lines = [dict(mIoU=value, step=step) for step, value in values.items()]
    log.write_text('\n'.join(map(json.dumps, lines)))
    return folder


def test_the_first_evaluation_that_reaches_a_value_counts():
    history = curves.History(checks=[10, 20, 30, 40], miou=[20.0, 55.0, 48.0, 60.0])
    assert curves.iterations_to_reach(history, 50) == 20
    assert curves.iterations_to_reach(history, 55) == 20
    assert curves.iterations_to_reach(history, 61) is None


def test_trainings_are_compared_in_a_table_and_a_picture(tmp_path, capsys):
    fast = [write_log(tmp_path / f'fast_{i}', {10: 40.0, 20: 60.0 + i}) for i in (0, 1)]
    slow = write_log(tmp_path / 'slow', {10: 10.0, 20: 30.0})
    out = tmp_path / 'curves.png'
    runs = [f'fast={fast[0]}', f'fast={fast[1]}', f'slow={slow}']
    assert curves.main([*runs, '--out', str(out), '--reach', '40']) == 0
    said = capsys.readouterr().out
    assert '61.0 % at 20; 40 % first at 10' in said
    assert '40 % first at no evaluation' in said
    with Image.open(out) as picture:
        assert picture.width > 900
    with pytest.raises(SystemExit) as exit_:
        curves.main([*runs, '--out', str(out)])
    assert exit_.value.code == 2
    assert 'exists already; --force replaces it' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('run', 'said'),
    [
        ('nothing', 'is no NAME=WORK_DIR'),
        ('x=nowhere', 'is no work dir of a training'),
    ],
)
def test_runs_that_are_none_get_one_sentence(run, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        curves.main([run])
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err
