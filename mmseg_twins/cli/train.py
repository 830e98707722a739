"""Train a segmentor: `mmseg-twins train CONFIG`.

Accepts the arguments of mmsegmentation's tools/train.py and works without mim. On
several GPUs, or in several processes on the CPU:
`torchrun --nproc-per-node 8 -m mmseg_twins train CONFIG`.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ..checkpoints.downloading import is_url
from ..checkpoints.reading import read_checkpoint
from ..engine.early_stopping import SCORES
from ..engine.latest import find_whole_checkpoint
from ..engine.replay import prepare_replay, replay
from ..errors import SettingError
from . import common as cli
from . import program


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program('train.py'),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        action='store_true',
        help='resume from the latest intact checkpoint in the work dir; without this '
        'option, existing checkpoints are moved to a subfolder',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='train in mixed precision (needs a GPU; --cfg-options '
        'optim_wrapper.type=mmseg_twins.BF16OptimWrapper trains in bf16 on the CPU)',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's base batch size to the batch "
        'size of this run',
    )
    parser.add_argument(
        '--replay',
        type=int,
        metavar='ITER',
        help='repeat iteration ITER of the run in the work dir, from its newest intact '
        'checkpoint before that, report where the first number arises that is NaN or '
        'infinite, and end; changes nothing that the run resumes from',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        cfg = cli.read_run_config(args)
        cli.require_data(cfg, 'train_dataloader', 'val_dataloader')
        if cfg.get('load_from'):
            cli.require_checkpoint(cfg.load_from, 'load_from')
        if args.amp:
            use_mixed_precision(cfg)
        if args.auto_scale_lr:
            scale_learning_rate(cfg)
        cli.require_work_dir(cfg)
        choose_start(cfg, args)
    where = f'a file in {cfg.work_dir}'
    with cli.run_errors(parser, where, lambda: find_whole_checkpoint(cfg.work_dir)):
        runner = cli.build_runner(cfg)
        log_parameters_to_file(runner)
        with naming_batch_size(cfg):
            if args.replay is None:
                runner.train()
            else:
                print(replay(runner, args.replay))
    return 0


def log_parameters_to_file(runner: Runner) -> None:
    """Leave the optimizer's settings of each parameter to the log file.

    They are one line for each parameter without weight decay, 149 for PCPVT-S.
    """
    for handler in runner.logger.handlers:
        if type(handler) is logging.StreamHandler:  # the log file's is derived from it
            handler.addFilter(lambda record: 'paramwise_options' not in str(record.msg))


@contextmanager
def naming_batch_size(cfg: Config) -> Iterator[None]:
    """Name the batch size where it is what batch norms fail at.

    Raises:
        SettingError: a batch norm got a single value of each channel.
    """
    try:
        yield
    except ValueError as error:
        if 'Expected more than 1 value per channel' not in str(error):
            raise
        raise SettingError(
            f'train_dataloader.batch_size: {cfg.train_dataloader.batch_size} gives a '
            'batch norm of the model a single value per channel; give 2 or more, or '
            'train on several GPUs, whose batches SyncBN joins'
        ) from error


def choose_start(cfg: Config, args: argparse.Namespace) -> None:
    """Set what training starts from, and print what the user may not expect.

    Raises:
        ValueError: training cannot start from what was given.
    """
    cfg.resume = args.resume or cfg.get('resume', False)
    if args.replay is not None:
        start = prepare_replay(cfg, args.replay)
        print(f'replaying from {start or "the beginning of the training"}')
    elif not cfg.resume:
        folder = set_aside_checkpoints(cfg)
        if folder is not None:
            print(f'checkpoints of an earlier run were moved to {folder}')
    elif cfg.get('load_from'):
        require_training_state(cfg.load_from)
    elif not resume_from_whole_checkpoint(cfg):
        print(f'nothing to resume in {cfg.work_dir}: training starts anew')


def use_mixed_precision(cfg: Config) -> None:
    """Set ``optim_wrapper`` for ``--amp``.

    Raises:
        ValueError: there is no GPU, or the config has a wrapper of its own.
    """
    if get_device() in ('cpu', 'mps'):
        raise ValueError(
            '--amp: mmengine trains in mixed precision on a GPU only, and this '
            'machine has none; --cfg-options '
            'optim_wrapper.type=mmseg_twins.BF16OptimWrapper trains in bf16 without '
            'one'
        )
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp: the config has optim_wrapper.type {wrapper!r}; mixed precision '
            "can replace 'OptimWrapper' only"
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_learning_rate(cfg: Config) -> None:
    """Enable ``auto_scale_lr`` for ``--auto-scale-lr``.

    Raises:
        ValueError: the config has no base batch size.
    """
    if not cfg.get('auto_scale_lr', {}).get('base_batch_size'):
        raise ValueError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, the '
            'batch size that its learning rate is meant for'
        )
    cfg.auto_scale_lr.enable = True


def set_aside_checkpoints(cfg: Config) -> Path | None:
    """Move the checkpoints of an earlier run, which a new run would overwrite.

    Returns:
        The new folder inside ``cfg.work_dir`` that has them now; None if there were
        none, or if another process moves them.

    Raises:
        ValueError: ``cfg.load_from`` is one of them.
    """
    work_dir = Path(cfg.work_dir)
    checkpoints = sorted(work_dir.glob('*.pth'))
    if not checkpoints:
        return None
    start = cfg.get('load_from')
    if start and any(Path(start).resolve() == file.resolve() for file in checkpoints):
        raise ValueError(
            f'load_from: {start!r} lies in the work_dir, whose checkpoints the new run '
            'would replace; give another --work-dir, or continue the run with --resume'
        )
    # Distributed training is not set up yet.
    ranks = map(os.environ.get, ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    if int(next(filter(None, ranks), 0)) != 0:
        return None
    number = 1
    while (folder := work_dir / f'earlier_{number}').exists():
        number += 1
    folder.mkdir()
    notes = [work_dir / name for name in ('last_checkpoint', 'last_validation', SCORES)]
    for file in [*checkpoints, *notes]:
        if file.exists():
            file.rename(folder / file.name)
    return folder


def require_training_state(given: str) -> None:
    """Check that training can resume from a checkpoint, unless it is a URL.

    Raises:
        ValueError: the checkpoint cannot be read, or has weights only.
    """
    if is_url(given) or not Path(given).is_file():
        return
    weights_only = given.endswith('.safetensors')
    content = {} if weights_only else read_checkpoint(Path(given), map_location='meta')
    missing = [key for key in ('meta', 'optimizer') if key not in content]
    if missing:
        raise ValueError(
            f'--resume: {given!r} has no {" and no ".join(missing)}: it holds weights, '
            'not the state of a training; leave --resume out to start with them, or '
            'add --cfg-options load_from=None to resume from the latest checkpoint in '
            'the work dir'
        )


def resume_from_whole_checkpoint(cfg: Config) -> bool:
    """Set ``load_from`` where mmengine would resume from a damaged checkpoint or none.

    Returns:
        Whether there is a checkpoint.

    Raises:
        ValueError: every checkpoint is damaged.
    """
    whole = find_whole_checkpoint(cfg.work_dir)
    last = Path(cfg.work_dir) / 'last_checkpoint'
    if whole and not (last.exists() and last.read_text().strip() == whole):
        cfg.load_from = whole
    return whole is not None
