"""The cases, the turns, the report and the command of ``benchmark.py``."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import benchmark as command
import numpy as np
import pytest
import torch
from benchmarking import measurement as measuring
from benchmarking.cases import (
    CHECK_SIZE,
    Case,
    Settings,
    builtin_mask_is_right,
    expand,
)
from benchmarking.machine import describe_machine, measure_gemm_peak
from benchmarking.measurement import (
    GRADIENT_FACTOR,
    TOLERANCES,
    BenchmarkError,
    Measurement,
    Result,
    Worker,
    compare,
    measure,
    relative_difference,
)
from benchmarking.report import as_json, format_report, format_table, plot, summarize
from benchmarking.session import Job
from mmseg.models.backbones import twins as builtin

from builders import TINY, tiny
from mmseg_twins.checkpoints.models import VARIANTS

ROOT = Path(__file__).parents[2]
CASE = Case('svt-s', 'none', 'inference', 'fp32', 1, 64, 64)


# Cases


def test_every_combination_is_a_case_and_those_of_a_model_stand_together():
    cases, left_out = expand(
        variants=['svt-s', 'pcpvt-l'],
        heads=['none', 'fpn'],
        modes=['inference', 'train'],
        dtypes=['fp32', 'bf16'],
        sizes=[(64, 64), (64, 96)],
        batches=[1, 4],
    )
    assert len(set(cases)) == len(cases) == 64
    assert left_out == []
    models = [(case.variant, case.head) for case in cases]
    assert models == sorted(models, key=list(dict.fromkeys(models)).index)


def test_training_takes_two_images_unless_told_otherwise():
    cases, _ = expand(variants=['svt-s'], modes=['inference', 'train'])
    assert {(case.mode, case.batch) for case in cases} == {
        ('inference', 1),
        ('train', 2),
    }


def test_what_makes_no_sense_is_left_out_with_a_reason():
    cases, left_out = expand(
        variants=['svt-s'],
        heads=['none', 'uperhead'],
        modes=['logits', 'train', 'slide'],
        batches=[1, 2],
        sizes=[(512, 512), (512, 513)],
    )
    assert {(case.head, case.mode, case.batch, case.width) for case in cases} == {
        *(('none', 'train', batch, width) for batch in (1, 2) for width in (512, 513)),
        *(('uperhead', 'logits', b, width) for b in (1, 2) for width in (512, 513)),
        *(('uperhead', 'train', 2, width) for width in (512, 513)),
        *(('uperhead', 'slide', batch, 513) for batch in (1, 2)),
    }
    for reason in ('mode logits is for', 'mode slide is for segm', 'larger', 'batch'):
        assert any(reason in sentence for sentence in left_out)


@pytest.mark.parametrize(
    ('height', 'width'), [(224, 224), (256, 320), (64, 96), (224, 256), (56, 64)]
)
def test_mask_is_called_right_where_the_builtin_agrees(height, width):
    ours = tiny('SVT', norm_cfg=dict(type='LN', eps=1e-5)).eval()
    theirs = builtin.SVT(**TINY, windiow_sizes=(7, 7, 7, 7)).double().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    with torch.inference_mode():
        agree = all(
            torch.allclose(a, b) for a, b in zip(ours(x), theirs(x), strict=True)
        )
    assert builtin_mask_is_right('svt-s', height, width) == agree


@pytest.mark.parametrize(
    ('variant', 'size', 'checked'),
    [
        ('svt-s', (512, 512), (512, 512)),
        ('svt-s', (448, 512), CHECK_SIZE),
        ('pcpvt-s', (448, 512), (448, 512)),
    ],
)
def test_outputs_are_compared_at_the_cases_own_size_where_possible(
    variant, size, checked
):
    case = Case(variant, 'none', 'train', 'fp32', 1, *size).at_check_size()
    assert (case.height, case.width) == checked
    assert builtin_mask_is_right('svt-s', *CHECK_SIZE)


# Agreement


@pytest.mark.parametrize(
    ('ours', 'expected'),
    [
        ([np.full((3, 2), 1.1)], 0.1),
        ([np.ones((2, 3))], math.inf),
        ([np.ones((3, 2)), np.ones(1)], math.inf),
        ([np.full((3, 2), math.nan)], math.inf),
        ([np.full((3, 2), math.inf)], math.inf),
    ],
)
def test_difference_is_relative_and_infinite_where_there_is_none(ours, expected):
    found = relative_difference(ours, [np.ones((3, 2))])
    assert found == pytest.approx(expected)


@pytest.mark.parametrize('dtype', TOLERANCES)
@pytest.mark.parametrize(('kind', 'factor'), [('maps', 1), ('gradients', 4)])
def test_each_dtype_has_its_tolerance(dtype, kind, factor):
    assert GRADIENT_FACTOR == 4
    case = Case('svt-s', 'none', 'train', dtype, 1, 64, 64)
    off = factor * TOLERANCES[dtype]
    near, far = ({kind: [np.full((100,), 1 + f * off)]} for f in (0.9, 1.1))
    found = compare(near, {kind: [np.ones(100)]}, case=case, name='x')
    assert found[kind] == pytest.approx(0.9 * off, rel=1e-2)
    with pytest.raises(BenchmarkError, match=f'{kind} of x and built-in differ'):
        compare(far, {kind: [np.ones(100)]}, case=case, name='x')


def test_one_wrong_map_is_not_hidden_by_larger_ones():
    theirs = {'maps': [np.full((1000,), 1e6), np.ones(10)]}
    ours = {'maps': [theirs['maps'][0], np.ones(10) + 0.01]}
    with pytest.raises(BenchmarkError):
        compare(ours, theirs, case=CASE, name='x')


# Turns


class FakeWorker:
    """Answers without computing, and writes down what it was asked for."""

    log: list[tuple[str, str]]
    failures: dict[tuple[str, str], Exception]
    offsets: dict[str, float]

    def __init__(self, job: Job) -> None:
        self.name = job.name

    def call(self, method: str) -> object:
        self.log.append((self.name, method))
        if (self.name, method) in self.failures:
            raise self.failures[self.name, method]
        number = self.log.count((self.name, method))
        return {
            'load': 7,
            'outputs': {'maps': [np.ones(3) + self.offsets.get(self.name, 0)]},
            'warm_up': 1000 if number == 1 else None,
            'start': None,
            'run': float(number),
            'peak_memory': 5,
        }[method]

    def close(self) -> None:
        self.log.append((self.name, 'close'))


@pytest.fixture
def fake(monkeypatch) -> type[FakeWorker]:
    class Fake(FakeWorker):
        log, failures, offsets = [], {}, {}

    monkeypatch.setattr(measuring, 'Worker', Fake)
    monkeypatch.setattr(measuring, 'make_weights', lambda case, seed: {})
    return Fake


def run_case(case: Case = CASE, **settings) -> Result:
    (result,) = measure([case], Settings(**settings))
    return result


def asked(fake: type[FakeWorker], method: str) -> list[str]:
    return [name for name, asked in fake.log if asked == method]


def test_implementations_take_turns(fake):
    result = run_case(runs=3, warmup=2)
    assert asked(fake, 'run') == ['package', 'built-in'] * 3
    assert asked(fake, 'warm_up') == ['package', 'built-in'] * 2
    order = ['load', 'outputs', 'warm_up', 'start', 'run', 'peak_memory', 'close']
    assert list(dict.fromkeys(method for _, method in fake.log)) == order
    expected = [
        Measurement(name, [1, 2, 3], peak_memory=5, parameters=7, flops=1000)
        for name in ('package', 'built-in')
    ]
    assert result.measurements == expected
    assert result.notes == []


def test_compiled_code_is_measured_beside_the_eager_one(fake):
    names = [m.name for m in run_case(compile=True).measurements]
    compiled = ['package compiled', 'built-in compiled']
    assert names == ['package', 'built-in', *compiled]


def test_nothing_is_timed_if_outputs_disagree(fake):
    fake.offsets['package'] = 1e-3
    with pytest.raises(BenchmarkError, match=f'{CASE.title}: maps of package and'):
        run_case()
    assert asked(fake, 'run') == asked(fake, 'warm_up') == []
    assert sorted(asked(fake, 'close')) == ['built-in', 'package']


def test_how_far_outputs_are_apart_is_kept(fake):
    fake.offsets['package'] = 1e-5
    assert run_case().differences['package']['maps'] == pytest.approx(1e-5, rel=1e-2)


def test_timm_is_compared_only_where_it_computes_the_same(fake):
    fake.offsets['timm'] = 1
    names = ('package', 'built-in', 'timm')
    result = run_case(implementations=names)
    assert [m.name for m in result.measurements] == list(names)
    assert 'timm' not in result.differences
    assert any('were not compared' in note for note in result.notes)
    with pytest.raises(BenchmarkError, match='maps of timm'):
        run_case(replace(CASE, variant='pcpvt-s'), implementations=names)


@pytest.mark.parametrize('method', ['load', 'outputs', 'warm_up', 'run'])
def test_what_runs_out_of_memory_is_a_row_without_figures(fake, method):
    fake.failures['built-in', method] = MemoryError('more than 5 MB')
    result = run_case()
    package, other = result.measurements
    assert len(package.seconds) == 10
    assert other.seconds == []
    assert 'built-in: out of memory (more than 5 MB)' in result.notes
    assert 'out of memory' in format_table([result], {})


def test_another_failure_ends_the_measurement(fake):
    fake.failures['built-in', 'run'] = BenchmarkError('broken')
    with pytest.raises(BenchmarkError, match='broken'):
        run_case()
    assert sorted(asked(fake, 'close')) == ['built-in', 'package']


def test_one_implementation_alone_is_not_compared(fake):
    result = run_case(implementations=('package',))
    assert asked(fake, 'outputs') == []
    assert len(result.measurements) == 1
    assert '| -' in format_table([result], {}, markdown=True).replace('  ', '')


def test_a_comparison_at_another_size_is_noted(fake):
    (note,) = run_case(Case('svt-s', 'none', 'inference', 'fp32', 1, 448, 512)).notes
    assert note.startswith('outputs were compared at 256x320')


def test_weights_are_made_once_for_a_model(fake, monkeypatch):
    made = []
    monkeypatch.setattr(
        measuring,
        'make_weights',
        lambda case, seed: made.append((case.variant, case.head)) or {},
    )
    cases = [
        Case(variant, 'none', mode, 'fp32', 1, 64, 64)
        for variant in ('svt-s', 'svt-b')
        for mode in ('inference', 'train')
    ]
    assert len(list(measure(cases, Settings()))) == 4
    assert made == [('svt-s', 'none'), ('svt-b', 'none')]


@pytest.mark.slow
def test_a_worker_reports_its_errors_its_limit_and_its_end(tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save({}, weights)
    worker = Worker(Job('package', CASE, str(weights), Settings(max_memory=1)))
    try:
        with pytest.raises(BenchmarkError, match=r'package: .* loading state_dict'):
            worker.call('load')
        worker.level = 1
        with pytest.raises(MemoryError, match='more than 0 MB'):
            worker.call('outputs')
        worker.process.kill()
        with pytest.raises((MemoryError, BenchmarkError)):
            worker.call('outputs')
    finally:
        worker.close()
    assert not worker.process.is_alive()


# The report

MACHINE = {
    'cpu': 'A CPU',
    'cores': 4,
    'threads': 2,
    'system': 'A system',
    'ops': 'portable',
    'versions': {'torch': '9.9', 'mmseg_twins': '0.0'},
}
PEAKS = {'fp32': 100e9}
CONTEXT = dict(
    machine=MACHINE, peaks=PEAKS, settings=Settings(runs=3), command='the command'
)


@pytest.fixture
def results() -> list[Result]:
    """Two cases: one in which the package is twice as fast, one with little known."""
    first = Result(
        Case('svt-s', 'uperhead', 'train', 'fp32', 2, 512, 512),
        [
            Measurement('package', [0.1, 0.3, 0.2], 10**9, 23_500_000, 4 * 10**9),
            Measurement('built-in', [0.4, 0.5, 0.3], 2 * 10**9, 23_500_000, 10**10),
        ],
        {'package': {'logits': 1e-6}},
        ['a note'],
    )
    second = Result(
        Case('pcpvt-s', 'none', 'inference', 'fp32', 1, 64, 96),
        [Measurement('package', [0.02]), Measurement('built-in', [0.01])],
    )
    return [first, second]


def test_figures_follow_from_the_measurement(results):
    result = results[0]
    assert summarize(result, result.measurements[0], PEAKS) == pytest.approx(
        {
            'median_s': 0.2,
            'first_quartile_s': 0.15,
            'third_quartile_s': 0.25,
            'min_s': 0.1,
            'max_s': 0.3,
            'images_per_s': 10,
            'speedup': 2,
            'peak_memory_bytes': 10**9,
            'memory_share': 0.5,
            'parameters': 23_500_000,
            'flops': 4 * 10**9,
            'share_of_gemm_peak': 0.2,
        }
    )


def test_table_names_a_case_once_and_dashes_what_is_not_known(results):
    table = format_table(results, PEAKS)
    assert table.count('svt-s uperhead') == 1
    figures = '200 150-250 10 2.00x 1000 0.50 23.5 4.0 20%'
    assert f'package {figures}' in ' '.join(table.split())
    assert table.split()[-9:] == [
        '10.0',
        '10.0-10.0',
        '100',
        '1.00x',
        *'--',
        '0.0',
        *'--',
    ]


def test_markdown_is_a_table_with_figures_to_the_right(results):
    lines = format_table(results, PEAKS, markdown=True).splitlines()
    assert len(lines) == 2 + 4
    assert {line.count('|') for line in lines} == {12}
    assert lines[1] == f'|---|---|{"--:|" * 9}'


@pytest.mark.parametrize('markdown', [False, True])
def test_report_names_what_the_figures_depend_on(results, markdown):
    report = format_report(results, **CONTEXT, markdown=markdown)
    for part in (
        'A CPU, 4 cores, 2 threads',
        'torch 9.9',
        'MMSEG_TWINS_OPS=portable',
        'fp32 100 GFLOP/s',
        'in turns: 3',
        'package: logits 1.0e-06',
        '2 x 512x512: a note',
    ):
        assert part in report
    assert ('the command' in report) == markdown


def test_report_names_gpu_driver_and_libraries(results):
    gpu = dict(gpu='A GPU', gpu_memory_bytes=80 * 2**30, capability='9.0')
    gpu |= dict(driver='580.1', cudnn=92000, convolution_tf32=True, matmul_tf32=False)
    context = {**CONTEXT, 'machine': {**MACHINE, **gpu}}
    report = format_report(results, **context)
    assert (
        'GPU: A GPU, 80 GiB, compute capability 9.0; driver 580.1, cuDNN 92000; '
        'TF32: convolution\n'
    ) in report


def test_json_has_every_run(results):
    content = as_json(results, **CONTEXT, date='2020-01-01T00:00:00+00:00')
    first, second = json.loads(json.dumps(content))['results']
    assert first['case']['variant'] == 'svt-s'
    assert first['implementations']['package']['seconds'] == [0.1, 0.3, 0.2]
    assert first['implementations']['package']['speedup'] == pytest.approx(2)
    assert second['implementations']['built-in']['flops'] is None
    assert content['settings']['runs'] == 3


@pytest.mark.parametrize(('kind', 'start'), [('png', b'\x89PNG'), ('pdf', b'%PDF')])
def test_picture_has_the_format_that_is_asked_for(results, tmp_path, kind, start):
    path = tmp_path / 'picture.tmp'
    plot(results, path, title='A CPU', kind=kind)
    assert path.read_bytes().startswith(start)


# The command


@pytest.fixture
def measured(monkeypatch) -> list:
    """Replaces the measuring; an exception in the list is raised in its turn."""
    steps = []

    def measure(cases, settings, *, progress):
        for number, case in enumerate(cases):
            progress(case.title)
            if number < len(steps) and steps[number]:
                raise steps[number]
            times = [Measurement('package', [0.2]), Measurement('built-in', [0.3])]
            yield Result(case, times, {'package': {'maps': 0.0}})

    monkeypatch.setattr(command, 'measure', measure)
    monkeypatch.setattr(command, 'measure_gemm_peak', lambda dtype, device: 1e9)
    monkeypatch.setattr(command, 'describe_machine', lambda *_: MACHINE)
    monkeypatch.setattr(command, 'has_timm', lambda: False)
    return steps


def run(*arguments: str) -> int:
    return command.main(['--device', 'cpu', *arguments])


def test_table_goes_to_stdout_and_progress_to_stderr(measured, capsys):
    assert run('--variants', 'all', '--heads', 'none', '--sizes', '64') == 0
    out, err = capsys.readouterr()
    assert out.count('1.50x') == out.count(' package ') == len(VARIANTS)
    assert 'svt-s inference fp32, 1 x 64x64\n' in err


@pytest.mark.parametrize(('speed', 'is_told'), [(1e9, True), (8e9, False)])
def test_a_dtype_without_instructions_is_told(
    measured, monkeypatch, capsys, speed, is_told
):
    peaks = {'fp32': 2e10, 'bf16': speed}
    monkeypatch.setattr(
        command, 'measure_gemm_peak', lambda dtype, device: peaks[dtype]
    )
    run('--heads', 'none', '--dtypes', 'bf16')
    assert ('bf16 is 20 times slower than fp32' in capsys.readouterr().err) == is_told


def test_files_are_written_and_replaced_with_force_only(measured, tmp_path, capsys):
    data, picture = tmp_path / 'a.json', tmp_path / 'a.png'
    files = ['--heads', 'none', '--json', str(data), '--plot', str(picture)]
    assert run(*files, '--markdown') == 0
    assert capsys.readouterr().out.startswith(
        '```bash\npython tools/analysis_tools/benchmark.py --device cpu --heads'
    )
    results = json.loads(data.read_text())['results']
    assert [result['case']['variant'] for result in results] == ['pcpvt-s', 'svt-s']
    assert picture.read_bytes().startswith(b'\x89PNG')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.json', 'a.png']
    data.write_text('mine')
    with pytest.raises(SystemExit) as status:
        run(*files)
    assert status.value.code == 2
    assert 'exists already; --force replaces it' in capsys.readouterr().err
    assert data.read_text() == 'mine'
    assert run(*files, '--force') == 0
    assert json.loads(data.read_text())['results']


@pytest.mark.parametrize(
    ('error', 'status'),
    [(BenchmarkError('maps differ'), 1), (KeyboardInterrupt(), 130)],
)
def test_what_was_measured_before_an_error_is_kept(
    measured, tmp_path, capsys, error, status
):
    measured[:] = [None, error]
    path = tmp_path / 'a.json'
    assert run('--heads', 'none', '--json', str(path)) == status
    out, err = capsys.readouterr()
    assert 'pcpvt-s inference' in out
    assert err.splitlines()[-1] == f'benchmark.py: error: {str(error) or "interrupted"}'
    assert len(json.loads(path.read_text())['results']) == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--variants', 'svt-x'], "invalid choice: 'svt-x'"),
        (['--sizes', '16'], 'too small; both sides need at least 32 px'),
        (['--sizes', '5a'], "'5a' is not a size; write HEIGHTxWIDTH"),
        (['--runs', '0'], "'0' is not a positive integer"),
        (['--dtypes', 'fp16'], 'fp16 needs a GPU; on the CPU, use bf16'),
        (['--json', 'a.txt'], 'a.txt does not end in .json'),
        (['--plot', 'a.bmp'], 'a.bmp does not end in .png'),
        (['--json', 'nowhere/a.json'], 'there is no folder nowhere; create it first'),
        (['--heads', 'none', '--modes', 'logits'], 'nothing is left to measure'),
        (['--implementations', 'timm'], 'timm is not installed'),
        (['--max-memory', '0'], '--max-memory 0: give a positive number'),
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
        command.main(['--device', 'cuda'])
    assert 'PyTorch finds no GPU' in capsys.readouterr().err


def test_former_options_still_work(measured, capsys):
    assert run('--heads', 'none', '--no-timm') == 0
    assert '--no-timm is deprecated' in capsys.readouterr().err


def test_machine_is_described():
    found = describe_machine(torch.device('cpu'), 3)
    assert found['threads'] == 3
    assert found['cores'] >= 1
    assert found['cpu']
    names = {name.removeprefix('onedl-') for name in found['versions']}
    assert {'python', 'mmseg_twins', 'mmengine', 'mmsegmentation'} < names
    json.dumps(found)


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_speed_of_a_matrix_product_is_measured(dtype):
    found = measure_gemm_peak(dtype, torch.device('cpu'), size=64, seconds=0.01)
    assert 1e6 < found < 1e15


@pytest.mark.slow
def test_the_tool_measures(tmp_path):
    path = tmp_path / 'a.json'
    options = '--device cpu --variants svt-s --heads fpn --modes train --sizes 64x96 '
    options += f'--runs 2 --warmup 1 --threads 1 --json {path}'
    tool = ROOT / 'tools/benchmark.py'  # which forwards
    done = subprocess.run(
        [sys.executable, tool, *options.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(path.read_text())['results']
    assert result['differences_from_builtin']['package']['gradients'] < 1e-4
    assert list(result['implementations']) == ['package', 'built-in']
    for implementation in result['implementations'].values():
        assert len(implementation['seconds']) == 2
        assert implementation['flops'] > 1e9
        assert implementation['parameters'] > 2e7


@pytest.mark.slow
def test_an_image_that_needs_too_much_memory_is_reported(tmp_path):
    path = tmp_path / 'a.json'
    options = '--variants svt-s --heads fpn --implementations package --threads 1 '
    options += f'--runs 1 --warmup 1 --sizes 64 512 --max-memory 0.1 --json {path}'
    assert run(*options.split()) == 0
    small, large = json.loads(path.read_text())['results']
    assert small['implementations']['package']['peak_memory_bytes'] > 0
    assert large['implementations']['package']['seconds'] == []
    assert 'out of memory' in large['notes'][0]
