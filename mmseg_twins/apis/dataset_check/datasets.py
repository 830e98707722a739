"""The files of a dataset, what they hold, and how training reads the masks."""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from PIL import Image

IGNORED = 255  # what mmsegmentation's LoadAnnotations makes of pixels not to count
LABELS = 256  # masks are read with 8 bits
IMAGE_ENDINGS = (
    '.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm'
)  # fmt: skip
LOADERS = {'train': 'train_dataloader', 'val': 'val_dataloader'}
ORIENTATION = 0x0112  # EXIF's number for how a camera was held
SIDEWAYS = (5, 6, 7, 8)


@dataclass
class Pair:
    """What an image and its mask hold.

    Attributes:
        image: Path.
        mask: Path.
        has_mask: Whether there is a mask at all.
        image_error: Why the image cannot be read.
        mask_error: Why the mask cannot be read.
        image_size: Width and height as training reads them.
        mask_size: Width and height.
        sideways: Whether EXIF has the image turned when it is read.
        digest: Of the image's bytes.
        format: What is wrong with the mask's format, a key of ``findings.FORMATS``;
            empty for one that is fine.
        counts: Pixels of each label in the mask.
    """

    image: Path
    mask: Path
    has_mask: bool = True
    image_error: str = ''
    mask_error: str = ''
    image_size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    sideways: bool = False
    digest: bytes = b''
    format: str = ''
    counts: dict[int, int] = field(default_factory=dict)


@dataclass
class Dataset:
    """Files of a dataset, and the meaning of their labels.

    Attributes:
        name: Such as ``'train'``, or ``'train[1]'`` for the second of several.
        files: Each image, and the place of its mask, which may be missing.
        classes: Names, in the order of the labels that training sees.
        lone_masks: Masks without an image.
        unread: Images that training does not read, as they end in something else.
        endings: What images and masks end in.
        reduce_zero_label: Whether label 0 in the files is ignored and 1 is class 0.
        label_map: What becomes of a label after that, where a dataset's classes are
            a part of those in the files.
        pairs: What the files hold, once they are read.
    """

    name: str
    files: tuple[tuple[Path, Path], ...]
    classes: tuple[str, ...]
    lone_masks: tuple[Path, ...] = ()
    unread: tuple[Path, ...] = ()
    endings: tuple[str, str] = ('', '')
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None
    pairs: list[Pair] = field(default_factory=list)

    @property
    def loader(self) -> str:
        """``'train'``, ``'val'`` or ``'data'``; what the name begins with."""
        return self.name.partition('[')[0]

    @cached_property
    def labels(self) -> np.ndarray:
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

    @cached_property
    def raw_pixels(self) -> np.ndarray:
        """Pixels of each label in the files, (256,)."""
        total = np.zeros(LABELS, np.int64)
        for pair in self.pairs:
            for label, count in pair.counts.items():
                total[label] += count
        return total

    @cached_property
    def pixels(self) -> np.ndarray:
        """Pixels of each class, (classes,)."""
        counts = np.bincount(self.labels, self.raw_pixels, minlength=LABELS)
        return counts[: len(self.classes)].astype(np.int64)

    @cached_property
    def images(self) -> np.ndarray:
        """Number of images that each class is in, (classes,)."""
        total = np.zeros(LABELS, np.int64)
        for pair in self.pairs:
            total[np.unique(self.labels[list(pair.counts)])] += 1
        return total[: len(self.classes)]

    @property
    def ignored(self) -> int:
        """Number of pixels that training ignores."""
        return int(self.raw_pixels[self.labels == IGNORED].sum())

    @cached_property
    def outside(self) -> list[int]:
        """Labels in the files that training has no class for."""
        fine = (self.labels < len(self.classes)) | (self.labels == IGNORED)
        return np.flatnonzero((self.raw_pixels > 0) & ~fine).tolist()


def configured(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the names and configs of the datasets that a config trains and tests on.

    Those that wrap others are looked into.
    """
    for name, key in LOADERS.items():
        if cfg.get(key):
            leaves = list(leaf_datasets(cfg[key].dataset))
            for index, leaf in enumerate(leaves):
                yield (name if len(leaves) == 1 else f'{name}[{index}]'), leaf


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Yield the datasets with files of their own that a dataset consists of."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if not inner:
        yield dataset
        return
    for one in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from leaf_datasets(one)


def from_config(cfg: Config) -> list[Dataset]:
    """Find the datasets of a config, by building them without their pipelines.

    Raises:
        ValueError: There is none, or one cannot be built or is not of
            mmsegmentation's kind.
    """
    datasets = []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
        for name, leaf in configured(cfg):
            try:
                built = DATASETS.build(
                    {**leaf, 'pipeline': [], 'serialize_data': False}
                )
            except (AssertionError, KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f'{name}: the dataset {leaf.get("type")} cannot be built: '
                    f'{one_line(error)}'
                ) from error
            datasets.append(from_built(built, name))
    if not datasets:
        raise ValueError('the config has neither train_dataloader nor val_dataloader')
    return datasets


def from_built(built: BaseSegDataset, name: str) -> Dataset:
    """Find the files of a dataset of mmsegmentation.

    Raises:
        ValueError: It is of another kind, or lacks classes or masks.
    """
    if not isinstance(built, BaseSegDataset):
        raise ValueError(f'{name}: {type(built).__name__} is not a BaseSegDataset')
    if not built.metainfo.get('classes'):
        raise ValueError(
            f'{name}: the dataset names no classes; give it '
            "metainfo=dict(classes=['first', 'second'])"
        )
    items = [built.get_data_info(index) for index in range(len(built))]
    if any('seg_map_path' not in item for item in items):
        raise ValueError(f'{name}: the dataset has no data_prefix.seg_map_path')
    files = tuple((Path(i['img_path']), Path(i['seg_map_path'])) for i in items)
    unread: tuple[Path, ...] = ()
    lone: tuple[Path, ...] = ()
    # A list of names, or a number of them, is meant to leave some files out.
    if not built.ann_file and built._indices is None:
        images, masks = (
            pictures_in(built.data_prefix[key]) for key in ('img_path', 'seg_map_path')
        )
        known = {file for pair in files for file in pair}
        lone = tuple(
            mask
            for mask in masks
            if mask.name.endswith(built.seg_map_suffix) and mask not in known
        )
        unread = tuple(image for image in images if image not in known.union(lone))
    return Dataset(
        name,
        files,
        tuple(built.metainfo['classes']),
        lone,
        unread,
        (built.img_suffix, built.seg_map_suffix),
        built.reduce_zero_label,
        built.label_map,
    )


def from_folders(
    images: Path,
    masks: Path,
    classes: Sequence[str],
    *,
    reduce_zero_label: bool = False,
    endings: Sequence[str] | None = None,
) -> Dataset:
    """Find the files of two folders, and of folders in them.

    Args:
        images: Folder of the images.
        masks: Folder of the masks, which have the images' names but for the ending.
        classes: Names of the classes.
        reduce_zero_label: Whether label 0 is ignored and 1 is the first class.
        endings: What images and masks end in; by default any of ``IMAGE_ENDINGS``.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: Both are one folder, and nothing tells images from masks.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise FileNotFoundError(f'the folder {str(folder)!r} does not exist')
    if endings is None and images.resolve() == masks.resolve():
        raise ValueError(
            f'images and masks are both in {str(images)!r}; tell them apart by their '
            'endings: --endings .jpg .png'
        )
    image_ending, mask_ending = endings or ('', '')
    wanted = named_pictures(images, image_ending)
    found = dict(named_pictures(masks, mask_ending))
    names = {name for name, _ in wanted}
    return Dataset(
        'data',
        tuple(
            (image, found.get(name, masks / f'{name}{mask_ending or ".png"}'))
            for name, image in wanted
        ),
        tuple(classes),
        tuple(mask for name, mask in found.items() if name not in names),
        endings=(image_ending, mask_ending),
        reduce_zero_label=reduce_zero_label,
    )


def named_pictures(folder: Path, ending: str) -> list[tuple[str, Path]]:
    """Return the pictures in a folder, each after its relative path without ending."""
    return [
        (str(file.relative_to(folder)).removesuffix(ending or file.suffix), file)
        for file in pictures_in(folder)
        if file.name.endswith(ending)
    ]


def pictures_in(folder: str | Path) -> list[Path]:
    """Return the pictures in a folder and the folders in it, but for hidden ones."""
    return sorted(
        file
        for file in Path(folder).rglob('*')
        if file.suffix.lower() in IMAGE_ENDINGS
        and not file.name.startswith('.')
        and file.is_file()
    )


def read_pairs(files: Sequence[tuple[Path, Path]], *, jobs: int = 1) -> Iterable[Pair]:
    """Read images and masks completely, and yield what they hold.

    Args:
        files: Image and mask each.
        jobs: Number of processes.

    Raises:
        BrokenProcessPool: A process was killed, such as for its memory.
    """
    if jobs == 1 or len(files) < 2:
        yield from map(read_pair, files)
        return
    # Ctrl-C ends the program once, not in each of its processes.
    pool = ProcessPoolExecutor(
        jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        chunk = max(1, min(32, len(files) // (4 * jobs)))
        yield from pool.map(read_pair, files, chunksize=chunk)
    finally:
        # Where reading ends early, what has not begun is not waited for.
        pool.shutdown(wait=False, cancel_futures=True)


def read_pair(files: tuple[Path, Path]) -> Pair:
    """Read an image and its mask."""
    pair = Pair(*files)
    pair.has_mask = pair.mask.is_file()
    # Pillow takes aerial images for an attack by default.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        # It raises errors of many kinds for what is no picture, or a part of one.
        try:
            read_image(pair)
        except Exception as error:
            pair.image_error = one_line(error)
        try:
            if pair.has_mask:
                read_mask(pair)
        except Exception as error:
            pair.mask_error = one_line(error)
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return pair


def read_image(pair: Pair) -> None:
    """Fill in what there is to know of an image."""
    content = pair.image.read_bytes()
    pair.digest = hashlib.blake2b(content, digest_size=16).digest()
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        pair.sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
        width, height = picture.size
    pair.image_size = (height, width) if pair.sideways else (width, height)


def read_mask(pair: Pair) -> None:
    """Fill in what there is to know of a mask."""
    with Image.open(pair.mask) as picture:
        picture.load()
        array = np.asarray(picture)
        pair.mask_size = picture.size
        pair.format = 'JPEG' if picture.format == 'JPEG' else ''
    if array.ndim == 3:
        gray = bool((array[..., :3] == array[..., :1]).all())
        pair.format = 'gray in color' if gray else 'color'
    elif array.dtype.kind == 'f' or array.min() < 0 or array.max() >= LABELS:
        pair.format = 'more than 8 bits'
    else:
        values, counts = np.unique(array.astype(np.uint8), return_counts=True)
        pair.counts = dict(zip(values.tolist(), counts.tolist(), strict=True))


def one_line(error: Exception) -> str:
    """Return an error's message, without the memory addresses that Pillow's have."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return 'not a picture' if text.startswith('cannot identify image') else text
