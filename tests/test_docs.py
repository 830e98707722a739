"""The code blocks of the README and of docs do what their pages say.

A page's blocks run from top to bottom in a folder that shows the project, as a reader
who types them would run them. What takes long is reduced, in `REDUCED`; what cannot run
here, because it needs several GPUs or a whole training, is marked `console` there.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

from builders import random_state, shapes_of

ROOT = Path(__file__).parents[1]
PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    'SECURITY.md',
    *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')),
]
LANGUAGES = {'bash', 'python', 'console', 'pycon', 'diff', 'text', 'bibtex'}

QUICKSTART = 'python tools/demo/quickstart.py --training 8 --validation 6 --max-iters 4'
ONE_ITERATION = (
    ' --work-dir work_dirs/mim --cfg-options train_cfg.max_iters=1 '
    'train_dataloader.batch_size=2 train_dataloader.num_workers=0 '
    'train_dataloader.persistent_workers=False model.backbone.init_cfg=None'
)
TESTS = 'python -m pytest --collect-only -q -p no:cacheprovider'
LOOK = ' --runs 1 --warmup 1 --sizes 64'

# What a page's text is replaced with before it runs: page, then what stands there.
REDUCED = {
    'README.md': {
        # Every run of the tests begins with the set-up.
        'bash tools/setup_env.sh\nsource .venv/bin/activate\n': '',
        'bash tools/run_tests.sh': TESTS,
        'bash tools/quickstart.sh': QUICKSTART,
        '_160k_ade20k.py\n': f'_160k_ade20k.py{ONE_ITERATION}\n',
        'PRETRAIN STORE': 'alt_gvt_small.pth work_dirs/svt-s.pth',
        "'twins://upernet-svt-s-ade20k'": (
            "'configs/demo/twins_svt_fpn_streets.py', "
            "'work_dirs/quickstart/training/iter_4.pth'"
        ),
        'photo.jpg': (
            'work_dirs/quickstart/data/images/validation/street_validation_00000001.jpg'
        ),
    },
    'docs/benchmarks.md': {
        'analysis_tools/benchmark.py\n': f'analysis_tools/benchmark.py{LOOK}\n',
        ' --runs 3 --warmup 1': LOOK,
        ' --runs 5 --warmup 1': LOOK,
        ' --runs 7 --warmup 1': LOOK,
        ' --runs 9 --warmup 1': LOOK,
        ' --json svt-s.json': f' --json svt-s.json {LOOK}',
        'benchmark.py --markdown >': f'benchmark.py{LOOK} --markdown >',
    },
    'docs/conversion.md': {'PRETRAIN STORE': 'alt_gvt_small.pth work_dirs/svt-s.pth'},
    'docs/design.md': {'bash tools/run_tests.sh': TESTS},
    'docs/finetune.md': {
        '--training 240 --validation 24': '--training 8 --validation 6',
        '--work-dir work_dirs/finetune/source\n': (
            '--work-dir work_dirs/finetune/source --cfg-options '
            'train_cfg.max_iters=2 default_hooks.checkpoint.interval=2\n'
            'mv work_dirs/finetune/source/iter_{2,600}.pth\n'
        ),
        '--work-dir work_dirs/finetune/tuned\n': (
            '--work-dir work_dirs/finetune/tuned --cfg-options '
            'train_cfg.max_iters=2 default_hooks.checkpoint.interval=2\n'
            'mv work_dirs/finetune/tuned/iter_{2,300}.pth\n'
        ),
    },
    'docs/from_timm.md': {'model.safetensors': 'alt_gvt_small.pth'},
    'docs/install.md': {
        # Every run of the tests begins with the set-up.
        'bash tools/setup_env.sh\nsource .venv/bin/activate\n': '',
    },
    'docs/model_zoo.md': {'_160k_ade20k.py\n': f'_160k_ade20k.py{ONE_ITERATION}\n'},
}
# What a page says that the reader has done before.
BEFORE = {'docs/evaluation.md': QUICKSTART, 'docs/predict.md': QUICKSTART}
# What is exported for the registries, and used by other parts of the package only.
NOT_FOR_USERS = {'LocalVisBackend', 'ReportCheckpoint'}
# Modules that a page needs, and the extras that install them.
NEEDED = {
    'docs/deployment.md': ('onnxscript', 'deploy'),
    'docs/predict.md': ('rasterio', 'tiff'),
}


class Block(NamedTuple):
    """A code block: its language and what is in it."""

    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in its order and full length."""
    text = (ROOT / page).read_text(encoding='utf-8')
    found = re.findall(r'^```(\w*)\n(.*?)^```$', text, flags=re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found]


def links(page: str) -> list[tuple[Path, str]]:
    """What a page links in the project: files or folders, and headings, or ''."""
    text = (ROOT / page).read_text(encoding='utf-8')
    found = re.findall(r'\]\((?!https?:|mailto:)([^)#]*)#?([^)]*)\)', text)
    return [
        (
            (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page,
            heading,
        )
        for name, heading in found
    ]


def is_config(block: Block) -> bool:
    """Whether a Python block only sets variables, as configs do."""
    return block.language == 'python' and all(
        isinstance(statement, ast.Assign) for statement in ast.parse(block.text).body
    )


CONFIGS = [
    pytest.param(block.text, id=f'{page}-{number}')
    for page in PAGES
    for number, block in enumerate(blocks(page))
    if is_config(block)
]


def runnable(page: str) -> list[Block]:
    """What of a page runs, reduced; Python blocks that follow each other are one."""
    result = [Block('bash', BEFORE[page])] if page in BEFORE else []
    for block in blocks(page):
        if block.language not in ('bash', 'python') or is_config(block):
            continue
        text = block.text
        for there, instead in REDUCED.get(page, {}).items():
            text = text.replace(there, instead)
        if block.language == 'python' and result and result[-1].language == 'python':
            result[-1] = Block('python', result[-1].text + text)
        elif text:
            result.append(Block(block.language, text))
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The project's files, a few images where ADE20K's would be, and a checkpoint."""
    for name in ('configs', 'docs', 'mmseg_twins', 'requirements', 'tests', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (
        one for end in ('toml', 'yml', 'py', 'md') for one in ROOT.glob(f'*.{end}')
    ):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / 'work_dirs').mkdir()
    torch.save(
        random_state(shapes_of('official-cls', 'svt-s'), torch.float32),
        tmp_path / 'alt_gvt_small.pth',
    )
    run(
        Block(
            'bash',
            'python tools/dataset_converters/street_scenes.py '
            'data/ade/ADEChallengeData2016 --training 2 --validation 1',
        ),
        tmp_path,
    )
    return tmp_path


def run(block: Block, folder: Path) -> None:
    """Runs a block; what it prints is shown where it fails."""
    environment = dict(
        os.environ, PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    )
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        environment.pop(name, None)
    command = {
        'bash': ['bash', '-euo', 'pipefail', '-c'],
        'python': [sys.executable, '-c'],
    }[block.language]
    start = time.perf_counter()
    result = subprocess.run(
        [*command, block.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    print(f'{time.perf_counter() - start:6.1f} s  {block.text.splitlines()[0]}')
    assert result.returncode == 0, f'{block.text}\n{result.stdout}\n{result.stderr}'


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if runnable(page)])
def test_the_blocks_of_a_page_run(page: str, folder: Path):
    if page in NEEDED:
        module, extra = NEEDED[page]
        pytest.importorskip(module, reason=f'the page needs the extra `{extra}`')
    for block in runnable(page):
        run(block, folder)


@pytest.mark.parametrize('text', CONFIGS)
def test_a_config_on_a_page_can_be_read_and_its_model_runs(text: str, tmp_path):
    (tmp_path / 'config.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'config.py', import_custom_modules=False)
    assert cfg.keys()
    if 'model' not in cfg:
        return
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model).eval())
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, 64, 64), mode='tensor')
    assert logits.shape == (1, 150, 16, 16)


@pytest.mark.parametrize('page', PAGES)
def test_every_block_has_a_language_that_says_whether_it_runs(page: str):
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize('page', REDUCED)
def test_what_is_reduced_stands_on_the_page(page: str):
    text = '\n'.join(block.text for block in blocks(page))
    assert [there for there in REDUCED[page] if there not in text] == []


@pytest.mark.parametrize('page', PAGES)
def test_every_file_that_a_page_links_or_names_exists(page: str):
    text = (ROOT / page).read_text(encoding='utf-8')
    code = '\n'.join(block.text for block in blocks(page))
    named = re.findall(r'`((?:tools|configs|tests|docs|mmseg_twins)/[\w./-]+)`', text)
    run_by_blocks = re.findall(r'((?:tools|configs)/[\w./-]+\.(?:py|sh))', code)
    missing = [str(path) for path, _ in links(page) if not path.exists()]
    missing += [name for name in named + run_by_blocks if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize('page', PAGES)
def test_every_heading_that_a_page_links_exists(page: str):
    for path, heading in links(page):
        if heading:
            titles = re.findall(r'^#+ (.*)$', path.read_text('utf-8'), re.MULTILINE)
            words = [re.sub(r'[^\w -]', '', title.lower()) for title in titles]
            assert heading in [title.replace(' ', '-') for title in words]


def test_every_picture_of_docs_is_shown_on_a_page():
    shown = {path for page in PAGES for path, _ in links(page)}
    pictures = (ROOT / 'docs/images').iterdir()
    assert [path.name for path in pictures if path.resolve() not in shown] == []


@pytest.mark.parametrize(
    'name',
    [
        'apis',
        'engine',
        'evaluation',
        'models.backbones',
        'models.decode_heads',
        'models.segmentors',
    ],
)
def test_the_api_page_lists_what_a_package_exports(name: str):
    text = (ROOT / 'docs/api.md').read_text(encoding='utf-8')
    listed = re.findall(rf'^::: mmseg_twins\.{name}\.(\w+)', text, flags=re.MULTILINE)
    exported = importlib.import_module(f'mmseg_twins.{name}').__all__
    assert set(exported) - set(listed) - NOT_FOR_USERS == set()


def test_the_site_lists_every_page_once():
    text = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    listed = re.findall(r'^ +- .*?(\w+\.md)$', text, flags=re.MULTILINE)
    pages = [Path(page).name for page in PAGES if page.startswith('docs/')]
    generated = [
        *('index.md', 'contributing.md', 'changelog.md', 'security.md', 'notebook.md')
    ]
    assert sorted(listed) == sorted([*pages, *generated])


@pytest.mark.parametrize('page', PAGES)
def test_every_test_that_a_page_names_exists(page: str):
    text = (ROOT / page).read_text(encoding='utf-8')
    tests = '\n'.join(path.read_text('utf-8') for path in ROOT.glob('tests/**/*.py'))
    named = re.findall(r'`(test_\w+)`', text)
    assert [name for name in named if f'def {name}(' not in tests] == []
