"""Evaluate a segmentor: `mmseg-twins test CONFIG CHECKPOINT`.

Accepts the arguments of mmsegmentation's tools/test.py and works without mim. On
several GPUs, or in several processes on the CPU:
`torchrun --nproc-per-node 8 -m mmseg_twins test CONFIG CHECKPOINT`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from ..checkpoints.writing import check_new_folder
from ..engine.full_disk import naming_last
from . import common as cli
from . import program


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program('test.py'),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_common_arguments(parser)
    parser.add_argument(
        'checkpoint', help='path or URL of the checkpoint, such as work_dirs/NAME/X.pth'
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help='average predictions over several scales and flips (test-time '
        'augmentation)',
    )
    parser.add_argument(
        '--out',
        metavar='FOLDER',
        help='new folder for the predicted label maps, one PNG file per image',
    )
    parser.add_argument(
        '--report',
        metavar='FOLDER',
        help='new folder for a report: class scores, confusions and the worst images '
        'as one HTML page (index.html), and its numbers (report.json)',
    )
    parser.add_argument(
        '--show', action='store_true', help='show each prediction in a window'
    )
    parser.add_argument(
        '--show-dir',
        metavar='FOLDER',
        help='folder for drawings of the predictions (in vis_data/vis_image)',
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        metavar='SECONDS',
        help='how long --show shows each prediction (default: 2)',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        cfg = cli.read_run_config(args)
        cfg.load_from = cli.require_checkpoint(args.checkpoint)
        strict_loading = dict(type='mmseg_twins.StrictLoading')
        cfg.custom_hooks = [*cfg.get('custom_hooks', ()), strict_loading]
        cli.require_data(cfg, 'test_dataloader')
        if args.tta:
            cli.use_test_time_augmentation(cfg)
        if args.out is not None:
            write_predictions(cfg, args.out)
        if args.report is not None:
            write_report(cfg, args.report)
        if args.show or args.show_dir is not None:
            draw_predictions(
                cfg, show=args.show, folder=args.show_dir, wait_time=args.wait_time
            )
        cli.require_work_dir(cfg)
        if args.report is not None:
            cli.require_folder(args.report, '--report')
    where = f'a label map in {args.out}' if args.out else f'a file in {cfg.work_dir}'
    with cli.run_errors(parser, where), naming_last(args.out):
        cli.build_runner(cfg).test()
    return 0


def write_predictions(cfg: Config, folder: str) -> None:
    """Set the evaluators for ``--out``.

    Args:
        folder: must be new or empty: predictions are named like the images, and so are
            annotations.

    Raises:
        ValueError: the folder is not empty.
    """
    check_new_folder(Path(folder), '--out')
    for evaluator in evaluators_of(cfg):
        evaluator['output_dir'] = folder
        evaluator['keep_results'] = True


def write_report(cfg: Config, folder: str) -> None:
    """Add the metric and the hook for ``--report``.

    Args:
        folder: must be new or empty.

    Raises:
        ValueError: the folder is not empty, or the test has no ground truth.
    """
    check_new_folder(Path(folder), '--report')
    evaluators = evaluators_of(cfg)
    if any(evaluator.get('format_only') for evaluator in evaluators):
        raise ValueError(
            '--report: test_evaluator has format_only=True, for images without ground '
            'truth, but a report needs ground truth'
        )
    report = dict(type='mmseg_twins.Report', output_dir=folder)
    for evaluator in evaluators:
        if 'ignore_index' in evaluator:
            report['ignore_index'] = evaluator['ignore_index']
    # First, because its error for images without ground truth is one clear sentence.
    cfg.test_evaluator = [report, *evaluators]
    checkpoint = dict(type='mmseg_twins.ReportCheckpoint')
    cfg.custom_hooks = [*cfg.get('custom_hooks', ()), checkpoint]


def evaluators_of(cfg: Config) -> list[ConfigDict]:
    """Return the metrics of a test."""
    evaluators = cfg.test_evaluator
    return evaluators if isinstance(evaluators, list) else [evaluators]


def draw_predictions(
    cfg: Config, *, show: bool, folder: str | None, wait_time: float
) -> None:
    """Set the visualization hook for ``--show``, ``--show-dir`` and ``--wait-time``.

    Raises:
        ValueError: the config has no visualization hook, or there is no display.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir: the config has no default_hooks.visualization, '
            "such as dict(type='SegVisualizationHook')"
        )
    has_display = os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
    if show and sys.platform.startswith('linux') and not has_display:
        raise ValueError(
            '--show: there is no display; write the drawings to files with --show-dir '
            'FOLDER'
        )
    # By default, the hook draws only every 50th image.
    hook.update(draw=True, interval=1, show=show, wait_time=wait_time)
    if folder is not None:
        cfg.visualizer.save_dir = folder
