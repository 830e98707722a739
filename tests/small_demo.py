"""The demo's model and data, small enough to train for an instant."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).parents[1]
WIDTHS = [8, 16, 24, 32]


def small_demo(scenes: Path) -> Config:
    """The demo's config, narrow, on the scenes of a folder, loaded in this process.

    Args:
        scenes: what :func:`streets.folder.write_scenes` wrote.
    """
    cfg = Config.fromfile(ROOT / 'configs/demo/twins_svt_fpn_streets.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
        loader.dataset.data_root = str(scenes.absolute())
    cfg.merge_from_dict(
        {
            'model.backbone.embed_dims': WIDTHS,
            'model.neck': dict(in_channels=WIDTHS, out_channels=8),
            'model.decode_head': dict(in_channels=[8] * 4, channels=8),
            'default_hooks.logger.interval': 1,
            'log_level': 'ERROR',
        }
    )
    return cfg
