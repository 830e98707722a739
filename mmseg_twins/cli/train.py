"""Train a segmentor: `python tools/train.py configs/NAME.py`.

Takes the arguments of mmsegmentation's tool of the same name and needs no mim. On
several GPUs, or in several processes on the CPU:
`torchrun --nproc-per-node 8 tools/train.py configs/NAME.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import common as cli


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='train.py',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        action='store_true',
        help='continue from the latest checkpoint in the work dir that is whole; '
        'without this, checkpoints found there are moved to a folder of their own',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision (needs a GPU; --cfg-options '
        'optim_wrapper.type=mmseg_twins.BF16OptimWrapper trains in bf16 without one)',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate linearly from the batch size that it is meant '
        'for to the one of this run',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the arguments and trains."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        cfg = cli.read_config(args)
        cli.require_data(cfg, 'train_dataloader', 'val_dataloader')
        if cfg.get('load_from'):
            cli.require_checkpoint(cfg.load_from, 'load_from')
        if args.amp:
            cli.use_mixed_precision(cfg)
        if args.auto_scale_lr:
            cli.scale_learning_rate(cfg)
        if args.resume:
            cfg.resume = True
        if not cfg.get('resume'):
            folder = cli.set_aside_checkpoints(cfg)
            if folder is not None:
                print(f'checkpoints of an earlier run were moved to {folder}')
        elif cfg.get('load_from'):
            cli.require_training_state(cfg.load_from)
        elif not cli.resume_from_whole_checkpoint(cfg):
            print(f'nothing to resume in {cfg.work_dir}: training begins at the start')
    with cli.setting_errors(parser):
        cli.build_runner(cfg).train()
    return 0
