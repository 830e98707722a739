"""Check of a pretrained checkpoint before mmengine loads it into a backbone.

mmengine loads ``init_cfg=dict(type='Pretrained', ...)`` without strictness: a file
whose names do not fit leaves random weights and a line in the log. Here it is an
error.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.model.weight_init import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader

from ...errors import SettingError
from ...state_dicts import compare

# What an ImageNet checkpoint may lack: SVT's norms after the stages are new in
# segmentation.
ALLOWED_MISSING = 'norm_list.'


def check_pretrained(backbone: BaseModule) -> None:
    """Check every ``Pretrained`` entry of a backbone's ``init_cfg``.

    Args:
        backbone: its ``init_cfg`` is read; its first patch embedding may have
            another number of channels than the checkpoint's.

    Raises:
        FileNotFoundError: a checkpoint that is a path, and no such file.
        SettingError: a checkpoint without this backbone's names and shapes.
    """
    entries = backbone.init_cfg or []
    for entry in [entries] if isinstance(entries, dict) else entries:
        if entry['type'] in ('Pretrained', PretrainedInit):
            check_checkpoint(backbone, entry['checkpoint'], entry.get('prefix'))


def check_checkpoint(backbone: BaseModule, source: str, prefix: str | None) -> None:
    """Check one checkpoint, as :func:`check_pretrained` says."""
    if '://' not in str(source) and not Path(source).is_file():
        raise FileNotFoundError(
            f'init_cfg.checkpoint={str(source)!r} is no file; give the path or URL of '
            'a checkpoint, or init_cfg=None for random weights'
        )
    loaded = CheckpointLoader.load_checkpoint(str(source), map_location='cpu')
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    found = {
        name.removeprefix(prefix): value
        for name, value in loaded.get('state_dict', loaded).items()
        if name.startswith(prefix) and hasattr(value, 'shape')
    }
    wanted = backbone.state_dict()
    differences = compare(wanted, found)
    missing = [
        name for name in differences.missing if not name.startswith(ALLOWED_MISSING)
    ]
    if missing:
        raise SettingError(
            f'init_cfg.checkpoint={str(source)!r} lacks {len(missing)} of the '
            f'{len(wanted)} tensors of this {type(backbone).__name__} (the first: '
            f'{missing[0]!r}); convert a checkpoint of another layout with '
            'tools/model_converters/twins2mmseg.py, and name the part of a segmentor '
            "with init_cfg=dict(..., prefix='backbone.')"
        )
    for name, (given, expected) in differences.mismatched.items():
        if name == 'patch_embeds.0.projection.weight' and backbone.in_channels != 3:
            print_log(
                f'{name} of {source} is for {given[1]} image channels, not '
                f'{backbone.in_channels}, and keeps its random initialization',
                logger='current',
            )
            continue
        raise SettingError(
            f'init_cfg.checkpoint={str(source)!r} is of another size: {name!r} is '
            f'{tuple(given)} there and {tuple(expected)} in this '
            f'{type(backbone).__name__}; give the checkpoint of the same arch'
        )
