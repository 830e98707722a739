"""Convert any Twins checkpoint, with verification: the command ``twins2mmseg``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ..checkpoints.conversion import TARGETS, convert_checkpoint
from ..checkpoints.locating import locate
from ..checkpoints.models import VARIANTS
from ..checkpoints.writing import SUFFIXES, check_writable
from ..errors import CheckpointError, SettingError
from ..interrupts import raising
from . import program

DESCRIPTION = """\
Convert a Twins checkpoint to mmsegmentation 1.x, with verification.

The variant and the layout are detected: a classifier or segmentor of the official code,
a classifier of timm, a segmentor of SSSegmentation, a backbone or segmentor of
mmsegmentation. A classifier or backbone becomes a bare backbone for
init_cfg=dict(type='Pretrained', checkpoint=STORE), a segmentor a whole segmentor for
`mim test mmsegmentation CONFIG --checkpoint STORE`. Nothing is written unless all
names, shapes and values are valid and the outputs of the model are finite.
"""
EPILOG = """\
examples:
  twins2mmseg alt_gvt_small.pth svt-s.pth
  twins2mmseg https://host/upernet_svtsmall_ade20k.pth svt-s_upernet.pth --variant svt-s
  twins2mmseg iter_160000.pth svt-s.safetensors --backbone-only --to official
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program('twins2mmseg'),
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'pretrain',
        metavar='PRETRAIN',
        help='the checkpoint, in the format of PyTorch or safetensors: a path, an '
        'http(s) URL or the name of published weights such as twins://svt-s',
    )
    parser.add_argument(
        'store',
        metavar='STORE',
        type=store_path,
        help=f'the file to write; ends in {" or ".join(SUFFIXES)}',
    )
    parser.add_argument(
        '--variant',
        choices=VARIANTS,
        help='fail if the checkpoint is of another variant (default: any)',
    )
    parser.add_argument('--arch', choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument(
        '--to',
        choices=tuple(TARGETS),
        default='mmseg',
        help='layout of the written file: mmsegmentation, or the official code and '
        'timm (default: mmseg)',
    )
    parser.add_argument(
        '--use-ema',
        action='store_true',
        help='convert the averaged weights (EMA) in the checkpoint',
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help='drop the heads of a segmentor and write its bare backbone',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace STORE if it exists'
    )
    return parser


def store_path(value: str) -> Path:
    """Return ``STORE`` as a path, if its ending is allowed."""
    path = Path(value)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(
            f'{value!r} does not end in {" or ".join(SUFFIXES)}'
        )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0 if STORE was written, else 1. After an interruption it is 128
        plus the number of the signal, as in a shell.

    Raises:
        SystemExit: with status 2 for invalid arguments.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.arch:
        print(f'{parser.prog}: --arch is deprecated; use --variant', file=sys.stderr)
    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        with raising():
            check_writable(args.store, force=args.force)  # before a long download
            path = locate(args.pretrain)
            report = convert_checkpoint(
                path,
                args.store,
                to=args.to,
                variant=args.variant or args.arch,
                use_ema=args.use_ema,
                backbone_only=args.backbone_only,
                force=args.force,
                origin=args.pretrain,
            )
    except (SettingError, CheckpointError, OSError, MemoryError, RuntimeError) as error:
        print(f'{parser.prog}: error: {describe_error(error)}', file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print(
            f'{parser.prog}: error: interrupted; nothing was written', file=sys.stderr
        )
        return 128 + (interruption.args or [signal.SIGINT])[0]
    finally:
        signal.signal(signal.SIGTERM, earlier or signal.SIG_DFL)
    print(report)
    return 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise ``KeyboardInterrupt``, so that temporary files are removed."""
    raise KeyboardInterrupt(number)


def describe_error(error: Exception) -> str:
    """Return the message for an error that users can cause; raise any other error."""
    if isinstance(error, MemoryError) or 'allocate memory' in str(error):
        return 'there is not enough memory for this checkpoint'
    if isinstance(error, RuntimeError):
        raise error
    if isinstance(error, OSError) and error.strerror:
        return f'{error.filename or "reading or writing"}: {error.strerror}'
    return str(error)
