"""The table, the JSON and the picture, of figures that are known."""

from __future__ import annotations

import json

import pytest
from benchmarking import Case
from benchmarking.measurement import Measurement, Result, Settings
from benchmarking.plot import draw_memory, draw_times, plot
from benchmarking.report import (
    as_json,
    format_report,
    format_table,
    quartiles,
    summarize,
)
from matplotlib.figure import Figure

PEAKS = {'fp32': 100e9}
MACHINE = {
    'cpu': 'A CPU',
    'cores': 4,
    'threads': 2,
    'system': 'A system',
    'versions': {'torch': '9.9', 'mmseg_twins': '0.0'},
}
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
        {},
    )
    return [first, second]


def test_quartiles_are_of_the_times():
    assert quartiles([5.0]) == (5, 5, 5)
    assert quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2, 3, 4)


def test_figures_follow_from_the_measurement(results):
    result = results[0]
    found = summarize(result, result.get('package'), PEAKS)
    expected = {
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
    assert found == pytest.approx(expected)


def test_table_is_aligned(results):
    lines = [line for line in format_table(results, PEAKS).splitlines() if line]
    _header, rule, *rows = lines
    ends = [
        end
        for end, char in enumerate(rule + ' ')
        if char == ' ' and rule[end - 1] != ' '
    ]
    for row in rows:
        assert len(row) <= len(rule)
        for end in ends[:-1]:
            assert row[end] == ' '
    assert 'svt-s uperhead train fp32, 2 x 512x512' in rows[0]
    figures = '200 150-250 10 2.00x 1000 0.50 23.5 4.0 20%'
    assert rows[0].split()[-10:] == ['package', *figures.split()]


def test_a_case_is_named_once(results):
    assert format_table(results, PEAKS).count('svt-s uperhead') == 1


def test_what_is_not_known_is_a_dash(results):
    last = format_table(results, PEAKS).splitlines()[-1].split()
    assert last == [
        'built-in',
        '10.0',
        '10.0-10.0',
        '100',
        '1.00x',
        *'--',
        '0.0',
        *'--',
    ]


def test_markdown_has_the_same_cells(results):
    lines = format_table(results, PEAKS, markdown=True).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len({line.count('|') for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip('|').split('|')]
    assert cells[:3] == ['svt-s uperhead train fp32, 2 x 512x512', 'package', '200']


@pytest.mark.parametrize('markdown', [False, True])
def test_report_says_what_the_figures_depend_on(results, markdown):
    report = format_report(results, **CONTEXT, markdown=markdown)
    for part in (
        'A CPU, 4 cores, 2 threads',
        'torch 9.9',
        'fp32 100 GFLOP/s',
        'in turns: 3',
        'package: logits 1.0e-06',
        '2 x 512x512: a note',
    ):
        assert part in report
    assert ('the command' in report) == markdown


def test_json_has_every_run(results):
    content = as_json(results, **CONTEXT, date='2020-01-01T00:00:00+00:00')
    content = json.loads(json.dumps(content))
    first, second = content['results']
    assert first['case']['variant'] == 'svt-s'
    assert first['implementations']['package']['seconds'] == [0.1, 0.3, 0.2]
    assert first['implementations']['package']['speedup'] == pytest.approx(2)
    assert first['notes'] == ['a note']
    assert second['implementations']['built-in']['flops'] is None
    assert content['machine'] == MACHINE
    assert content['settings']['runs'] == 3


def test_bars_are_shares_of_the_builtins(results):
    times, memory = Figure().subplots(1, 2)
    draw_times(times, results)
    draw_memory(memory, results)
    assert [bar.get_width() for bar in times.patches] == pytest.approx([0.5, 1, 2, 1])
    assert [bar.get_width() for bar in memory.patches] == pytest.approx([0.5, 1])
    texts = [text.get_text() for text in times.texts]
    assert texts[:2] == ['200 ms  (2.00x as fast)', '400 ms']


@pytest.mark.parametrize(('kind', 'start'), [('png', b'\x89PNG'), ('pdf', b'%PDF')])
def test_picture_has_the_format_that_is_asked_for(results, tmp_path, kind, start):
    path = tmp_path / 'picture.tmp'
    plot(results, path, title='A CPU', kind=kind)
    assert path.read_bytes().startswith(start)


def test_results_without_memory_are_drawn(results, tmp_path):
    plot(results[1:], tmp_path / 'picture.png', title='A CPU', kind='png')
    assert (tmp_path / 'picture.png').stat().st_size > 1000
