"""What all tests share: no network, compat, fixed random numbers, and fixtures."""

from __future__ import annotations

import mmseg_twins  # noqa: F401, activates compat

# isort: split
import argparse
import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import OpenerDirector

import mmengine.config.utils
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from PIL import Image
from scene_folder import write_scenes

from builders import (
    CLASSES_OF_THREE,
    PALETTE_OF_THREE,
    PREDICTION_CONFIG,
    random_state,
    shapes_of,
    small_demo,
    tiny_config,
    train_demo,
)
from weights_server import Hosts, serve

NO_NETWORK = Path(__file__).parent / 'no_network'
HOSTS = pytest.StashKey[Hosts]()
CLOSED = 'http://127.0.0.1:9'  # for programs other than Python: nothing answers there

# mmengine parses all indexes of mmsegmentation anew for each base of each config.
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)

Train = Callable[..., Runner]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--gpu-tests-on-cpu',
        action='store_true',
        help='run the tests marked gpu on the CPU, with small models: a rehearsal',
    )


def pytest_configure(config: pytest.Config) -> None:
    """Cuts the tests, and the processes that they start, off from other machines."""
    if 'no_network' not in sys.modules:  # its hook stays for good
        spec = importlib.util.spec_from_file_location(
            'no_network', NO_NETWORK / 'sitecustomize.py'
        )
        sys.modules['no_network'] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    earlier = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, (str(NO_NETWORK), earlier)))
    for scheme in ('http', 'https', 'ftp', 'all'):
        os.environ[f'{scheme}_proxy'] = os.environ[f'{scheme.upper()}_PROXY'] = CLOSED
    os.environ['no_proxy'] = os.environ['NO_PROXY'] = 'localhost,127.0.0.1,::1'
    server = contextlib.ExitStack()
    config.add_cleanup(server.close)
    config.stash[HOSTS] = hosts = server.enter_context(serve())
    # huggingface_hub reads it once, when it is imported.
    os.environ['HF_ENDPOINT'] = hosts.address


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_compilations():
    """torch.compile remembers the sizes that a process has seen, and opens them."""
    yield
    if 'torch._dynamo' in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _own_visualizers():
    """mmengine hands out the visualizer that a process made first under a name, which
    writes to the folder of the test that made it."""
    yield
    from mmengine.visualization import Visualizer
    from mmseg.visualization import SegLocalVisualizer

    for visualizer in (Visualizer, SegLocalVisualizer):
        visualizer._instance_dict.clear()


@pytest.fixture(scope='session')
def classifier(tmp_path_factory) -> Path:
    """An SVT-S as the official training script saves it."""
    path = tmp_path_factory.mktemp('checkpoints') / 'classifier.pth'
    torch.manual_seed(0)
    state = random_state(shapes_of('official-cls', 'svt-s'), torch.float16)
    checkpoint = {
        'model': state,
        'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-3}]},
        'lr_scheduler': {'step': 1},
        'epoch': 299,
        'args': argparse.Namespace(lr=1e-3, output_dir='out'),
    }
    torch.save(checkpoint, path)
    return path


@pytest.fixture
def store(tmp_path) -> Path:
    """Where a converted checkpoint goes, in a folder of its own."""
    (tmp_path / 'out').mkdir()
    return tmp_path / 'out' / 'store.pth'


@pytest.fixture
def weight_hosts(request, monkeypatch) -> Iterator[Hosts]:
    """The hosts of published weights, here and for started processes."""
    hosts = request.config.stash[HOSTS]
    monkeypatch.setenv('TEST_HOSTS', hosts.address)
    redirected = sys.modules['no_network'].redirected_urllib
    monkeypatch.setattr(OpenerDirector, 'open', redirected(OpenerDirector.open))
    yield hosts
    hosts.reset()


@pytest.fixture
def make_segmentor() -> Callable[..., EncoderDecoder]:
    """Makes a float64 segmentor in evaluation mode, no parameter at a special value."""

    def make(*args, **kwargs) -> EncoderDecoder:
        with DefaultScope.overwrite_default_scope('mmseg'):
            segmentor = MODELS.build(ConfigDict(tiny_config(*args, **kwargs)))
        segmentor = segmentor.double().eval()
        with torch.no_grad():
            for parameter in segmentor.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in segmentor.named_buffers():
                if name.endswith('running_mean'):
                    buffer.add_(0.1 * torch.randn_like(buffer))
        return segmentor

    return make


@pytest.fixture
def config_text() -> Callable[..., str]:
    """The text of a config file with a tiny segmentor and a dataset's classes."""

    def make(*args, **kwargs) -> str:
        return (
            "default_scope = 'mmseg'\n"
            "custom_imports = dict(imports=['mmseg_twins'])\n"
            "test_dataloader = dict(dataset=dict(type='ADE20KDataset'))\n"
            f'model = {tiny_config(*args, **kwargs)!r}\n'
        )

    return make


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('streets') / 'data'
    write_scenes(folder, training=5, validation=2, size=(64, 64))
    return folder


@pytest.fixture(scope='session')
def demo(scenes: Path) -> Config:
    """Dropout, stochastic depth and flips included."""
    cfg = small_demo(scenes)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.serialize_data = False
    cfg.merge_from_dict(
        {
            'model.backbone': dict(depths=[2, 1, 1, 1], drop_path_rate=0.3),
            'model.decode_head.dropout_ratio': 0.2,
            'train_cfg': dict(max_iters=6, val_interval=100),
            'default_hooks.checkpoint.interval': 2,
        }
    )
    return cfg


@pytest.fixture
def train(demo: Config, tmp_path: Path) -> Train:
    """Trains in a folder of the test, with settings replaced."""
    return functools.partial(train_demo, demo, tmp_path)


@pytest.fixture(scope='session')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('model')
    (folder / 'config.py').write_text(PREDICTION_CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(folder / 'config.py').model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    meta = {'dataset_meta': dict(classes=CLASSES_OF_THREE, palette=PALETTE_OF_THREE)}
    torch.save({'meta': meta, 'state_dict': model.state_dict()}, folder / 'weights.pth')
    return folder


@pytest.fixture
def pictures(trained: Path, tmp_path: Path, monkeypatch) -> Path:
    """A folder with `config.py`, `weights.pth` and two images, to work in."""
    for index, name in enumerate(('b.png', 'a.png')):
        noise = np.random.default_rng(index).integers(256, size=(5, 6, 3))
        Image.fromarray(noise.astype(np.uint8)).resize((90, 70)).save(tmp_path / name)
    for name in ('config.py', 'weights.pth'):
        (tmp_path / name).symlink_to(trained / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
