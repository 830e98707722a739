"""What ``check-dataset`` reports of datasets with something wrong in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmseg_twins.apis.dataset_check.datasets import (
    SIDEWAYS,
    Dataset,
    from_config,
    read_pairs,
)
from mmseg_twins.apis.dataset_check.findings import ranges
from mmseg_twins.cli import check_dataset as command

ROOT = Path(__file__).parents[2]
CLASSES = ('sky', 'road', 'car')
SIZE = (32, 24)  # width, height


def mask(*labels: int) -> Image.Image:
    """A mask with bars of equal width."""
    columns = np.array(labels, np.uint8)[np.arange(SIZE[0]) * len(labels) // SIZE[0]]
    return Image.fromarray(np.tile(columns, (SIZE[1], 1)))


def photo(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(256, size=(*SIZE[::-1], 3)).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images and masks for training, two for validation, nothing wrong."""
    for seed, name in enumerate(('train/a', 'train/b', 'train/c', 'val/d', 'val/e')):
        for kind in ('images', 'masks'):
            (tmp_path / 'data' / kind / name).parent.mkdir(parents=True, exist_ok=True)
        photo(seed).save(tmp_path / 'data/images' / f'{name}.jpg')
        mask(0, 1, 2, 255).save(tmp_path / 'data/masks' / f'{name}.png')
    return tmp_path / 'data'


def config(folder: Path, *, classes=CLASSES, heads: int = 3, **changes) -> Config:
    """A config of two data loaders."""
    loaders = {
        f'{part}_dataloader': dict(
            dataset=dict(
                type='BaseSegDataset',
                data_root=str(folder),
                data_prefix=dict(
                    img_path=f'images/{part}', seg_map_path=f'masks/{part}'
                ),
                metainfo=dict(classes=classes),
                pipeline=[dict(type='LoadAnnotations')],
                **changes,
            )
        )
        for part in ('train', 'val')
    }
    model = dict(decode_head=dict(num_classes=heads), auxiliary_head=None)
    return Config(dict(model=model, default_scope='mmseg', **loaders))


def check(cfg: Config, *options: str) -> int:
    path = Path(cfg.train_dataloader.dataset.get('data_root', '.')).parent / 'cfg.json'
    if 'dataset' in cfg.train_dataloader.dataset:
        path = Path(cfg.val_dataloader.dataset.data_root).parent / 'cfg.json'
    cfg.dump(path)
    return command.main([str(path), '--jobs', '1', *options])


def problems(cfg: Config, capsys) -> list[dict]:
    """What is wrong; the exit status agrees with it."""
    status = check(cfg, '--json')
    found = json.loads(capsys.readouterr().out)['problems']
    assert status == bool(found)
    return found


def test_a_dataset_with_nothing_wrong_passes(folder, capsys):
    before = {file: file.read_bytes() for file in folder.rglob('*.*')}
    assert check(config(folder)) == 0
    said = capsys.readouterr().out
    assert 'no problems found in the images: train 3, val 2' in said
    assert [line.split() for line in said.splitlines()[2:6]] == [
        [name, '33.3', '%', '3', '33.3', '%', '2'] for name in CLASSES
    ] + [['(ignored)', '25.0', '%', '25.0', '%']]
    assert {file: file.read_bytes() for file in folder.rglob('*.*')} == before


def cut_short(folder: Path) -> None:
    file = folder / 'images/train/a.jpg'
    file.write_bytes(file.read_bytes()[:-300])


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = SIDEWAYS[0]
    photo(0).save(folder / 'images/train/a.jpg', exif=exif)


def trained_on(folder: Path) -> None:
    content = (folder / 'images/train/a.jpg').read_bytes()
    (folder / 'images/val/d.jpg').write_bytes(content)


def save_mask(picture: Image.Image, name: str = 'a'):
    return lambda folder: picture.save(folder / 'masks/train' / f'{name}.png')


HIGH = Image.fromarray(np.full(SIZE[::-1], 300, np.uint16))
DAMAGE = [
    (
        'missing mask',
        lambda folder: (folder / 'masks/train/a.png').unlink(),
        '1 image without a mask',
    ),
    ('missing image', save_mask(mask(0), 'z'), '1 mask without an image'),
    (
        'unread image',
        lambda folder: photo(9).save(folder / 'images/train/z.JPG'),
        "1 image not read, as img_suffix is '.jpg'",
    ),
    (
        'unreadable image',
        cut_short,
        'cannot be read, the first: image file is truncated',
    ),
    (
        'unreadable mask',
        lambda folder: (folder / 'masks/train/a.png').write_text('nothing'),
        'cannot be read, the first: not a picture',
    ),
    (
        'size',
        save_mask(mask(0, 1, 2).resize((32, 25))),
        'the first is 32x25 px, its image 32x24',
    ),
    ('size', turned, '1 of which because of the EXIF orientation'),
    (
        'mask format: color',
        save_mask(photo(0)),
        '1 mask with colors instead of labels',
    ),
    (
        'mask format: gray in color',
        save_mask(mask(0, 1).convert('RGB')),
        '1 mask with three equal channels',
    ),
    ('mask format: more than 8 bits', save_mask(HIGH), 'do not fit into 8 bits'),
    (
        'labels outside the classes',
        save_mask(mask(0, 7)),
        '1 mask with the label 7 in 384 pixels; allowed are 0 to 2 (3 classes) and '
        '255 (ignored)',
    ),
    ('overlap', trained_on, '1 image of 2 trained on as well'),
]


@pytest.mark.parametrize(('kind', 'damage', 'said'), DAMAGE)
def test_what_is_wrong_with_files_is_named(folder, capsys, kind, damage, said):
    damage(folder)
    (found,) = problems(config(folder), capsys)
    assert (found['kind'], found['count']) == (kind, 1)
    assert said in found['message']
    assert found['dataset'] == ('val' if kind == 'overlap' else 'train')
    assert len(found['examples']) == 1


def test_jpeg_masks_are_named(folder, capsys):
    for file in list(folder.rglob('masks/train/*.png')):
        mask(0, 1, 2).save(file.with_suffix('.jpg'), quality=100)
        file.unlink()
    cfg = config(folder)
    cfg.train_dataloader.dataset.seg_map_suffix = '.jpg'
    assert 'mask format: JPEG' in {one['kind'] for one in problems(cfg, capsys)}


def test_palettes_and_black_and_white_are_labels_too(folder, capsys):
    picture = mask(0, 1, 2)
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    picture.save(folder / 'masks/train/a.png')
    mask(0, 255).convert('1').save(folder / 'masks/train/b.png')
    assert problems(config(folder), capsys) == []


def test_labels_from_zero_are_not_for_reduce_zero_label(folder, capsys):
    found = problems(config(folder, reduce_zero_label=True), capsys)
    (zero,) = [one for one in found if one['kind'] == 'reduce_zero_label']
    assert 'count classes from 0' in zero['message']
    assert 'set reduce_zero_label=False' in zero['message']
    absent = [one for one in found if one['kind'] == 'absent classes']
    assert 'cannot be learned: car' in absent[0]['message']


def test_labels_from_one_are_for_reduce_zero_label(folder, capsys):
    for file in folder.rglob('*.png'):
        mask(0, 1, 2, 3).save(file)
    found = problems(config(folder), capsys)
    (zero,) = [one for one in found if one['kind'] == 'reduce_zero_label']
    assert 'set reduce_zero_label=True' in zero['message']
    assert problems(config(folder, reduce_zero_label=True), capsys) == []


def test_a_pipeline_that_disagrees_with_its_dataset_is_named(folder, capsys):
    cfg = config(folder)
    cfg.train_dataloader.dataset.pipeline[0].reduce_zero_label = True
    (found,) = problems(cfg, capsys)
    assert 'LoadAnnotations(reduce_zero_label=True)' in found['message']


def test_heads_with_another_number_of_classes_are_named(folder, capsys):
    (found,) = problems(config(folder, heads=150), capsys)
    assert 'model.decode_head.num_classes is 150' in found['message']


def test_classes_that_never_occur_matter_in_training_only(folder, capsys):
    for file in folder.glob('masks/val/*.png'):
        mask(0, 1).save(file)
    assert check(config(folder)) == 0
    assert '1 of 3 classes never occur and have no IoU: car' in capsys.readouterr().out
    for file in folder.glob('masks/train/*.png'):
        mask(0, 1).save(file)
    (found,) = problems(config(folder), capsys)
    assert found['kind'] == 'absent classes'


def test_equal_images_within_a_dataset_are_only_noted(folder, capsys):
    (folder / 'images/train/b.jpg').write_bytes(
        (folder / 'images/train/a.jpg').read_bytes()
    )
    assert check(config(folder)) == 0
    assert '1 image with the content of an earlier one' in capsys.readouterr().out


def test_wrapped_datasets_are_looked_into(folder, capsys):
    cfg = config(folder)
    one = cfg.train_dataloader.dataset
    pair = dict(type='ConcatDataset', datasets=[one, one])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=pair)
    assert [data.name for data in from_config(cfg)] == ['train[0]', 'train[1]', 'val']
    (folder / 'masks/train/a.png').unlink()
    assert {one['dataset'] for one in problems(cfg, capsys)} == {'train[0]', 'train[1]'}


def test_a_list_of_names_leaves_files_out_on_purpose(folder, capsys):
    (folder / 'train.txt').write_text('a\nb\n')
    cfg = config(folder)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    assert problems(cfg, capsys) == []


@pytest.mark.parametrize('reduce', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 1, 1: 255, 2: 0}])
def test_labels_are_read_as_in_training(tmp_path, reduce, label_map):
    file = tmp_path / 'all.png'
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(file)
    with DefaultScope.overwrite_default_scope('mmseg'):
        load = Compose([dict(type='LoadAnnotations')])
    read = load(
        dict(
            seg_map_path=str(file),
            reduce_zero_label=reduce,
            label_map=label_map,
            seg_fields=[],
        )
    )
    data = Dataset('train', (), CLASSES, reduce_zero_label=reduce, label_map=label_map)
    assert np.array_equal(data.labels, read['gt_seg_map'].ravel())


def test_several_processes_find_what_one_finds(folder):
    pairs = [
        (file, folder / 'masks/train' / f'{file.stem}.png')
        for file in sorted(folder.glob('images/train/*'))
    ]
    found = list(read_pairs(pairs, jobs=2))
    assert len(found) == 3
    assert found == list(read_pairs(pairs))


def test_two_folders_do_without_a_config(folder, capsys):
    options = ['--images', str(folder / 'images'), '--masks', str(folder / 'masks')]
    assert command.main([*options, '--classes', 'sky,road,car']) == 0
    assert 'no problems found in the images: data 5' in capsys.readouterr().out
    (folder / 'masks/val/e.png').unlink()
    assert command.main([*options, '--classes', '2']) == 1
    said = capsys.readouterr().out
    assert '1 image without a mask' in said
    assert 'label 2' in said


def test_endings_pair_files_with_longer_names(folder, capsys):
    for kind, ending in (('images', '_photo.jpg'), ('masks', '_labels.png')):
        for file in list((folder / kind / 'train').iterdir()):
            file.rename(file.with_name(file.stem + ending))
    options = ['--images', str(folder / 'images/train')]
    options += ['--masks', str(folder / 'masks/train'), '--classes', '3']
    assert command.main([*options, '--endings', '_photo.jpg', '_labels.png']) == 0
    assert command.main(options) == 1
    assert '3 images without a mask' in capsys.readouterr().out


def test_frequencies_are_drawn_with_a_bar_for_each_class(folder):
    out = folder.parent / 'classes.png'
    assert check(config(folder), '--plot', str(out)) == 0
    with Image.open(out) as picture:
        colors = {color for _, color in picture.convert('RGB').getcolors(1 << 20)}
    assert {(0, 114, 178), (230, 159, 0)} <= colors


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ('', 'give a config, or all of --images, --masks and --classes'),
        ('--images data/images', 'missing: --masks --classes'),
        ('nowhere.py', "config: 'nowhere.py' does not exist"),
        ('cfg.json --classes 3', '--classes is for folders'),
        ('cfg.json --jobs 0', '--jobs: 0; give 1 or more'),
        ('cfg.json --plot data/images/train/x.png', 'would be among the files'),
        ('cfg.json --plot there.png', 'there.png exists already; --force replaces it'),
        ('cfg.json --plot x.jpg', 'does not end in .png'),
        (
            'cfg.json --cfg-options val_dataloader.dataset.data_root=no',
            "val_dataloader: the folder 'no/images/val' does not exist",
        ),
        (
            'cfg.json --cfg-options train_dataloader.dataset.metainfo=None',
            'the dataset names no classes',
        ),
        ('--images no --masks no --classes 3', "the folder 'no' does not exist"),
        ('--images data --masks data --classes 3', 'images and masks are both in'),
        ('--images data --masks data --classes 256', '--classes: 256; give 1 to 255'),
    ],
)
def test_wrong_arguments_get_one_sentence(folder, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(folder.parent)
    config(folder).dump('cfg.json')
    Path('there.png').write_text('keep')
    with pytest.raises(SystemExit) as exit_:
        command.main(arguments.split())
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('check_dataset.py: error: ')
    assert said in error
    assert Path('there.png').read_text() == 'keep'


def test_an_empty_folder_is_a_problem(folder, capsys):
    for file in folder.glob('images/val/*'):
        file.unlink()
    kinds = {one['kind']: one for one in problems(config(folder), capsys)}
    assert "no image that ends in '.jpg'" in kinds['no images']['message']
    assert kinds['missing image']['count'] == 2


def test_images_and_masks_may_share_a_folder(folder, capsys):
    shared = folder / 'shared'
    shared.mkdir()
    for file in (*folder.glob('images/train/*'), *folder.glob('masks/train/*')):
        file.rename(shared / file.name)
    (shared / 'a.jpg').unlink()
    cfg = config(folder)
    prefix = dict(img_path='shared', seg_map_path='shared')
    cfg.train_dataloader.dataset.data_prefix = prefix
    (found,) = problems(cfg, capsys)
    assert found['kind'] == 'missing image'


def test_numbers_are_shortened_to_ranges():
    assert ranges([0, 1, 2, 7, 9, 10]) == '0 to 2, 7, 9 to 10'


def test_a_dataset_of_another_kind_is_refused(folder, capsys):
    cfg = config(folder)
    cfg.val_dataloader.dataset.type = 'mmengine.BaseDataset'
    with pytest.raises(SystemExit):
        check(cfg)
    assert 'val: ' in capsys.readouterr().err


def test_the_former_path_still_works(folder):
    options = ['--images', folder / 'images', '--masks', folder / 'masks']
    tool = ROOT / 'tools/check_dataset.py'
    done = subprocess.run(
        [sys.executable, tool, *options, '--classes', '2', '--jobs', '2'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'with the label 2' in done.stdout
    assert 'has moved to tools/analysis_tools' in done.stderr
