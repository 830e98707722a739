"""Write a config for your own classes: ``mmseg-twins new my_config.py``.

The config is a copy of ``configs/custom/twins_custom.py`` with the given values at its
top. It inherits through the installed package, so that it works in any folder, and with
``mim`` as well.
"""

from __future__ import annotations

import argparse
import ast
import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ..apis.configs import PACKAGE, find_config
from ..checkpoints.conversion import convert_state_dict
from ..checkpoints.downloading import is_url
from ..checkpoints.reading import read_source
from ..checkpoints.weights import SCHEME, find_weights, is_name, upernet_config
from ..checkpoints.writing import check_writable, replacing
from ..errors import CheckpointError, SettingError
from . import common as cli

TEMPLATE = 'custom/twins_custom.py'
DEFAULT_VARIANT = 'svt-s'
INSTALLED = PACKAGE / '.mim' / 'configs'
DATA_FOLDERS = (
    'images/training',
    'images/validation',
    'annotations/training',
    'annotations/validation',
)
MIN_ITERATIONS, MIN_CROP_SIZE = 10, 32
MAX_CLASSES = 255  # masks have 8 bits, and 255 marks pixels to ignore
LINE_LENGTH = 88

DESCRIPTION = """\
Write a config that trains a segmentor on your own classes.

Without options, it is a copy of configs/custom/twins_custom.py, to be edited at its
top; each option sets one of the lines there."""

EPILOG = """examples:
  mmseg-twins new my_config.py
  mmseg-twins new my_config.py --data-root data/roads --classes road car sky \\
      --weights twins://pcpvt-b --iterations 40000"""


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog='mmseg-twins new',
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('path', type=Path, help='file to write, such as my_config.py')
    parser.add_argument(
        '--data-root',
        metavar='FOLDER',
        help='folder with images/{training,validation} and '
        'annotations/{training,validation}',
    )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='names of the classes in the order of their numbers in the masks, or a '
        'text file with one name per line',
    )
    parser.add_argument(
        '--weights',
        metavar='NAME_OR_PATH',
        help='initial weights: published weights, such as twins://svt-s (`mmseg-twins '
        'weights` lists them), the path or URL of a checkpoint, or none',
    )
    parser.add_argument(
        '--iterations', type=int, metavar='N', help='length of the training'
    )
    parser.add_argument(
        '--crop-size', type=int, metavar='PX', help='side of the square training crops'
    )
    parser.add_argument(
        '--reduce-zero-label',
        action='store_true',
        help='masks number the classes from 1, and label 0 is ignored (default: from '
        '0, and 255 is ignored)',
    )
    parser.add_argument(
        '--base',
        metavar='CONFIG',
        help='name or path of the config with the model (default: the one that fits '
        'the weights)',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace the file if it exists'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with cli.one_sentence_errors(parser):
        check_writable(args.path, force=args.force, suffixes=['.py'])
        values = read_values(args)
        base = find_base(args.base, values.get('weights'))
        code = {name: assignment(name, value) for name, value in values.items()}
        code['_base_'] = f'_base_ = {base_code(base)}'
        text = fill(find_template().read_text(encoding='utf-8'), code)
        with replacing(args.path, force=args.force) as temporary:
            temporary.write_text(text, encoding='utf-8')
    print(f'{args.path} is written; it inherits from {base.name}. Next:')
    for step in next_steps(args.path, values):
        print(f'- {step}')
    return 0


def find_template() -> Path:
    """Return the path of the template.

    Raises:
        FileNotFoundError: the installation does not have it.
    """
    path = find_config(TEMPLATE)
    if path is None:
        raise FileNotFoundError(
            f'this installation of mmseg_twins has no configs/{TEMPLATE}; reinstall it '
            'with pip'
        )
    return path


def read_values(args: argparse.Namespace) -> dict[str, object]:
    """Return the values of the template's variables that options set.

    Raises:
        ValueError: the value of an option is not allowed.
        FileNotFoundError: there is no such checkpoint.
    """
    values: dict[str, object] = {}
    if args.data_root is not None:
        values['data_root'] = args.data_root
        values |= common_endings(Path(args.data_root))
    if args.classes is not None:
        values['classes'] = read_classes(args.classes)
    if args.weights is not None:
        values['weights'] = read_weights(args.weights)
    for name, minimum in (('iterations', MIN_ITERATIONS), ('crop_size', MIN_CROP_SIZE)):
        number = getattr(args, name)
        if number is not None and number < minimum:
            option = name.replace('_', '-')
            raise SettingError(f'--{option}: {number}; give {minimum} or more')
        if number is not None:
            values[name] = number
    if args.reduce_zero_label:
        values['reduce_zero_label'] = True
    return values


def common_endings(root: Path) -> dict[str, object]:
    """Return the most common suffixes of the images and masks in a folder.

    Datasets read files of one suffix only, and some cameras write `.JPG`.
    """
    endings: dict[str, object] = {}
    for name, kind in (('image_suffix', 'images'), ('mask_suffix', 'annotations')):
        files = (root / kind).glob('*/[!.]*.*')
        for suffix, _ in Counter(file.suffix for file in files).most_common(1):
            endings[name] = suffix
    return endings


def read_classes(given: Sequence[str]) -> list[str]:
    """Return the names of the classes, which may be in a text file.

    Raises:
        SettingError: there are fewer than two, too many, or duplicates.
    """
    names = list(given)
    if len(names) == 1 and Path(names[0]).is_file():
        lines = Path(names[0]).read_text(encoding='utf-8').splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if not 2 <= len(names) <= MAX_CLASSES:
        raise SettingError(
            f'--classes: {len(names)} given ({", ".join(names[:3])}); give 2 to '
            f'{MAX_CLASSES} names, or a text file with one name per line'
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingError(f'--classes: {", ".join(twice)} given more than once')
    return names


def read_weights(given: str) -> str | None:
    """Return the value of the template's variable ``weights``.

    Raises:
        SettingError: there are no published weights of that name.
        FileNotFoundError: there is no such file.
    """
    if given.lower() == 'none':
        return None
    path = Path(given)
    if is_name(given) or not (is_url(given) or path.suffix or path.exists()):
        return SCHEME + find_weights(given).name
    return cli.require_checkpoint(given, '--weights')


def find_base(given: str | None, weights: object) -> Path:
    """Return the path of the config with the model.

    Args:
        given: name or path of a config; None for the one that fits the weights.
        weights: published weights, or the path or URL of a checkpoint; None for none.

    Raises:
        FileNotFoundError: there is no such config.
        SettingError: no config fits the weights.
    """
    name = given or config_of(weights)
    if Path(name).is_file():
        return Path(name)
    path = find_config(name)
    if path is None:
        folder = find_template().parents[1]
        names = [file.relative_to(folder).as_posix() for file in folder.rglob('*.py')]
        similar = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.3)
        hint = f'; did you mean {" or ".join(similar)}?' if similar else ''
        raise FileNotFoundError(f'--base: there is no config {name!r}{hint}')
    return path


def config_of(weights: object) -> str:
    """Return the name of the config that fits the weights.

    Args:
        weights: as in :func:`find_base`.

    Raises:
        SettingError: no config fits them.
    """
    if not isinstance(weights, str):
        return upernet_config(DEFAULT_VARIANT)
    if is_name(weights):
        return find_weights(weights).config
    base = 'give the config of its model with --base'
    if is_url(weights):
        raise SettingError(f'--weights: {weights} is not downloaded yet; {base}')
    try:
        state = read_source(Path(weights)).state
        # Names and shapes are sufficient.
        meta = {name: torch.empty_like(state[name], device='meta') for name in state}
        _, report = convert_state_dict(meta)
    except CheckpointError as error:
        raise SettingError(f'--weights: {weights}: {error}; {base}') from error
    if not report.found.startswith('mmsegmentation'):
        raise SettingError(
            f'--weights: {weights} has another layout ({report.found}); convert it '
            f'first with `mmseg-twins convert {weights} NEW.pth`'
        )
    if report.heads is None:
        return upernet_config(report.variant)
    config = report.config()
    if config is None or 'decode_head.channels' in ' '.join(report.options()):
        raise SettingError(
            f'--weights: no config of the package has the heads of {weights}; {base}'
        )
    return config


def base_code(base: Path) -> str:
    """Return a Python expression for ``_base_`` that works in any folder.

    mmengine evaluates it before the rest of the config. mmengine's notation for configs
    of packages, ``NAME::PATH``, works for a fixed list of packages only.
    """
    path, folder = base.resolve(), INSTALLED.resolve()
    if not path.is_relative_to(folder):
        return repr(path.as_posix())
    name = path.relative_to(folder).as_posix()
    return (
        f"(\n    __import__('mmseg_twins').__path__[0]\n    + '/.mim/configs/{name}'\n)"
    )


def assignment(name: str, value: object) -> str:
    """Return the statement that assigns a value; long lists take several lines."""
    line = f'{name} = {value!r}'
    if not isinstance(value, list) or len(line) <= LINE_LENGTH:
        return line
    items = ''.join(f'    {item!r},\n' for item in value)
    return f'{name} = [\n{items}]'


def fill(template: str, code: Mapping[str, str]) -> str:
    """Replace the assignments to some variables of a config.

    Args:
        code: the new statement for each variable.
    """
    lines = template.splitlines(keepends=True)
    for node in reversed(ast.parse(template).body):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in code:
            end = node.end_lineno or node.lineno
            comment = lines[end - 1][node.end_col_offset :]
            lines[node.lineno - 1 : end] = [code[target.id] + comment]
    return ''.join(lines)


def next_steps(path: Path, values: Mapping[str, object]) -> Iterator[str]:
    """Yield the steps left to do, one line each."""
    unset = [name for name in ('data_root', 'classes') if name not in values]
    if unset:
        yield f'edit the first part: {" and ".join(unset)}'
    else:
        root = Path(str(values['data_root']))
        missing = [name for name in DATA_FOLDERS if not (root / name).is_dir()]
        if missing:
            yield f'put your data into {root}: it has no {", ".join(missing)} yet'
    yield f'check the data: mmseg-twins check-dataset {path}'
    yield f'train: mmseg-twins train {path}'
    yield (
        f'predict with the best checkpoint in {Path("work_dirs", path.stem)}: '
        f'mmseg-twins predict {path} CHECKPOINT IMAGES --out-dir OUT'
    )
