"""Evaluate a segmentor: `python tools/test.py configs/NAME.py CHECKPOINT`.

Takes the arguments of mmsegmentation's tool of the same name and needs no mim. On
several GPUs, or in several processes on the CPU:
`torchrun --nproc-per-node 8 tools/test.py configs/NAME.py CHECKPOINT`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import common as cli


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='test.py',
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
        help='evaluate at several scales and mirrored, and average the predictions',
    )
    parser.add_argument(
        '--out',
        metavar='FOLDER',
        help='new folder for the predicted class maps, one PNG file per image',
    )
    parser.add_argument(
        '--show', action='store_true', help='show each prediction in a window'
    )
    parser.add_argument(
        '--show-dir',
        metavar='FOLDER',
        help='folder for drawings of the predictions (in vis_data/vis_image there)',
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
    """Parses the arguments and evaluates."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        cfg = cli.read_config(args)
        cfg.load_from = cli.require_checkpoint(args.checkpoint)
        cli.require_data(cfg, 'test_dataloader')
        if args.tta:
            cli.use_test_time_augmentation(cfg)
        if args.out is not None:
            cli.write_predictions(cfg, args.out)
        if args.show or args.show_dir is not None:
            cli.draw_predictions(
                cfg, show=args.show, folder=args.show_dir, wait_time=args.wait_time
            )
    with cli.setting_errors(parser):
        cli.build_runner(cfg).test()
    return 0
