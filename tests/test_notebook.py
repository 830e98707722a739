"""The notebook's cells run from top to bottom, in one process and as they stand.

Cells of plain Python need no Jupyter for that: all that a kernel adds is `display`, for
which a list stands in. Smaller settings follow the cell that is tagged `parameters`.
"""

from __future__ import annotations

import importlib.metadata
import json
import linecache
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from builders import ROOT, WIDTHS

NOTEBOOK = ROOT / 'docs/notebooks/finetune.ipynb'
CELLS = [
    cell
    for cell in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']
    if cell['cell_type'] == 'code'
]
LAST = CELLS[-1]['id']
NARROW = f"""
_base_ = {str(ROOT / 'configs/demo/twins_svt_fpn_streets.py')!r}
model = dict(
    data_preprocessor=dict(test_cfg=None),  # no padding, as in the exported file
    backbone=dict(embed_dims={WIDTHS}, depths=[1, 1, 1, 1]),
    neck=dict(in_channels={WIDTHS}, out_channels=8),
    decode_head=dict(in_channels=[8] * 4, channels=8),
)
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch) -> dict:
    """Settings for a tiny model, in a folder of the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'narrow.py').write_text(NARROW)
    return dict(base='narrow.py', weights=None, crop_size=64, iterations=10)


def run_cells(
    settings: dict, last: str = LAST, display: Callable = lambda picture: None
) -> dict:
    """Run the cells up to one, and return their variables."""
    names = dict(display=display)
    for cell in CELLS:
        name, code = f'cell {cell["id"]}', ''.join(cell['source'])
        linecache.cache[name] = len(code), None, code.splitlines(True), name
        exec(compile(code, name, 'exec'), names)
        if 'parameters' in cell['metadata'].get('tags', ()):
            assert settings.keys() <= names.keys()
            names.update(settings)
        if cell['id'] == last:
            return names
    raise ValueError(f'there is no cell {last!r}')


def test_from_images_to_predictions_and_an_onnx_file(small, capfd):
    pytest.importorskip('onnxscript', reason='export needs the extra `deploy`')
    pictures: list[Image.Image] = []
    names = run_cells(small, display=pictures.append)
    printed = capfd.readouterr().out
    assert 'no problems found in the images: train 32, val 8' in printed
    assert 'Iter(train) [10/10]' in printed
    rows = re.findall(r'^\| +(\w+) +\| +[\d.]+ +\|', printed, flags=re.MULTILINE)
    assert rows == names['classes']
    assert 'System environment' not in printed
    assert len(pictures) == 5
    assert all(min(picture.size) >= 64 for picture in pictures)
    height, width = names['labels'].shape
    assert (width, height) == Image.open(names['photos'][2]).size
    assert names['agreement'] > 0.99
    assert sorted(
        path.name for path in Path('work_dirs/finetune_notebook').iterdir()
    ) == [*('classes.png', 'config.py', 'data', 'model.onnx', 'training')]


def test_its_own_settings_give_a_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_cells({}, last='config')
    cfg = Config.fromfile(names['config'])
    assert cfg.custom_hooks[0].checkpoint == names['weights']
    assert cfg.model.decode_head.num_classes == len(names['classes'])
    assert cfg.model.backbone.arch == 'small'
    masks = [np.array(Image.open(file)) for file in Path().glob('**/*.png')]
    assert len(masks) == 40
    assert set(np.unique(masks)) == set(range(len(names['classes'])))


def test_a_mistake_in_the_data_stops_it_with_a_sentence(small):
    names = run_cells(small, last='data')
    mask = next(Path(names['data_root']).glob('annotations/training/*.png'))
    Image.new('L', (80, 64), 9).save(mask)
    with pytest.raises(RuntimeError, match='with the label 9 in 5,120 pixels'):
        run_cells({**small, 'data_root': names['data_root']}, last='check')


@pytest.mark.parametrize(
    ('source', 'wanted'),
    [
        ('', None),
        ('', '{cwd}/mmseg_twins-1.0-py3-none-any.whl[{extras}]'),
        ('twins-1.0-py3-none-any.whl', '{cwd}/twins-1.0-py3-none-any.whl[{extras}]'),
        ('/home/me/checkout', '/home/me/checkout[{extras}]'),
        ('git+https://host/twins', 'mmseg_twins[{extras}] @ git+https://host/twins'),
    ],
)
def test_the_first_cell_installs_what_is_missing(source, wanted, tmp_path, monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.metadata, 'version', version)
    monkeypatch.setattr(subprocess, 'run', lambda words, check: commands.append(words))
    code = ''.join(CELLS[0]['source']).replace("source = ''", f'source = {source!r}')
    if wanted is None:
        with pytest.raises(SystemExit, match='set `source`'):
            exec(code, {})
        return
    Path('mmseg_twins-1.0-py3-none-any.whl').touch()
    exec(code, {})
    ((*_, last),) = commands
    assert last == wanted.format(cwd=Path.cwd(), extras='lite,deploy')


def test_the_first_cell_installs_nothing_where_the_package_is(monkeypatch):
    monkeypatch.setattr(subprocess, 'run', pytest.fail)
    exec(''.join(CELLS[0]['source']), {})


def test_no_outputs_are_committed():
    assert not any(cell['outputs'] for cell in CELLS)
