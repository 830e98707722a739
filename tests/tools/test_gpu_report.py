"""The report of a GPU, rehearsed, and the comparison of operations."""

from __future__ import annotations

import itertools
import sys

import compare_ops
import gpu_report
import pytest
import torch

SLEEP = 'import time\nprint("begun", flush=True)\n{}\ntime.sleep(60)'
PRINTED = """
[gw0] [ 10%] PASSED tests/gpu/test_a.py::test_x[two words]
tests/gpu/test_a.py::test_y FAILED [ 20%]
tests/gpu/test_b.py::test_z SKIPPED (no GPU) [ 30%]
=========================== short test summary info ===========================
FAILED tests/gpu/test_a.py::test_y - assert 1 < 0
"""


@pytest.fixture
def report(tmp_path) -> gpu_report.Report:
    return gpu_report.Report(tmp_path / 'report.md')


def python(code: str) -> list[str]:
    return [sys.executable, '-c', code]


def test_outcomes_are_counted_once_and_failures_told():
    lines = gpu_report.test_table(PRINTED).splitlines()
    assert '| test_a | 1 | 1 | 0 | 0 | 0 | 0 |' in lines
    assert '| test_b | 0 | 0 | 0 | 1 | 0 | 0 |' in lines
    assert lines[-1] == '- `FAILED tests/gpu/test_a.py::test_y - assert 1 < 0`'


@pytest.mark.parametrize(
    'manner', ['', 'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)']
)
def test_a_part_whose_time_is_up_is_stopped_with_what_it_has(
    report, monkeypatch, manner
):
    monkeypatch.setattr(gpu_report, 'GRACE', 0.5)
    printed, end = report.run(python(SLEEP.format(manner)), 3.0, {})
    assert printed == 'begun\n'
    assert 'stopped when its time was up' in end


def test_a_section_leaves_a_whole_report_and_the_log_has_the_errors(report):
    printed, end = report.run(python('import sys; sys.exit("broken")'), 20.0, {})
    report.add('First', printed + end)
    assert report.path.read_text().count('## ') == 1
    assert 'ended with status 1' in report.path.read_text()
    assert 'broken' in report.log.read_text()
    assert len(list(report.path.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['report.txt'], 'report.txt does not end in .md'),
        (['old.md'], 'old.md exists already; --force replaces it'),
        (['new.md', '--minutes', '0'], 'give a positive number'),
        (['new.md', '--wheels', 'none'], 'the folder has no *.whl'),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'old.md').write_text('old')
    with pytest.raises(SystemExit) as raised:
        gpu_report.main(arguments)
    assert sentence in f'{raised.value.code}{capsys.readouterr().err}'
    assert [path.name for path in tmp_path.iterdir()] == ['old.md']
    assert (tmp_path / 'old.md').read_text() == 'old'


@pytest.mark.slow
def test_a_rehearsal_writes_its_parts(tmp_path):
    out = tmp_path / 'report.md'
    options = '--rehearse --minutes 5 --parts tests ops --processes 1 --select'
    gpu_report.main([str(out), *options.split(), 'rewritten and not True'])
    text = out.read_text()
    assert '| test_parity | 1 | 0 | 0 |' in text
    assert '| loss of logits at 128, bf16 | mmseg_twins.ops |' in text
    assert text.count('It ended with status 0') == 2


def test_versions_of_an_operation_take_turns_and_are_compared():
    x = torch.ones(3, requires_grad=True)
    calls = []

    def version(name: str, factor: float):
        def run(x):
            calls.append(name)
            return factor * x

        return run

    operation = 'title', [x], {'a': version('a', 1.0), 'b': version('b', 1.5)}
    first, second = compare_ops.compare(operation, 'fp32', 2)
    assert first.difference == 0
    assert second.difference == pytest.approx(0.5)
    assert [name for name, _ in itertools.groupby(calls)] == ['a', 'b'] * 3
    assert first.seconds > 0


def test_a_version_without_memory_is_a_row():
    def fail(x):
        raise torch.OutOfMemoryError

    x = torch.ones(3, requires_grad=True)
    operation = 'title', [x], {'a': lambda x: 2 * x, 'b': fail}
    rows = compare_ops.compare(operation, 'fp32', 1)
    lines = list(compare_ops.lines_of('title', rows))
    assert lines[0].startswith('| title | a |')
    assert lines[1] == '|  | b | out of memory | - | - | - |'


def test_all_versions_of_all_operations_compute_the_same():
    for operation in compare_ops.operations(1, 64, torch.device('cpu')):
        for row in compare_ops.compare(operation, 'fp32', 1):
            assert row.difference < 1e-3, (operation[0], row)
