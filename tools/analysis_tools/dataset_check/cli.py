"""The command ``tools/analysis_tools/check_dataset.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarking.machine import usable_cores
from mmengine.config import Config
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from dataset_check import report
from dataset_check.datasets import (
    LABELS,
    Dataset,
    from_config,
    from_folders,
    leaf_datasets,
)
from dataset_check.findings import Finding, Scanned, find_all
from dataset_check.scan import scan
from mmseg_twins.checkpoints.writing import replacing
from mmseg_twins.cli import common as cli

DESCRIPTION = """Find out what is wrong with a dataset, before hours of training.

Looks at the training and validation data of CONFIG, or at two folders without one:
images without masks and the reverse, files that cannot be read, masks of another size
than their images, colours where labels belong, labels that no class has, a wrong
reduce_zero_label, classes that never occur, heads with another number of classes, and
images that are both trained and validated on. Files are read, never changed."""

EPILOG = """examples:
  python tools/analysis_tools/check_dataset.py configs/demo/finetune_custom.py --plot classes.png
  python tools/analysis_tools/check_dataset.py --images photos --masks labels --classes road car sky

exit status: 0 if no problem was found, 1 if one was, 2 for wrong arguments,
130 after Ctrl-C"""


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='check_dataset.py',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', nargs='?', help='path of a config for training')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.OptionsAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config',
    )
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
        help='what images and masks end in, such as _image.jpg _mask.png (default: '
        'any of the usual, after the same name)',
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
        default=usable_cores(),
        metavar='N',
        help='processes that read files (default: the number of cores, %(default)s)',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0 if no problem was found, 1 if one was.

    Raises:
        SystemExit: with status 2 for wrong arguments, 130 after Ctrl-C.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        check_arguments(args)
        cfg = read_config(args) if args.config else None
        datasets = from_config(cfg) if cfg else [from_arguments(args)]
        if args.plot:
            check_plot(args.plot, datasets, force=args.force)
    try:
        scanned = read_all(datasets, jobs=args.jobs)
    except BrokenProcessPool:
        parser.exit(
            2,
            f'{parser.prog}: error: a process that reads files was killed, most likely '
            'for its memory; --jobs 1 needs the least\n',
        )
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted\n')
    heads = dict(head_classes(cfg)) if cfg else {}
    findings = [*pipelines(cfg, datasets), *find_all(scanned, heads)]
    if args.plot:
        with cli.one_sentence_errors(parser):
            write_plot(args.plot, scanned, force=args.force)
    if args.json:
        print(json.dumps(report.as_dict(scanned, findings), indent=2))
    else:
        print(report.text(scanned, findings))
    return int(any(finding.problem for finding in findings))


def check_arguments(args: argparse.Namespace) -> None:
    """Checks that there is a config, or what stands in for one, and not both.

    Raises:
        ValueError: there is neither, or both, or a number that is none.
    """
    own = {
        '--images': args.images,
        '--masks': args.masks,
        '--classes': args.classes,
    }
    given = [name for name, value in own.items() if value is not None]
    others = ['--reduce-zero-label'] * args.reduce_zero_label
    others += ['--endings'] * (args.endings is not None)
    if args.config and (given or others):
        raise ValueError(
            f'{(given + others)[0]}: goes with folders only, not with a config, which '
            'says so itself'
        )
    if not args.config and len(given) < len(own):
        missing = [name for name in own if name not in given]
        raise ValueError(
            f'give a config, or all of --images, --masks and --classes; missing: '
            f'{" ".join(missing)}'
        )
    if not args.config and args.cfg_options:
        raise ValueError('--cfg-options: there is no config that they could change')
    if args.jobs < 1:
        raise ValueError(f'--jobs: {args.jobs}; give 1 or more')


def read_config(args: argparse.Namespace) -> Config:
    """Reads the config, as the other tools do."""
    return cli.read_config(
        argparse.Namespace(
            config=args.config,
            cfg_options=args.cfg_options,
            work_dir=None,
            launcher='none',
            local_rank=0,
        )
    )


def from_arguments(args: argparse.Namespace) -> Dataset:
    """Finds the dataset in the folders that were given."""
    return from_folders(
        args.images,
        args.masks,
        class_names(args.classes),
        reduce_zero_label=args.reduce_zero_label,
        endings=tuple(args.endings) if args.endings else None,
    )


def class_names(given: Sequence[str]) -> list[str]:
    """Names of classes, also from their number alone.

    Raises:
        ValueError: the number is none that masks of 8 bits can hold.
    """
    if len(given) > 1 or not given[0].lstrip('-').isdigit():
        return [name for part in given for name in part.split(',') if name]
    count = int(given[0])
    if not 1 <= count < LABELS:
        raise ValueError(f'--classes: {count}; give 1 to {LABELS - 1}, or names')
    return [f'class {index}' for index in range(count)]


def check_plot(path: Path, datasets: Sequence[Dataset], *, force: bool) -> None:
    """Checks, before the work, that the picture can be written.

    Raises:
        ValueError: it is no PNG file, or lies among the files of the dataset.
        FileExistsError: it is there, and ``force`` is not given.
        FileNotFoundError: its folder does not exist.
    """
    if path.suffix != '.png':
        raise ValueError(f'--plot: {str(path)!r} does not end in .png')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'--plot: there is no folder {str(path.parent)!r}')
    folders = {file.parent.resolve() for d in datasets for p in d.pairs for file in p}
    if path.parent.resolve() in folders:
        raise ValueError(f'--plot: {str(path)!r} would be among the files of a dataset')
    if path.is_dir() or (path.exists() and not force):
        raise FileExistsError(f'--plot: {str(path)!r} exists; --force replaces a file')


def read_all(datasets: Sequence[Dataset], *, jobs: int) -> list[Scanned]:
    """Reads all files; shows how far that is on stderr."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    scanned = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for data in datasets:
            task = progress.add_task(data.name, total=len(data.pairs))
            pairs = scan(
                data.pairs,
                jobs=jobs,
                progress=lambda done, task=task: progress.update(task, completed=done),
            )
            scanned.append(Scanned(data, pairs))
    return scanned


def head_classes(cfg: Config) -> Iterator[tuple[str, int]]:
    """Yields the heads of a config's model and their numbers of classes."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = (cfg.get('model') or {}).get(name)
        several = isinstance(heads, (list, tuple))
        for index, head in enumerate(heads if several else [heads]):
            if head and 'num_classes' in head:
                shown = f'model.{name}' + (f'[{index}]' if several else '')
                yield shown, head['num_classes']


def pipelines(cfg: Config | None, datasets: Sequence[Dataset]) -> Iterator[Finding]:
    """Pipelines that read labels in another way than their dataset says."""
    if cfg is None:
        return
    leaves = [
        leaf
        for key in ('train_dataloader', 'val_dataloader')
        if cfg.get(key)
        for leaf in leaf_datasets(cfg[key].dataset)
    ]
    for leaf, data in zip(leaves, datasets, strict=True):
        for step in leaf.get('pipeline') or ():
            given = step.get('reduce_zero_label')
            if given is not None and given != data.reduce_zero_label:
                yield Finding(
                    data.name,
                    'reduce_zero_label',
                    f'the pipeline has {step["type"]}(reduce_zero_label={given}), the '
                    f'dataset reduce_zero_label={data.reduce_zero_label}; leave it to '
                    'the dataset',
                )


def write_plot(path: Path, scanned: Sequence[Scanned], *, force: bool) -> None:
    """Draws how often classes occur; the file appears complete or not at all."""
    from dataset_check.plot import draw_frequencies

    with replacing(path, force=force) as temporary:
        draw_frequencies(temporary, scanned, title='How often classes occur')
