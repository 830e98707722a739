"""``tools/check_figures.py``, and the figures of the pages themselves."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import pytest
import yaml

from builders import shapes_of
from mmseg_twins.models.backbones.sizes import PCPVT_SIZES, SVT_SIZES

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location(
    'check_figures', ROOT / 'tools/check_figures.py'
)
check_figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_figures)

PAGES = check_figures.PAGES
FIGURES = [one for page in PAGES for one in check_figures.figures(page)]
# Pages and tables of numbers without a comment: where these come from.
ELSEWHERE = {
    'README.md': 'the index of models',
    'camvid.md': 'trainings of an hour, by the commands below them',
    'install.md': 'versions that the CI installs',
    'resuming.md': 'exit statuses',
    ('benchmarks.md', 'fp32'): 'the tables below it',
    ('deployment.md', 'PyTorch, ms'): 'the loop below it',
    ('finetune.md', 'first iteration with 50 % mean IoU'): 'the command below it',
    ('model_zoo.md', 'official¹'): 'the index of models',
}
PAGE = """\
```console
cat docs/../numbers.md
```

<!-- figures, {kind}: {command}
columns: {columns} -->

| case | median ms | GFLOP |
| --- | --: | --: |
| svt-s fp32 | 260 | [33.1](a.md) |
| svt-s bf16 | 171 | 1,234 |
"""
PRINTED = """\
words before it
| case | implementation | GFLOP | median ms |
| --- | --- | --: | --: |
| svt-s fp32 | package | 33.12 | 200 |
| | built-in | 34.4 | 353 |
| svt-s bf16 | package | 1234.4 | 180 |
"""


def write(folder: Path, text: str = PAGE, **kwargs: str) -> Path:
    """Writes a page whose command prints `PRINTED`."""
    (folder / 'printed.md').write_text(PRINTED)
    command = f'cat {folder / "printed.md"}'
    given = dict(kind='quick', command=command, columns='GFLOP') | kwargs
    (folder / 'page.md').write_text(text.format(**given))
    return folder / 'page.md'


def test_a_page_that_says_what_is_printed_passes(tmp_path, capsys):
    # By its full name; GFLOP are the same to the digits on the page.
    text = PAGE.replace('| svt-s fp32', '| svt-s fp32 package')
    columns = 'GFLOP; median ms within 25%'
    assert check_figures.main([str(write(tmp_path, text, columns=columns))]) == 0
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('there', 'instead', 'columns', 'says'),
    [
        ('33.1]', '33.2]', 'GFLOP', 'GFLOP: the page says 33.2, printed is 33.12'),
        ('1,234', '1,233', 'GFLOP', 'the page says 1,233, printed is 1234.4'),
        ('1,234', '1 to 2', 'GFLOP', 'the page says 1 to 2, printed is 1234.4'),
        ('1,234', 'none', 'GFLOP', 'the page says none, printed is 1234.4'),
        ('171', '140', 'median ms within 25%', 'allowed is a difference of 25%'),
        ('171', '140', 'median ms within 39', 'allowed is a difference of 39'),
        ('svt-s bf16', 'svt-b', 'GFLOP', 'svt-b: 0 printed rows have this name'),
        ('svt-s bf16', 'svt-s', 'GFLOP', 'svt-s: 3 printed rows have this name'),
        ('GFLOP |', 'share |', 'share', 'the page says 1,234, printed is nothing'),
    ],
)
def test_a_figure_that_is_not_printed_is_named(
    there, instead, columns, says, tmp_path, capsys
):
    text = PAGE.replace('svt-s fp32', 'svt-s fp32 package').replace(there, instead)
    assert there in PAGE
    assert check_figures.main([str(write(tmp_path, text, columns=columns))]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith('page.md:8: ')
    assert says in last


def test_numbers_within_their_tolerance_agree():
    agree = check_figures.agree
    assert agree('23', '23.4', '0')
    assert not agree('23', '23.6', '0')
    assert agree('1.7e-05', '1.74e-5', '0')
    assert not agree('1.7e-05', '1.8e-5', '0')
    assert agree('2.0x', '1.6x', '20%')
    assert not agree('2.0x', '1.5x', '20%')
    assert agree('0.33', '0.42', '0.09')


def test_an_empty_cell_is_the_one_above_it():
    (table,) = check_figures.tables(PRINTED)
    assert list(table.rows) == [
        'svt-s fp32 package',
        'svt-s fp32 built-in',
        'svt-s bf16 package',
    ]


def test_the_block_above_is_the_command(tmp_path):
    (one,) = check_figures.figures(write(tmp_path, command='above'))
    assert one.command == 'cat docs/../numbers.md\n'


def test_a_command_that_fails_is_named(tmp_path, capsys):
    assert check_figures.main([str(write(tmp_path, command='exit 3'))]) == 1
    assert 'page.md:8: the command ends with 3' in capsys.readouterr().err


def test_other_kinds_of_commands_do_not_run(tmp_path, capsys):
    page = write(tmp_path, kind='measured', command='exit 3')
    assert check_figures.main([str(page)]) == 0
    assert check_figures.main([str(page), '--kinds', 'measured', '--list']) == 0
    assert capsys.readouterr().out == 'page.md:8: measured: exit 3\n'


@pytest.mark.parametrize(
    ('changed', 'says'),
    [
        (dict(kind='always'), "'always' is none of"),
        (dict(columns='GFLOPS'), "the table has no column 'GFLOPS'"),
    ],
)
def test_a_comment_that_fits_no_table_is_an_error(changed, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        check_figures.figures(write(tmp_path, **changed))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_comment_on_a_page_is_understood(page: Path):
    text = page.read_text(encoding='utf-8')
    assert len(check_figures.figures(page)) == text.count('<!-- figures')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_table_of_figures_has_a_command(page: Path):
    made = {one.table.line for one in check_figures.figures(page)}
    for table in check_figures.tables(page.read_text(encoding='utf-8')):
        rows = list(table.rows.values())
        cells = [cell for row in rows for cell in row.values()]
        numeric = sum(bool(re.match(r'\d+[.,]?\d*x?( |$|,)', cell)) for cell in cells)
        if 3 * numeric > len(cells) and table.line not in made:
            names = {page.name, *((page.name, column) for column in rows[0])}
            assert names & ELSEWHERE.keys(), (
                f'{page.name}:{table.line}: {list(rows[0])}'
            )


def runs(kind: str) -> list:
    return [pytest.param(one, id=one.place) for one in FIGURES if one.kind == kind]


@pytest.mark.parametrize('one', runs('quick'))
def test_figures_are_what_a_quick_command_prints(one: check_figures.Figures):
    assert check_figures.differences(one) == []


@pytest.mark.slow
@pytest.mark.parametrize('one', runs('slow'))
def test_figures_are_what_a_slow_command_prints(one: check_figures.Figures):
    assert check_figures.differences(one) == []


# --- figures that follow from others


def page_tables(name: str) -> list[check_figures.Table]:
    return check_figures.tables((ROOT / name).read_text(encoding='utf-8'))


def words(title: str) -> list[str]:
    return title.replace(',', '').split()


def column(table: check_figures.Table, name: str, **only: str) -> list[float]:
    """The numbers of a column, of the rows of the package whose case fits."""
    return [
        float(row[name].rstrip('x'))
        for title, row in table.rows.items()
        if title.endswith(' package') and set(only.values()) <= set(words(title))
    ]


def test_the_summary_of_speed_is_that_of_the_tables():
    summary, inference, training, backbones = page_tables('docs/benchmarks.md')[:4]
    for title, row in summary.rows.items():
        assert ('backbone' in title) != ('UPerNet' in title)
        mode = 'train' if 'training' in title else 'inference'
        heads = training if mode == 'train' else inference
        for dtype in ('fp32', 'bf16'):
            table, cell = backbones if 'backbone' in title else heads, row[dtype]
            speed, share = (
                [float(one) for one in re.findall(r'\d+\.\d+', part)]
                for part in cell.split(', ')
            )
            found = column(table, 'speed-up', mode=mode, dtype=dtype)
            # Rounded, to the nearest 0.05 at the finest.
            assert min(speed) == pytest.approx(min(found), abs=0.05)
            assert max(speed) == pytest.approx(max(found), abs=0.05)
            found = column(table, 'share', mode=mode, dtype=dtype)
            assert [min(share), max(share)] == [min(found), max(found)]


def test_the_front_page_has_the_speed_of_the_tables():
    _, inference, training, *_ = page_tables('docs/benchmarks.md')
    text = ' '.join((ROOT / 'README.md').read_text(encoding='utf-8').split())
    (train,) = re.findall(r'raining is \[?([\d.x to]+)x faster', text)
    (predict,) = re.findall(r'rediction is \[?([\d.x to]+)x faster', text)
    for said, table in ((train, training), (predict, inference)):
        found = column(table, 'speed-up', dtype='fp32')
        assert said.split('x to ') == sorted({f'{speed:.1f}' for speed in found})


def test_the_picture_of_the_mask_has_the_figures_of_its_table():
    (row,) = (
        one.rows['448x512']
        for one in page_tables('docs/design.md')
        if '448x512' in one.rows
    )
    shares = [float(row[f'stage {stage}'].removesuffix(' %')) for stage in (1, 4)]
    text = (ROOT / 'docs/from_mmsegmentation.md').read_text(encoding='utf-8')
    (picture,) = re.findall(r'!\[(.*?)\]\(images/padding_mask.png\)', text)
    assert re.findall(r'(\d+) %', picture) == [f'{share:.0f}' for share in shares]


def results(config: str) -> dict[str, dict]:
    """The metrics of a config in the index of models, and all it says of memory."""
    models = yaml.safe_load((ROOT / 'configs/metafile.yml').read_text())['Models']
    (model,) = (model for model in models if model['Name'] == config)
    found = {'memory': model['Metadata'].get('Memory (GB)')}
    for result in model['Results']:
        author = result['Reported By'].split()[0].rstrip(',')
        found['official' if author == 'the' else author] = result['Metrics']
    return found


def said(metrics: dict | None) -> list[float]:
    return [] if metrics is None else list(metrics.values())


def test_the_model_zoo_has_the_figures_of_the_index():
    lines = (ROOT / 'docs/model_zoo.md').read_text(encoding='utf-8').splitlines()
    checked = 0
    for line in lines:
        link = re.search(r'\(\.\./configs/(\w[\w-]+)\.py\)', line)
        if link and line.startswith('|'):
            _, _, official, mmseg, ssseg, memory = check_figures.cells(line)
            index = results(link[1])
            for cell, author in (
                (official.rstrip('⁴'), 'official'),
                (mmseg, 'mmsegmentation'),
                (ssseg, 'SSSegmentation'),
            ):
                numbers = [float(one) for one in re.findall(r'[\d.]+', cell)]
                assert numbers == said(index.get(author)), line
            assert (memory.split(' GB')[0] or None) == (
                index['memory'] and f'{index["memory"]:.2f}'
            ), line
            checked += 1
    assert checked == 18


def test_the_front_page_has_the_results_of_the_index():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    found = re.findall(r'\[([\d.]+)\]\(configs/(\w[\w-]+)\.py\)', text)
    assert len(found) == 18
    for miou, config in found:
        author = 'SSSegmentation' if '130e' in config else 'mmsegmentation'
        assert float(miou) == results(config)[author]['mIoU'], config


def test_the_page_on_training_counts_blocks_and_parameters_as_the_models_do():
    text = (ROOT / 'docs/training.md').read_text(encoding='utf-8')
    for sizes in (PCPVT_SIZES, SVT_SIZES):
        small, base, large = (sum(sizes[s].depths) for s in ('small', 'base', 'large'))
        assert f' {small}, {base} and {large} for ' in text
    shapes = shapes_of('mmseg-upernet', 'svt-l')
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    parameters = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if not name.endswith(statistics)
    )
    assert f'SVT-L, has {parameters / 1e6:.0f} million parameters' in text
    # Weights, gradients and the optimizer's two averages, in float32.
    assert f' {4 * 4 * parameters / 1e9:.1f} GB with gradients' in text
