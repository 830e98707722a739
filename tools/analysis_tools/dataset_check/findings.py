"""From what the files hold to what is wrong with a dataset, sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from dataset_check.datasets import IGNORED, LABELS, Dataset
from dataset_check.scan import Pair

SHOWN = 3  # files, or classes, that a sentence names

FORMATS = {
    'colour': 'with colours instead of labels, which training cannot read: map each '
    'colour to its number and save one channel of 8 bits',
    'grey in colour': 'with three equal channels: save one of them',
    'more than 8 bits': 'with labels that do not fit into 8 bits, which training '
    'would cut off',
    'JPEG': 'saved as JPEG, which changes labels at the borders of classes: make '
    'masks anew as PNG',
}


@dataclass(frozen=True)
class Finding:
    """Something about a dataset that its owner should know.

    Attributes:
        dataset: its name.
        kind: what it is about, in one word or two.
        message: a sentence.
        count: number of files, or of what else the sentence counts.
        examples: first files that it is true of.
        problem: whether training would fail or suffer; else it is worth knowing.
    """

    dataset: str
    kind: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()
    problem: bool = True

    def __str__(self) -> str:
        """The sentence, with where it holds."""
        files = ', '.join(self.examples)
        more = ', ...' if files and self.count > len(self.examples) else ''
        return f'{self.dataset}: {self.message}' + (
            f' ({files}{more})' if files else ''
        )

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


class Scanned:
    """A dataset and what its files hold.

    Args:
        dataset: the files' names and meaning.
        pairs: as :func:`~.scan.scan` gives them.
    """

    def __init__(self, dataset: Dataset, pairs: Sequence[Pair]) -> None:
        self.dataset = dataset
        self.pairs = pairs

    @cached_property
    def raw_pixels(self) -> np.ndarray:
        """Pixels of each label in the files, (256,)."""
        total = np.zeros(LABELS, np.int64)
        for pair in self.pairs:
            for label, count in pair.counts.items():
                total[label] += count
        return total

    @cached_property
    def labels(self) -> np.ndarray:
        """What training reads for each label in the files, (256,)."""
        return self.dataset.training_labels()

    @cached_property
    def pixels(self) -> np.ndarray:
        """Pixels of each class, (classes,)."""
        counts = np.bincount(self.labels, self.raw_pixels, minlength=LABELS)
        return counts[: len(self.dataset.classes)].astype(np.int64)

    @cached_property
    def images(self) -> np.ndarray:
        """Images that each class is in, (classes,)."""
        total = np.zeros(LABELS, np.int64)
        for pair in self.pairs:
            total[np.unique(self.labels[list(pair.counts)])] += 1
        return total[: len(self.dataset.classes)]

    @property
    def ignored(self) -> int:
        """Pixels that training ignores."""
        return int(self.raw_pixels[self.labels == IGNORED].sum())

    @cached_property
    def outside(self) -> list[int]:
        """Labels in the files that training has no class for."""
        fine = (self.labels < len(self.dataset.classes)) | (self.labels == IGNORED)
        return np.flatnonzero((self.raw_pixels > 0) & ~fine).tolist()


def find_all(
    scanned: Sequence[Scanned], heads: dict[str, int] | None = None
) -> list[Finding]:
    """Says all that is wrong, and what else is worth knowing.

    Args:
        scanned: the datasets of a training and its validation.
        heads: ``num_classes`` of the heads of a model, by their names in the config.

    Returns:
        In the order in which it is best dealt with: files, formats, labels, classes.
    """
    findings: list[Finding] = []
    for one in scanned:
        for find in (partners, unreadable, sizes, formats, outside_labels):
            findings.extend(find(one))
    findings.extend(zero_label(scanned))
    findings.extend(class_counts(scanned, heads or {}))
    for one in scanned:
        findings.extend(absent_classes(one))
    findings.extend(same_content(scanned))
    return findings


def about(one: Scanned, kind: str, message: str, files: Sequence = (), **kwargs):
    """A finding about some files of a dataset."""
    return Finding(
        one.dataset.name,
        kind,
        message,
        count=len(files) or 1,
        examples=tuple(map(str, files[:SHOWN])),
        **kwargs,
    )


def partners(one: Scanned) -> Iterator[Finding]:
    """Images without masks, masks without images, and images that are not read."""
    data = one.dataset
    if not one.pairs:
        ending = f' that ends in {data.endings[0]!r}' if data.endings[0] else ''
        yield about(one, 'no images', f'there is no image{ending}')
    lonely = [pair.image for pair in one.pairs if not pair.has_mask]
    if lonely:
        hint = ''
        if len(lonely) == len(one.pairs) and data.endings[1]:
            hint = f'; do masks really end in {data.endings[1]!r}?'
        yield about(
            one,
            'missing mask',
            f'{number(lonely, "image")} without a mask{hint}',
            lonely,
        )
    if data.lone_masks:
        found = number(data.lone_masks, 'mask')
        yield about(one, 'missing image', f'{found} without an image', data.lone_masks)
    if data.unread:
        found = number(data.unread, 'image')
        yield about(
            one,
            'unread image',
            f'{found} not read, as img_suffix is {data.endings[0]!r}',
            data.unread,
        )


def unreadable(one: Scanned) -> Iterator[Finding]:
    """Files that are damaged or no pictures."""
    for word in ('image', 'mask'):
        bad = [pair for pair in one.pairs if getattr(pair, f'{word}_error')]
        if bad:
            reason = getattr(bad[0], f'{word}_error')
            yield about(
                one,
                f'unreadable {word}',
                f'{number(bad, word)} cannot be read, the first: {reason}',
                [getattr(pair, word) for pair in bad],
            )


def sizes(one: Scanned) -> Iterator[Finding]:
    """Masks of another size than their images."""
    bad = [
        pair
        for pair in one.pairs
        if pair.image_size and pair.mask_size and pair.image_size != pair.mask_size
    ]
    if bad:
        image, mask = (
            'x'.join(map(str, s)) for s in (bad[0].image_size, bad[0].mask_size)
        )
        turned = sum(pair.sideways for pair in bad)
        hint = (
            f', of which {turned} by EXIF turned when they are read' if turned else ''
        )
        yield about(
            one,
            'size',
            f'{number(bad, "mask")} of another size than the image{hint}; the first '
            f'is {mask} px, its image {image}',
            [pair.mask for pair in bad],
        )


def formats(one: Scanned) -> Iterator[Finding]:
    """Masks that do not hold one label of 8 bits for each pixel."""
    for kind, meaning in FORMATS.items():
        bad = [pair.mask for pair in one.pairs if pair.format == kind]
        if bad:
            yield about(
                one,
                f'mask format: {kind}',
                f'{number(bad, "mask")} {meaning}',
                bad,
            )


def outside_labels(one: Scanned) -> Iterator[Finding]:
    """Labels that no class has."""
    if not one.outside:
        return
    files = [pair.mask for pair in one.pairs if set(pair.counts) & set(one.outside)]
    count = int(one.raw_pixels[one.outside].sum())
    fine = np.flatnonzero(one.labels < len(one.dataset.classes))
    ignored = np.flatnonzero(one.labels == IGNORED)
    yield about(
        one,
        'labels outside the classes',
        f'{number(files, "mask")} with the label {ranges(one.outside)} in {count:,} '
        f'pixels; allowed are {ranges(fine)} ({len(one.dataset.classes)} classes) and '
        f'{ranges(ignored)} (ignored)',
        files,
    )


def zero_label(scanned: Sequence[Scanned]) -> Iterator[Finding]:
    """Signs that ``reduce_zero_label`` is not what the masks were made for.

    Told from all datasets together: a class may be missing from a small one.
    """
    for reduce in (True, False):
        group = [one for one in scanned if one.dataset.reduce_zero_label == reduce]
        pixels = sum((one.raw_pixels for one in group), np.zeros(LABELS, np.int64))
        if not pixels.any():
            continue
        count = max(one.dataset.file_classes for one in group)
        labels = set(np.flatnonzero(pixels[:IGNORED]).tolist())
        top = max(labels, default=0)
        names = ', '.join(one.dataset.name for one in group)
        if reduce and 0 in labels and top == count - 1:
            share = 100 * pixels[0] / pixels.sum()
            yield Finding(
                names,
                'reduce_zero_label',
                f'masks seem to count classes from 0: reduce_zero_label=True ignores '
                f'label 0, {share:.1f} % of the pixels, makes 1 the first class, and '
                f'the last one, label {count}, never occurs; if label 0 is a class, '
                'set reduce_zero_label=False',
            )
        elif not reduce and top == count:
            zero = 'label 0 never occurs' if 0 not in labels else 'label 0 is no class'
            yield Finding(
                names,
                'reduce_zero_label',
                f'masks seem to count classes from 1, up to label {top} for {count} '
                f'classes; if {zero}, set reduce_zero_label=True, which ignores it, '
                'else a class is missing from the list',
            )


def class_counts(
    scanned: Sequence[Scanned], heads: dict[str, int]
) -> Iterator[Finding]:
    """Numbers of classes that differ between datasets and heads."""
    first = scanned[0].dataset
    for one in scanned[1:]:
        if one.dataset.classes != first.classes:
            yield about(
                one,
                'classes',
                f'its classes, {some(one.dataset.classes)}, are not those of '
                f'{first.name}, {some(first.classes)}',
            )
    for name, count in heads.items():
        if count != len(first.classes):
            yield Finding(
                'model',
                'num_classes',
                f'{name}.num_classes is {count}, but the dataset has '
                f'{len(first.classes)} classes',
            )


def absent_classes(one: Scanned) -> Iterator[Finding]:
    """Classes that no mask has."""
    if not one.raw_pixels.any():
        return
    absent = [one.dataset.classes[i] for i in np.flatnonzero(one.pixels == 0)]
    if absent:
        training = one.dataset.loader != 'val'
        meaning = 'cannot be learnt' if training else 'have no IoU'
        yield Finding(
            one.dataset.name,
            'absent classes',
            f'{len(absent)} of {len(one.dataset.classes)} classes never occur and '
            f'{meaning}: {some(absent)}',
            count=len(absent),
            problem=training,
        )


def same_content(scanned: Sequence[Scanned]) -> Iterator[Finding]:
    """Images that are in both training and validation, or twice in one of them."""
    seen: dict[str, dict[bytes, Pair]] = {}
    for one in scanned:
        loader = one.dataset.loader
        here = seen.setdefault(loader, {})
        twice = []
        for pair in one.pairs:
            if pair.digest and here.setdefault(pair.digest, pair) is not pair:
                twice.append(pair.image)
        if twice:
            yield about(
                one,
                'duplicates',
                f'{number(twice, "image")} with the content of an earlier one',
                twice,
                problem=False,
            )
        training = seen.get('train', {}) if loader != 'train' else {}
        both = [pair for pair in one.pairs if pair.digest in training]
        if both:
            twin = training[both[0].digest].image
            yield about(
                one,
                'overlap',
                f'{number(both, "image")} of {len(one.pairs)} trained on as well, so '
                f'that results say less than they seem to; the first is {twin}',
                [pair.image for pair in both],
            )


def number(items: Sequence, word: str) -> str:
    """Such as ``3 images``."""
    return f'{len(items):,} {word}' + ('' if len(items) == 1 else 's')


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ', '.join(names[: 2 * SHOWN]) + (', ...' if len(names) > 2 * SHOWN else '')


def ranges(values: Sequence[int]) -> str:
    """Numbers in short, such as ``0 to 3, 7``."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1][1:] = [value]
        else:
            parts.append([value])
    text = [' to '.join(map(str, (p[0], *p[1:]))) for p in parts]
    return ', '.join(text[:8]) + (', ...' if len(text) > 8 else '')
