"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf'```{language}\n(.*?)```', README, flags=re.DOTALL)


def test_the_config_of_ones_own_builds_and_runs(tmp_path):
    (text,) = [block for block in blocks('python') if '_base_' in block]
    (tmp_path / 'config.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'config.py')
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model).eval()
    model = revert_sync_batchnorm(model)
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, 64, 64), mode='tensor')
    assert logits.shape == (1, 150, 16, 16)


def test_every_file_that_the_readme_names_exists():
    linked = re.findall(r'\]\((?!https?:|#)([^)]+)\)', README)
    named = re.findall(r'`((?:tools|configs|tests|docs|mmseg_twins)/[\w./-]+)`', README)
    assert len(linked) > 15 and len(named) > 5
    missing = [name for name in linked + named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize('command', ['tools/', 'configs/'])
def test_commands_name_files_that_exist(command):
    text = '\n'.join(blocks('bash'))
    names = re.findall(rf'({command}[\w./-]+\.(?:py|sh))', text)
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []
