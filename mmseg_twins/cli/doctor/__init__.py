"""Says what a bug report needs, and what is wrong with this machine.

``python -m mmseg_twins`` gathers :mod:`.facts`, which :mod:`.checks` judge and a
:mod:`.report` lists. Nothing here fails, and at their top these modules import nothing
that may be missing or broken.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence

from .checks import Facts, Problem, find_problems
from .facts import collect
from .report import describe, format_report

__all__ = ['Facts', 'Problem', 'collect', 'describe', 'find_problems', 'main']


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 1 if something would not work, else 0.
    """
    parser = argparse.ArgumentParser(
        prog='python -m mmseg_twins',
        description='Print what a bug report needs, what is wrong with this machine '
        'and the command that mends it. The exit status is 1 if something would not '
        'work, else 0.',
    )
    parser.add_argument('--json', action='store_true', help='print it as JSON')
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what matters here is what fails
        facts = collect()
        problems = find_problems(facts)
        report = describe(facts)
    if args.json:
        found = [vars(problem) for problem in problems]
        print(json.dumps({'report': report, 'problems': found}, indent=2))
    else:
        print(format_report(report, problems))
    return 1 if problems else 0
