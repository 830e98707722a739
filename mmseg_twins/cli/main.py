"""The console command ``mmseg-twins``, also ``python -m mmseg_twins``.

Commands are imported when they are run, so that ``doctor`` works even if parts of the
package cannot be imported.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial

from .. import cli
from ..interrupts import run

COMMANDS = {
    'train': 'train a segmentor',
    'test': 'evaluate a segmentor',
    'predict': 'predict image files',
    'export': 'export a segmentor to an ONNX or PyTorch file',
    'convert': 'convert a Twins checkpoint of another project',
    'weights': 'list or download published weights',
    'new': 'write a config for a dataset of your own',
    'check-dataset': 'find out what is wrong with a dataset',
    'doctor': 'diagnose your installation',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; without one, diagnose the installation."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given == ['--json']:  # `python -m mmseg_twins`
        given = ['doctor', *given]
    names = '\n'.join(f'  {name:<13} {what}' for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog='mmseg-twins',
        description='Twins backbones for mmsegmentation. Without a command, the '
        'installation is diagnosed.',
        epilog=f'commands:\n{names}\n\n`mmseg-twins COMMAND --help` describes one.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', metavar='COMMAND', choices=COMMANDS)
    args = parser.parse_args(given[:1])
    try:
        if args.command != 'doctor':
            compat = importlib.import_module('..compat', __package__)
            compat.activate()
            importlib.import_module('..models.backbones', __package__)
        name = args.command.replace('-', '_')
        module = importlib.import_module(f'.{name}', __package__)
    except ImportError as error:
        parser.exit(
            2,
            f'{parser.prog}: error: {error}; `{parser.prog} doctor` diagnoses the '
            'installation\n',
        )
    cli.command = args.command
    try:
        return run(partial(module.main, given[1:]))
    finally:
        cli.command = None
