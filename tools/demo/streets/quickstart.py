"""The steps of ``tools/demo/quickstart.py`` around the training itself."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner, find_latest_checkpoint
from mmseg.apis import inference_model, init_model

from streets.figures import Comparison, History, draw_curves, draw_scenes, read_history

SHOWN = 6
#: What a quickstart makes in its folder.
PRODUCTS = ('data', 'training', 'scenes.png', 'curves.png')


class TrainingError(RuntimeError):
    """A training that ended without a usable model."""


@dataclass(frozen=True)
class Result:
    """What came of a quickstart.

    Args:
        miou: Mean IoU on the held-out scenes, in percent.
        class_iou: IoU of each class, in percent.
        scenes: Picture of predictions.
        curves: Picture of loss and IoU over the iterations.
        checkpoint: Weights that the predictions were made with.
    """

    miou: float
    class_iou: dict[str, float]
    scenes: Path
    curves: Path
    checkpoint: Path

    def table(self) -> str:
        """The classes and their IoU, a line each, and the mean."""
        rows = {**self.class_iou, 'mean': self.miou}
        lines = [f'{name:12} {value:6.2f}' for name, value in rows.items()]
        return '\n'.join([f'{"held-out IoU, percent":>19}', *lines])


def check_numbers(validation: int, max_iters: int | None) -> None:
    """Checks the numbers that a user may give.

    Raises:
        ValueError: There are too few scenes to show, or no iterations.
    """
    if validation < SHOWN:
        raise ValueError(f'--validation: {validation}; give {SHOWN} or more')
    if max_iters is not None and max_iters < 2:
        raise ValueError(f'--max-iters: {max_iters}; give 2 or more')


def with_iterations(cfg: Config, max_iters: int | None) -> Config:
    """Shortens or lengthens the training of a config, its schedule with it.

    Args:
        cfg: Is changed.
        max_iters: New number of iterations; None leaves the config's.

    Returns:
        ``cfg``.
    """
    if max_iters is None:
        return cfg
    share = max_iters / cfg.train_cfg.max_iters
    for scheduler in cfg.param_scheduler:
        scheduler.begin = round(scheduler.begin * share)
        scheduler.end = max(round(scheduler.end * share), scheduler.begin + 1)
    cfg.train_cfg.val_interval = max(1, round(cfg.train_cfg.val_interval * share))
    cfg.default_hooks.logger.interval = max(
        1, round(cfg.default_hooks.logger.interval * share)
    )
    cfg.default_hooks.checkpoint.interval = max_iters
    cfg.train_cfg.max_iters = max_iters
    return cfg


def set_aside(work_dir: Path) -> Path | None:
    """Move what an earlier quickstart left to a folder of its own.

    Args:
        work_dir: Of the quickstart. What no quickstart made stays where it is.

    Returns:
        The new folder ``earlier_N`` in ``work_dir``, or None if there was nothing.

    Raises:
        ValueError: ``work_dir`` is a file.
    """
    if work_dir.exists() and not work_dir.is_dir():
        raise ValueError(f'--work-dir: {str(work_dir)!r} is a file; name a folder')
    products = [work_dir / name for name in PRODUCTS if (work_dir / name).exists()]
    if not products:
        return None
    number = 1
    while (folder := work_dir / f'earlier_{number}').exists():
        number += 1
    folder.mkdir()
    for product in products:
        product.rename(folder / product.name)
    return folder


def use_folder(cfg: Config, work_dir: Path, data_root: Path, *, seed: int) -> Config:
    """Points a config at a run's folders and sets its seed; returns the config."""
    cfg.work_dir = str(work_dir / 'training')
    cfg.randomness = dict(seed=seed)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data_root)
    return cfg


def show_results(runner: Runner, work_dir: Path) -> Result:
    """Draws both pictures of a training that has ended.

    Args:
        runner: After ``train()``.
        work_dir: Gets ``scenes.png`` and ``curves.png``.

    Returns:
        The figures and where everything is.

    Raises:
        TrainingError: There is no checkpoint, no evaluation, or no finite loss.
    """
    logs = sorted((work_dir / 'training').glob('*/vis_data/scalars.json'))
    history = read_history(logs[-1]) if logs else History()
    latest = find_latest_checkpoint(str(work_dir / 'training'))
    if latest is None or not history.miou or not history.losses:
        raise TrainingError('the training left no checkpoint, loss or mIoU')
    if not math.isfinite(history.losses[-1]):
        raise TrainingError(f'the training diverged: its loss is {history.losses[-1]}')
    checkpoint = Path(latest)
    scenes, curves = work_dir / 'scenes.png', work_dir / 'curves.png'
    miou = history.miou[-1]
    draw_scenes(
        scenes,
        compare(runner.cfg, checkpoint),
        title=f'Twins on street scenes that it has not seen: mean IoU {miou:.1f} %',
    )
    draw_curves(curves, history, title='Training from scratch')
    class_iou = {name: values[-1] for name, values in history.class_iou.items()}
    return Result(miou, class_iou, scenes, curves, checkpoint)


def compare(cfg: Config, checkpoint: Path) -> list[Comparison]:
    """Predicts the first held-out scenes of each mood with a checkpoint's weights."""
    model = init_model(cfg, str(checkpoint), device=get_device())
    dataset = cfg.val_dataloader.dataset
    root = Path(dataset.data_root)
    images = sorted((root / dataset.data_prefix['img_path']).glob('*.jpg'))
    annotations = root / dataset.data_prefix['seg_map_path']
    result = []
    for file in pick_scenes(images, SHOWN):
        image = cv2.imread(str(file))
        with torch.inference_mode():
            prediction = inference_model(model, image).pred_sem_seg.data[0]
        _, number, mood = file.stem.rsplit('_', 2)
        result.append(
            Comparison(
                title=f'scene {int(number)} · {mood}',
                image=cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
                truth=cv2.imread(
                    str(annotations / f'{file.stem}.png'), cv2.IMREAD_GRAYSCALE
                ),
                prediction=prediction.cpu().numpy() + 1,
            )
        )
    return result


def pick_scenes(files: list[Path], count: int) -> list[Path]:
    """Pick the first scenes of each mood in turns, sorted by mood."""
    by_mood: dict[str, deque[Path]] = {}
    for file in files:
        by_mood.setdefault(file.stem.rpartition('_')[2], deque()).append(file)
    picked: list[tuple[str, Path]] = []
    while len(picked) < min(count, len(files)):
        for mood in sorted(by_mood):
            if by_mood[mood] and len(picked) < count:
                picked.append((mood, by_mood[mood].popleft()))
    return [file for _, file in sorted(picked)]
