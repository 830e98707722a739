"""Find out what is wrong with a dataset: ``mmseg-twins check-dataset CONFIG``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ..apis.dataset_check.datasets import (
    LABELS,
    Dataset,
    from_config,
    from_folders,
    read_pairs,
)
from ..apis.dataset_check.findings import find_all
from ..apis.dataset_check.report import as_dict, draw_frequencies, text
from ..checkpoints.writing import check_writable, replacing
from . import common as cli
from . import program

DESCRIPTION = """Find out what is wrong with a dataset, before hours of training.

Checks the training and validation data of CONFIG, or two folders: images without masks
and masks without images, files that cannot be read, masks of another size than their
image, colors instead of labels, labels without a class, a wrong reduce_zero_label,
classes that never occur, heads with another number of classes, and images in both
training and validation. Files are read, never changed."""

EPILOG = """examples:
  mmseg-twins check-dataset my_config.py --plot classes.png
  mmseg-twins check-dataset --images photos --masks labels --classes road car sky

exit status: 0 if no problem was found, 1 if one was, 2 for invalid arguments,
130 after Ctrl-C"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program('check_dataset.py'),
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_config_arguments(parser, optional=True)
    folders = parser.add_argument_group('without a config')
    folders.add_argument('--images', type=Path, metavar='DIR', help='folder of images')
    folders.add_argument(
        '--masks', type=Path, metavar='DIR', help='folder of masks of the same names'
    )
    folders.add_argument(
        '--classes',
        nargs='+',
        metavar='N_OR_NAME',
        help='the number of classes, or their names in the order of their labels',
    )
    folders.add_argument(
        '--reduce-zero-label',
        action='store_true',
        help='label 0 is ignored, and 1 is the first class (default: 0 is the first)',
    )
    folders.add_argument(
        '--endings',
        nargs=2,
        metavar=('IMAGE', 'MASK'),
        help='endings of images and masks, such as _image.jpg _mask.png (default: '
        'any image format, after the same name)',
    )
    parser.add_argument(
        '--plot', type=Path, metavar='FILE.png', help='draw how often classes occur'
    )
    parser.add_argument(
        '--force', action='store_true', help='replace the file of --plot if it exists'
    )
    parser.add_argument(
        '--json', action='store_true', help='print JSON instead of text'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=min(16, os.cpu_count() or 1),
        metavar='N',
        help='processes that read files (default: %(default)s)',
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Check that there is a config or folders, and not both.

    Raises:
        ValueError: There is neither, or both, or --jobs is not positive.
    """
    needed = {'--images': args.images, '--masks': args.masks, '--classes': args.classes}
    options = {
        **needed,
        '--reduce-zero-label': args.reduce_zero_label or None,
        '--endings': args.endings,
    }
    given = [name for name, value in options.items() if value is not None]
    missing = [name for name, value in needed.items() if value is None]
    if args.config and given:
        raise ValueError(f'{given[0]} is for folders; a config has its own settings')
    if not args.config and missing:
        raise ValueError(
            'give a config, or all of --images, --masks and --classes; missing: '
            f'{" ".join(missing)}'
        )
    if not args.config and args.cfg_options:
        raise ValueError('--cfg-options needs a config')
    if args.jobs < 1:
        raise ValueError(f'--jobs: {args.jobs}; give 1 or more')


def class_names(given: Sequence[str]) -> list[str]:
    """Return the names of classes, also from their number alone.

    Raises:
        ValueError: Masks of 8 bits cannot hold so many.
    """
    if len(given) > 1 or not given[0].lstrip('-').isdigit():
        return [name for part in given for name in part.split(',') if name]
    count = int(given[0])
    if not 1 <= count < LABELS:
        raise ValueError(f'--classes: {count}; give 1 to {LABELS - 1}, or names')
    return [f'class {index}' for index in range(count)]


def check_plot(path: Path, datasets: Sequence[Dataset], *, force: bool) -> None:
    """Check, before the work, that the picture can be written.

    Raises:
        ValueError: It is no PNG file, or lies among the files of a dataset.
        OSError: It cannot be written, or is there and ``force`` is not given.
    """
    check_writable(path, force=force, suffixes=['.png'])
    folders = {file.parent.resolve() for d in datasets for p in d.files for file in p}
    if path.parent.resolve() in folders:
        raise ValueError(f'--plot: {str(path)!r} would be among the files of a dataset')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 if no problem was found, 1 if one was.

    Raises:
        SystemExit: With status 2 for invalid arguments, 130 after Ctrl-C.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    cfg = None
    with cli.one_sentence_errors(parser):
        check_arguments(args)
        if args.config:
            cfg = cli.read_config(args)
            cli.require_data(cfg, 'train_dataloader', 'val_dataloader')
            datasets = from_config(cfg)
        else:
            data = from_folders(
                args.images,
                args.masks,
                class_names(args.classes),
                reduce_zero_label=args.reduce_zero_label,
                endings=args.endings,
            )
            datasets = [data]
        if args.plot:
            check_plot(args.plot, datasets, force=args.force)
    console = Console(stderr=True)
    try:
        for data in datasets:
            read = read_pairs(data.files, jobs=args.jobs)
            total = len(data.files)
            data.pairs.extend(
                track(read, data.name, total, console=console, transient=True)
            )
    except BrokenProcessPool:
        parser.exit(
            2,
            f'{parser.prog}: error: a process that reads files was killed, most likely '
            'for its memory; --jobs 1 needs the least\n',
        )
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted\n')
    findings = find_all(datasets, cfg)
    if args.plot:
        with (
            cli.one_sentence_errors(parser),
            replacing(args.plot, force=args.force) as temporary,
        ):
            draw_frequencies(temporary, datasets)
    if args.json:
        print(json.dumps(as_dict(datasets, findings), indent=2))
    else:
        print(text(datasets, findings))
    return int(any(finding.problem for finding in findings))
