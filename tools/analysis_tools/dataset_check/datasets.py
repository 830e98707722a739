"""Which files a dataset consists of, and how training reads the masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmseg_twins.cli.common import require_data

IGNORED = 255  # what mmsegmentation's LoadAnnotations makes of pixels not to count
LABELS = 256  # masks are read with 8 bits
IMAGE_ENDINGS = (
    '.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm'
)  # fmt: skip
LOADERS = {'train': 'train_dataloader', 'val': 'val_dataloader'}


@dataclass(frozen=True)
class Dataset:
    """Files of a dataset, and the meaning of their labels.

    Attributes:
        name: such as ``'train'``, or ``'train[1]'`` for the second of several.
        pairs: each image, and the place of its mask, which may be missing.
        lone_masks: masks without an image.
        unread: images that training does not read, as they end in something else.
        endings: what images and masks end in.
        classes: names, in the order of the labels that training sees.
        reduce_zero_label: whether label 0 in the files is ignored and 1 is class 0.
        label_map: what becomes of a label after that, where a dataset's classes are
            a part of those in the files.
    """

    name: str
    pairs: tuple[tuple[Path, Path], ...]
    classes: tuple[str, ...]
    lone_masks: tuple[Path, ...] = ()
    unread: tuple[Path, ...] = ()
    endings: tuple[str, str] = ('', '')
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None

    @property
    def loader(self) -> str:
        """``'train'`` or ``'val'``; what the name begins with."""
        return self.name.partition('[')[0]

    @property
    def file_classes(self) -> int:
        """The number of classes that the files distinguish."""
        return len(self.label_map or self.classes)

    def training_labels(self) -> np.ndarray:
        """What training reads for each label of a file, (256,).

        As mmsegmentation's ``LoadAnnotations`` does it: the zero label first.
        """
        labels = np.arange(LABELS)
        if self.reduce_zero_label:
            labels = np.where(np.isin(labels, (0, IGNORED)), IGNORED, labels - 1)
        if self.label_map:
            table = np.arange(LABELS)
            table[list(self.label_map)] = list(self.label_map.values())
            labels = table[labels]
        return labels


def from_config(cfg: Config) -> list[Dataset]:
    """Finds the datasets that a config trains and validates on.

    Args:
        cfg: of mmsegmentation's kind; what its datasets are wrapped in is looked
            into.

    Returns:
        One or more for each of ``train_dataloader`` and ``val_dataloader``, as far
        as these are set.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: there is no dataset, or one that cannot be built, or is not of
            mmsegmentation's kind.
    """
    loaders = {name: key for name, key in LOADERS.items() if cfg.get(key)}
    if not loaders:
        raise ValueError('the config has neither train_dataloader nor val_dataloader')
    require_data(cfg, *loaders.values())
    datasets = []
    for name, key in loaders.items():
        leaves = list(leaf_datasets(cfg[key].dataset))
        for index, leaf in enumerate(leaves):
            shown = name if len(leaves) == 1 else f'{name}[{index}]'
            with DefaultScope.overwrite_default_scope(
                cfg.get('default_scope', 'mmseg')
            ):
                datasets.append(from_dataset_config(leaf, shown))
    return datasets


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Yields the datasets with files of their own that a dataset consists of."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if not inner:
        yield dataset
        return
    for one in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from leaf_datasets(one)


def from_dataset_config(cfg: ConfigDict, name: str) -> Dataset:
    """Finds the files of a dataset by building it, without its pipeline.

    Raises:
        ValueError: it cannot be built, or is not of mmsegmentation's kind.
    """
    from mmseg.datasets import BaseSegDataset
    from mmseg.registry import DATASETS

    try:
        built = DATASETS.build({**cfg, 'pipeline': [], 'serialize_data': False})
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        message = ' '.join(str(error).split())
        raise ValueError(
            f'{name}: the dataset {cfg.get("type")} cannot be built: {message}'
        ) from error
    if not isinstance(built, BaseSegDataset):
        raise ValueError(
            f"{name}: {cfg.get('type')} is no dataset of mmsegmentation's kind, a "
            'BaseSegDataset'
        )
    if not built.metainfo.get('classes'):
        raise ValueError(
            f'{name}: the dataset names no classes; give it '
            "metainfo=dict(classes=['first', 'second'])"
        )
    items = [built.get_data_info(index) for index in range(len(built))]
    if any('seg_map_path' not in item for item in items):
        raise ValueError(f'{name}: the dataset has no data_prefix.seg_map_path')
    pairs = tuple((Path(i['img_path']), Path(i['seg_map_path'])) for i in items)
    unread, lone = (), ()
    # A list of names, or a number of them, is meant to leave some files out.
    if not built.ann_file and built._indices is None:
        images, masks = (
            files_in(built.data_prefix[key]) for key in ('img_path', 'seg_map_path')
        )
        expected = {mask for _, mask in pairs}
        lone = tuple(
            mask
            for mask in masks
            if mask.name.endswith(built.seg_map_suffix) and mask not in expected
        )
        known = {image for image, _ in pairs}.union(expected, lone)
        unread = tuple(image for image in images if image not in known)
    return Dataset(
        name=name,
        pairs=pairs,
        classes=tuple(built.metainfo['classes']),
        lone_masks=lone,
        unread=unread,
        endings=(built.img_suffix, built.seg_map_suffix),
        reduce_zero_label=built.reduce_zero_label,
        label_map=built.label_map,
    )


def from_folders(
    images: Path,
    masks: Path,
    classes: Sequence[str],
    *,
    reduce_zero_label: bool = False,
    endings: tuple[str, str] | None = None,
) -> Dataset:
    """Finds the files of two folders, and of folders in them.

    Args:
        images: folder of the images.
        masks: folder of the masks, which have the images' names but for the ending.
        classes: names of the classes.
        reduce_zero_label: whether label 0 is ignored and 1 is the first class.
        endings: what images and masks end in; by default whatever images do.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: both are one folder, and nothing tells images from masks.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f'the folder {str(folder)!r} does not exist')
    if endings is None and images.resolve() == masks.resolve():
        raise ValueError(
            f'images and masks are both in {str(images)!r}; tell them apart by what '
            'they end in: --endings .jpg .png'
        )
    image_ending, mask_ending = endings or (None, None)
    wanted = named_files(images, image_ending)
    found = dict(named_files(masks, mask_ending))
    names = {name for name, _ in wanted}
    return Dataset(
        name='data',
        pairs=tuple(
            (image, found.get(name, masks / f'{name}{mask_ending or ".png"}'))
            for name, image in wanted
        ),
        classes=tuple(classes),
        lone_masks=tuple(mask for name, mask in found.items() if name not in names),
        endings=endings or ('', ''),
        reduce_zero_label=reduce_zero_label,
    )


def named_files(folder: Path, ending: str | None) -> list[tuple[str, Path]]:
    """Pictures in a folder, and before each its path there without the ending."""
    if ending is None:
        return [
            (str(file.relative_to(folder).with_suffix('')), file)
            for file in files_in(folder)
        ]
    return [
        (str(file.relative_to(folder)).removesuffix(ending), file)
        for file in files_in(folder)
        if file.name.endswith(ending)
    ]


def files_in(folder: str | Path) -> list[Path]:
    """Pictures in a folder and the folders in it, but for hidden ones, sorted."""
    return sorted(
        file
        for file in Path(folder).rglob('*')
        if file.suffix.lower() in IMAGE_ENDINGS
        and not file.name.startswith('.')
        and file.is_file()
    )
