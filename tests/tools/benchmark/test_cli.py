"""The command ``benchmark.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarking import cli
from benchmarking.errors import BenchmarkError, DisagreementError
from benchmarking.machine import describe_machine, measure_gemm_peak
from benchmarking.measurement import Measurement, Result

ROOT = Path(__file__).parents[3]


@pytest.fixture
def measured(monkeypatch) -> Iterator[list]:
    """Replaces the measuring; an exception in the list is raised in its turn."""
    steps = []

    def measure(cases, settings, *, progress):
        for number, case in enumerate(cases):
            progress(case.title)
            if number < len(steps) and steps[number]:
                raise steps[number]
            times = [Measurement('package', [0.2]), Measurement('built-in', [0.3])]
            yield Result(case, times, {'package': {'maps': 0.0}})

    monkeypatch.setattr(cli, 'measure', measure)
    monkeypatch.setattr(cli, 'measure_gemm_peak', lambda dtype, device: 1e9)
    monkeypatch.setattr(cli, 'has_timm', lambda: False)
    return steps


def run(*arguments: str) -> int:
    return cli.main(['--device', 'cpu', *arguments])


def test_table_goes_to_stdout_and_progress_to_stderr(measured, capsys):
    assert run('--variants', 'svt-s', '--heads', 'none') == 0
    out, err = capsys.readouterr()
    assert 'svt-s inference fp32, 1 x 512x512  package' in out
    assert '1.50x' in out
    assert 'svt-s inference fp32, 1 x 512x512\n' in err


def test_all_stands_for_every_variant(measured, capsys):
    run('--variants', 'all', '--heads', 'none', '--sizes', '64', '--markdown')
    out = capsys.readouterr().out
    assert out.count('| package ') == 6
    assert out.startswith(
        '```bash\npython tools/analysis_tools/benchmark.py --device cpu --variants'
    )


def test_files_are_written(measured, tmp_path):
    data, picture = tmp_path / 'a.json', tmp_path / 'a.png'
    assert run('--heads', 'none', '--json', str(data), '--plot', str(picture)) == 0
    results = json.loads(data.read_text())['results']
    assert [result['case']['variant'] for result in results] == ['pcpvt-s', 'svt-s']
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'a.png']


def test_existing_files_are_replaced_with_force_only(measured, tmp_path, capsys):
    path = tmp_path / 'a.json'
    path.write_text('mine')
    with pytest.raises(SystemExit) as status:
        run('--json', str(path))
    assert status.value.code == 2
    assert 'exists already; --force replaces it' in capsys.readouterr().err
    assert path.read_text() == 'mine'

    assert run('--json', str(path), '--force') == 0
    assert json.loads(path.read_text())['results']


def test_disagreement_is_one_sentence_and_status_1(measured, capsys):
    measured[:] = [DisagreementError('maps of package and built-in differ')]
    assert run() == 1
    out, err = capsys.readouterr()
    assert out == ''
    assert err.splitlines()[-1] == (
        'benchmark.py: error: maps of package and built-in differ'
    )


@pytest.mark.parametrize(
    ('error', 'status'), [(BenchmarkError('broken'), 1), (KeyboardInterrupt(), 130)]
)
def test_what_was_measured_before_an_error_is_kept(
    measured, tmp_path, capsys, error, status
):
    measured[:] = [None, error]
    path = tmp_path / 'a.json'
    assert run('--heads', 'none', '--json', str(path)) == status
    assert 'pcpvt-s inference' in capsys.readouterr().out
    assert len(json.loads(path.read_text())['results']) == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--variants', 'svt-x'], "invalid choice: 'svt-x'"),
        (['--sizes', '16'], 'too small for pcpvt-s; both sides need at least 32 px'),
        (['--sizes', '5a'], "'5a' is no size; write HEIGHTxWIDTH"),
        (['--runs', '0'], "'0' is no whole number above 0"),
        (['--dtypes', 'fp16'], 'fp16 is for a GPU; on the CPU use bf16'),
        (['--json', 'a.txt'], "'a.txt' does not end in .json"),
        (['--plot', 'a.bmp'], "'a.bmp' does not end in .png or .svg or .pdf"),
        (['--json', 'nowhere/a.json'], 'there is no folder nowhere; make it first'),
        (['--heads', 'none', '--modes', 'logits'], 'nothing is left to measure'),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, message, capsys, measured):
    with pytest.raises(SystemExit) as status:
        run(*arguments)
    assert status.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('benchmark.py: error: ')
    assert message in last


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there_is_one_sentence(capsys):
    with pytest.raises(SystemExit):
        cli.main(['--device', 'cuda'])
    assert 'PyTorch finds no GPU here' in capsys.readouterr().err


def test_compiling_needs_a_compiler(measured, capsys, monkeypatch):
    monkeypatch.setattr(cli.shutil, 'which', lambda name: None)
    with pytest.raises(SystemExit):
        run('--compile')
    assert 'there is no C++ compiler on the PATH' in capsys.readouterr().err


def test_what_is_left_out_is_said(measured, capsys):
    run('--heads', 'none', 'fpn', '--modes', 'logits')
    assert 'left out: mode logits is for segmentors' in capsys.readouterr().err


def test_machine_is_described():
    found = describe_machine(torch.device('cpu'), 3)
    assert found['threads'] == 3
    assert found['cores'] >= 1
    assert found['cpu']
    assert found['versions']['torch'] == torch.__version__
    assert {'python', 'mmseg_twins', 'mmengine', 'mmsegmentation'} < set(
        found['versions']
    )
    json.dumps(found)


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_speed_of_a_matrix_product_is_measured(dtype):
    found = measure_gemm_peak(dtype, torch.device('cpu'), size=64, seconds=0)
    assert 1e6 < found < 1e15


@pytest.mark.slow
def test_the_tool_measures(tmp_path):
    path = tmp_path / 'a.json'
    command = [
        sys.executable,
        str(ROOT / 'tools/analysis_tools/benchmark.py'),
        '--device',
        'cpu',
    ]
    command += ['--variants', 'svt-s', '--heads', 'fpn', '--modes', 'train']
    command += ['--sizes', '64x96', '--runs', '2', '--warmup', '1', '--threads', '1']
    done = subprocess.run(
        [*command, '--json', str(path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert ' built-in ' in done.stdout
    (result,) = json.loads(path.read_text())['results']
    assert result['differences_from_builtin']['package']['gradients'] < 1e-4
    assert list(result['implementations']) == ['package', 'built-in']
    for implementation in result['implementations'].values():
        assert len(implementation['seconds']) == 2
        assert implementation['flops'] > 1e9
        assert implementation['parameters'] > 2e7
