"""List or download published weights: ``mmseg-twins weights [NAME ...]``."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..checkpoints.locating import FOLDER_VARIABLE, kept_file, obtain, provided_file
from ..checkpoints.weights import LICENSE, SCHEME, WEIGHTS, Weights, find_weights
from ..checkpoints.writing import check_writable, replacing
from . import common as cli

DESCRIPTION = f"""\
List or download published weights.

{SCHEME}NAME stands for the weights wherever a checkpoint is expected: in init_cfg and
load_from of a config, and on the command line of all tools. They are downloaded when
they are first used, or ahead of time by this command. The mIoU in percent on ADE20K
(single scale; after the slash, multiple scales and flips) is reported by the authors of
the weights; for a backbone, it is that of the config's segmentor, trained from it.

For a machine without internet, run this command with --to FOLDER on another one, copy
the folder, and set {FOLDER_VARIABLE} to its path.
"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='mmseg-twins weights',
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help='weights to download, such as svt-s (default: list all)',
    )
    parser.add_argument(
        '--to', type=Path, metavar='FOLDER', help='also copy them to this folder'
    )
    parser.add_argument(
        '--force', action='store_true', help='replace files that exist in the folder'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if not args.names:
        if args.to is not None:
            parser.error('--to: give the names of the weights to copy')
        console = Console()
        # Wrapped lines are better than truncated names.
        console.width = max(console.width, 140)
        console.print(table())
        return 0
    with cli.one_sentence_errors(parser):
        chosen = [find_weights(name) for name in args.names]
        if args.to is not None:
            args.to.mkdir(parents=True, exist_ok=True)
            for weights in chosen:
                check_writable(copy_of(weights, args.to), force=args.force)
        for weights in chosen:
            path = obtain(weights)
            if args.to is not None:
                target = copy_of(weights, args.to)
                with replacing(target, force=args.force) as temporary:
                    shutil.copyfile(path, temporary)
                path = target
            print(f'{SCHEME}{weights.name}: {path}')
    return 0


def copy_of(weights: Weights, folder: Path) -> Path:
    """Return the path of the copy of weights in a folder."""
    return folder / weights.file_names[0]


def table() -> Table:
    """Return the table of all published weights."""
    table = Table(
        'name',
        'mIoU',
        'reported by',
        'config',
        'here',
        box=None,
        caption=f'license of all: {LICENSE}',
    )
    for weights in WEIGHTS.values():
        tta = '' if weights.miou_tta is None else f' / {weights.miou_tta:.2f}'
        here = 'provided' if provided_file(weights) else ''
        if kept_file(weights).exists():
            here = here or 'downloaded'
        table.add_row(
            f'{SCHEME}{weights.name}',
            f'{weights.miou:.2f}{tta}',
            weights.author,
            weights.config,
            here,
        )
    return table
