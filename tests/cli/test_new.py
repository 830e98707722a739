"""``mmseg-twins new``: the config that it writes, and its messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from builders import ROOT, meta_state, random_state, shapes_of
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.checkpoints.reading import Source
from mmseg_twins.cli import new

SVT_S = 'twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py'


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(*options: str) -> Config:
    assert new.main(['config.py', *options]) == 0
    return Config.fromfile('config.py')


def error_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as error:
        new.main(list(arguments))
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith('mmseg-twins new: error: ')
    assert said.count('\n') == 1
    return said


def test_without_options_the_template_is_written(capsys):
    cfg = write()
    template = Config.fromfile(ROOT / 'configs' / new.TEMPLATE)
    assert cfg.to_dict() == template.to_dict()
    said = capsys.readouterr().out
    assert f'config.py is written; it inherits from {SVT_S}. Next:\n' in said
    assert '- edit the first part: data_root and classes\n' in said
    assert '- check the data: mmseg-twins check-dataset config.py\n' in said
    assert '- train: mmseg-twins train config.py\n' in said
    assert 'work_dirs/config: mmseg-twins predict config.py CHECKPOINT ' in said


def test_options_fill_in_the_first_part(capsys):
    names = [f'class number {i}' for i in range(12)]
    cfg = write(
        *('--data-root', 'roads', '--iterations', '50', '--crop-size', '96'),
        *('--weights', 'none', '--reduce-zero-label', '--classes', *names),
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.data_root == 'roads'
        assert loader.dataset.metainfo.classes == names
        assert loader.dataset.reduce_zero_label
    assert cfg.model.decode_head.num_classes == 12
    assert cfg.custom_hooks[0].checkpoint is None
    assert cfg.train_cfg.max_iters == 50
    assert cfg.model.data_preprocessor.size == (96, 96)
    assert 'put your data into roads: it has no images/train' in capsys.readouterr().out
    text = Path('config.py').read_text()
    assert max(map(len, text.splitlines())) <= 88
    assert '# True: masks number classes from 1' in text


def test_endings_are_those_of_most_files():
    for file in (
        *('images/training/a.JPG', 'images/training/b.JPG', 'images/validation/c.jpg'),
        *('images/training/.a.xmp', 'annotations/training/a.png', 'notes.txt'),
    ):
        Path('roads', file).parent.mkdir(parents=True, exist_ok=True)
        Path('roads', file).touch()
    cfg = write('--data-root', 'roads')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.img_suffix == '.JPG'
        assert loader.dataset.seg_map_suffix == '.png'


def test_classes_may_stand_in_a_file():
    Path('names.txt').write_text('road\ntraffic light\n\nsky\n', encoding='utf-8')
    cfg = write('--classes', 'names.txt')
    assert cfg.classes == ['road', 'traffic light', 'sky']


@pytest.mark.parametrize(
    ('weights', 'base'),
    [
        ('twins://pcpvt-b', 'twins_pcpvt-b_uperhead_8x2_512x512_160k_ade20k.py'),
        ('svt-s', SVT_S),
        (
            'twins://upernet-pcpvt-s-ade20k',
            'twins_pcpvt-s_uperhead_8x2_512x512_130e_ade20k.py',
        ),
        (
            'twins://fpn-svt-l-ade20k-80k',
            'twins_svt-l_fpn_fpnhead_8x4_512x512_80k_ade20k.py',
        ),
    ],
)
def test_the_model_is_that_of_published_weights(weights, base, capsys):
    cfg = write('--weights', weights)
    assert f'inherits from {base}' in capsys.readouterr().out
    inherited = Config.fromfile(ROOT / 'configs' / base).model
    assert cfg.model.backbone.arch == inherited.backbone.arch
    assert cfg.model.decode_head.channels == inherited.decode_head.channels
    assert cfg.custom_hooks[0].checkpoint.removeprefix('twins://') in weights


@pytest.mark.parametrize(
    ('layout', 'base'),
    [
        ('official-cls', 'twins_svt-b_uperhead_8x2_512x512_160k_ade20k.py'),
        ('ssseg-upernet', 'twins_svt-b_uperhead_8x2_512x512_130e_ade20k.py'),
    ],
)
def test_the_model_is_that_of_a_checkpoint(layout, base, monkeypatch, capsys):
    converted, _ = convert_state_dict(meta_state(shapes_of(layout, 'svt-b')))
    Path('weights.pth').touch()
    source = Source(converted, None, (), {})
    monkeypatch.setattr(new, 'read_source', lambda _: source)
    cfg = write('--weights', 'weights.pth')
    assert cfg.custom_hooks[0].checkpoint == 'weights.pth'
    assert f'inherits from {base}' in capsys.readouterr().out


def test_a_base_is_given_by_name_or_by_path():
    own = Path('mine/own.py')
    own.parent.mkdir()
    own.write_text(f'_base_ = {str(ROOT / "configs" / SVT_S)!r}\nextra = 3\n')
    assert write('--base', 'demo/twins_svt_fpn_streets').model.neck.out_channels == 64
    assert write('--base', 'mine/own.py', '--force').extra == 3
    assert str(own.resolve()) in Path('config.py').read_text()


def test_a_fresh_process_reads_the_config_from_another_folder(tmp_path):
    write('--weights', 'twins://svt-l')
    code = (
        'import sys; from mmengine.config import Config; '
        "assert 'mmseg_twins' not in sys.modules; "
        'cfg = Config.fromfile(sys.argv[1]); print(cfg.model.backbone.arch)'
    )
    (tmp_path / 'elsewhere').mkdir()
    printed = subprocess.run(
        [sys.executable, '-c', code, tmp_path / 'config.py'],
        cwd=tmp_path / 'elsewhere',
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.endswith('large\n')


def test_an_existing_file_is_overwritten_only_by_force(capsys):
    Path('config.py').write_text('mine')
    assert 'exists already; --force' in error_of(capsys, 'config.py')
    assert Path('config.py').read_text() == 'mine'
    assert write('--force').classes
    assert [path.name for path in Path().iterdir()] == ['config.py']


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ('config.txt', 'config.txt does not end in .py'),
        ('nowhere/config.py', 'there is no folder nowhere'),
        ('config.py --weights twins://svt-z', 'did you mean twins://svt-'),
        ('config.py --weights pcpvt-m', 'did you mean twins://pcpvt-'),
        (
            'config.py --weights othr.pth',
            "'othr.pth' does not exist; did you mean other",
        ),
        (
            'config.py --weights weights.pth',
            'has another layout (official classifier',
        ),
        ('config.py --weights other.pth', 'this is not a Twins checkpoint'),
        (
            'config.py --weights https://host/x.pth',
            'is not downloaded yet; give the co',
        ),
        ('config.py --base twins_svt-s_upernet', 'or twins_svt-s_uperhead'),
        ('config.py --classes road', 'give 2 to 255 names'),
        ('config.py --classes a b a', 'a given more than once'),
        ('config.py --iterations 3', '--iterations: 3; give 10 or more'),
        ('config.py --crop-size 0', '--crop-size: 0; give 32 or more'),
    ],
)
def test_what_cannot_work_ends_in_one_sentence(arguments, says, capsys):
    torch.save({'conv.weight': torch.zeros(1)}, 'other.pth')
    if 'weights.pth' in arguments:
        state = random_state(shapes_of('official-cls', 'svt-s'), torch.float16)
        torch.save(state, 'weights.pth')
    assert says in error_of(capsys, *arguments.split())
    assert not Path('config.py').exists()
