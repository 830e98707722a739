"""Draw street scenes, train a small Twins on them, and evaluate it.

Takes a few minutes on two CPU cores. The folder gets `data`, the scenes in ADE20K's
layout; `training`, the logs and the checkpoint; `scenes.png`, predictions for held-out
scenes; and `report`, a page of scores, `index.html`. The results of an earlier run are
moved to a subfolder.
"""

from __future__ import annotations

import mmseg_twins  # noqa: F401, handles Ctrl-C while the rest is imported

# isort: split
import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import rich
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.runner import Runner, find_latest_checkpoint
from rich.table import Table
from scene_folder import add_numbers, write_scenes

from mmseg_twins.cli import common as cli
from mmseg_twins.evaluation import Report
from mmseg_twins.interrupts import run as run_program

CONFIG = Path(__file__).parents[2] / 'configs/demo/twins_svt_fpn_streets.py'
SHOWN = 6
say = partial(print, '[quickstart]', flush=True)
#: The results of a run; curves.png is from version 0.1.
RESULTS = ('data', 'training', 'report', 'scenes.png', 'curves.png')


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--work-dir', type=Path, default=Path('work_dirs/quickstart'),
        help='folder of the results (default: %(default)s)')  # fmt: skip
    add_numbers(parser)
    add('--max-iters', type=int, metavar='N',
        help="training iterations (default: the config's)")  # fmt: skip
    return parser


def make_config(
    work_dir: Path, *, seed: int = 0, max_iters: int | None = None
) -> Config:
    """Return the demo's config for a folder, a seed and a number of iterations."""
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(work_dir / 'training')
    cfg.randomness.seed = seed
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(work_dir / 'data')
    if max_iters is not None:
        warmup, decay = cfg.param_scheduler
        warmup.end = decay.begin = min(warmup.end, max_iters // 2)
        decay.end = cfg.train_cfg.max_iters = max_iters
        cfg.train_cfg.val_interval = max(1, max_iters // 3)
        cfg.default_hooks.checkpoint.interval = max_iters
        cfg.default_hooks.logger.interval = min(20, max_iters)
    return cfg


def set_aside(work_dir: Path) -> Path | None:
    """Move the results of an earlier run to a new folder ``earlier_N``; return it."""
    results = [work_dir / name for name in RESULTS if (work_dir / name).exists()]
    if not results:
        return None
    number = 1
    while (folder := work_dir / f'earlier_{number}').exists():
        number += 1
    folder.mkdir()
    for result in results:
        result.rename(folder / result.name)
    return folder


def evaluate(runner: Runner, folder: Path) -> tuple[dict, list[tuple[np.ndarray, ...]]]:
    """Predict the held-out scenes, and write a report.

    Returns:
        The report's numbers and, for a few scenes, the image (H, W, 3) in RGB, its
        labels (H, W), where 255 is ignored, and the predicted labels.
    """
    dataset, shown = runner.val_dataloader.dataset, []
    report = Report(
        str(folder),
        about=dict(
            config=str(CONFIG.relative_to(CONFIG.parents[2])),
            checkpoint=find_latest_checkpoint(runner.work_dir),
            iteration=runner.iter,
            dataset='drawn street scenes',
        ),
    )
    report.dataset_meta = dataset.metainfo
    runner.model.eval()
    for batch in runner.val_dataloader:
        with torch.inference_mode():
            (sample,) = runner.model.val_step(batch)
        report.process(batch, [sample.to_dict()])
        if len(shown) < SHOWN:
            labels = (sample.gt_sem_seg, sample.pred_sem_seg)
            image = cv2.imread(sample.img_path)[..., ::-1]
            shown.append((image, *(part.data[0].cpu().numpy() for part in labels)))
    report.evaluate(len(dataset))
    return json.loads((folder / 'report.json').read_text()), shown


def draw_predictions(
    path: Path, scenes: Sequence[tuple[np.ndarray, ...]], cfg: Config, *, title: str
) -> None:
    """Draw image, truth and prediction of scenes as PNG, two scenes per row."""
    colors = np.array([*cfg.palette, (245, 245, 245)], np.uint8)
    names = [*cfg.classes, 'other (ignored)']
    figure = Figure((13.5, 6), dpi=130, layout='constrained')
    figure.suptitle(title, fontsize=14, weight='bold')
    rows = figure.subplots(SHOWN // 2, 6).reshape(SHOWN, 3)
    for row, (image, truth, prediction) in zip(rows, scenes, strict=True):
        right = (prediction == truth)[truth < 255].mean()
        panels = {
            'image': image,
            'truth': colors[np.minimum(truth, len(cfg.classes))],
            f'prediction: {right:.1%} of pixels right': colors[prediction],
        }
        for axes, (name, panel) in zip(row, panels.items(), strict=True):
            axes.imshow(panel)
            axes.set_title(name, fontsize=9)
            axes.set_axis_off()
    patches = [
        Patch(facecolor=color / 255, edgecolor='gray', lw=0.5, label=name)
        for name, color in zip(names, colors, strict=True)
    ]
    figure.legend(
        handles=patches, loc='outside lower center', ncols=len(names), frameon=False
    )
    figure.savefig(path, format='png')


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train, evaluate and show."""
    parser = make_parser()
    args = parser.parse_args(argv)
    start = time.perf_counter()
    with cli.one_sentence_errors(parser):
        if args.validation < SHOWN:
            raise ValueError(f'--validation: {args.validation}; give {SHOWN} or more')
        if args.max_iters is not None and args.max_iters < 2:
            raise ValueError(f'--max-iters: {args.max_iters}; give 2 or more')
        if args.work_dir.exists() and not args.work_dir.is_dir():
            raise ValueError(f"--work-dir: '{args.work_dir}' is a file; give a folder")
        cfg = make_config(args.work_dir, seed=args.seed, max_iters=args.max_iters)
        if earlier := set_aside(args.work_dir):
            say(f'the results of an earlier run were moved to {earlier}')
        say(f'drawing {args.training + args.validation} scenes')
        write_scenes(
            args.work_dir / 'data',
            training=args.training,
            validation=args.validation,
            seed=args.seed,
            progress=True,
        )
    drawn = time.perf_counter()
    say(f'training for {cfg.train_cfg.max_iters} iterations')
    runner = Runner.from_cfg(cfg)
    runner.train()
    loss = runner.message_hub.get_scalar('train/loss').current()
    if not math.isfinite(loss):
        sys.exit(
            f'{parser.prog}: error: the training diverged, its loss is {loss}; the log '
            f'is in {runner.log_dir}'
        )
    trained = time.perf_counter()
    report, drawing = args.work_dir / 'report', args.work_dir / 'scenes.png'
    numbers, scenes = evaluate(runner, report)
    mean = numbers['mIoU']
    title = f'Drawn street scenes that Twins was not trained on: mean IoU {mean:.1f} %'
    draw_predictions(drawing, scenes, cfg, title=title)
    end = time.perf_counter()
    say(
        f'done in {(end - start) / 60:.1f} minutes (drawing {drawn - start:.0f} s, '
        f'training {trained - drawn:.0f} s, evaluation {end - trained:.0f} s)'
    )
    table = Table('class', 'held-out IoU (%)')
    for row in (*numbers['classes'], {'name': 'mean', 'IoU': mean}):
        table.add_row(row['name'], '-' if row['IoU'] is None else f'{row["IoU"]:.2f}')
    rich.print(table)
    print(
        f'predictions: {drawing}\n'
        f'report:      {report / "index.html"}\n'
        f'checkpoint:  {find_latest_checkpoint(cfg.work_dir)}'
    )


if __name__ == '__main__':
    sys.exit(run_program(main))
