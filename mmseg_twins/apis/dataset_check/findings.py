"""What is wrong with datasets, and what else is worth knowing, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config

from .datasets import IGNORED, LABELS, Dataset, Pair, configured

SHOWN = 3  # files, or classes, that a sentence names

FORMATS = {
    'color': 'with colors instead of labels, which training cannot read: map each '
    'color to its label and save one channel of 8 bits',
    'gray in color': 'with three equal channels: save one of them',
    'more than 8 bits': 'with labels that do not fit into 8 bits, which training '
    'would cut off',
    'JPEG': 'saved as JPEG, which changes labels at the borders of classes: export '
    'the masks again as PNG',
}


@dataclass(frozen=True)
class Finding:
    """Something about a dataset that its owner should know.

    Attributes:
        dataset: Its name.
        kind: What it is about, in one word or two.
        message: A sentence.
        count: Number of files, or of what else the sentence counts.
        examples: First files that it is true of.
        problem: Whether training would fail or suffer; else it is worth knowing.
    """

    dataset: str
    kind: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()
    problem: bool = True

    def __str__(self) -> str:
        files = ', '.join(self.examples)
        more = ', ...' if files and self.count > len(self.examples) else ''
        return f'{self.dataset}: {self.message}' + (
            f' ({files}{more})' if files else ''
        )


def find_all(datasets: Sequence[Dataset], cfg: Config | None = None) -> list[Finding]:
    """Return all that is wrong, and what else is worth knowing.

    Args:
        datasets: Of training and validation, with their files read.
        cfg: The config that they come from.

    Returns:
        In the order in which to deal with it: files, formats, labels, classes.
    """
    findings = list(pipelines(datasets, cfg)) if cfg else []
    for data in datasets:
        findings += [*files(data), *formats(data), *outside_labels(data)]
    findings += zero_label(datasets)
    findings += class_counts(datasets, cfg)
    for data in datasets:
        findings += absent_classes(data)
    return [*findings, *same_content(datasets)]


def about(
    data: Dataset, kind: str, message: str, files: Sequence = (), **kwargs: bool
) -> Finding:
    """Return a finding about some files of a dataset."""
    examples = tuple(map(str, files[:SHOWN]))
    return Finding(data.name, kind, message, len(files) or 1, examples, **kwargs)


def pipelines(datasets: Sequence[Dataset], cfg: Config) -> Iterator[Finding]:
    """Find pipelines that read labels in another way than their dataset says."""
    for data, (_, leaf) in zip(datasets, configured(cfg), strict=True):
        for step in leaf.get('pipeline') or ():
            given = step.get('reduce_zero_label')
            if given is not None and given != data.reduce_zero_label:
                yield Finding(
                    data.name,
                    'reduce_zero_label',
                    f'the pipeline has {step["type"]}(reduce_zero_label={given}), the '
                    f'dataset reduce_zero_label={data.reduce_zero_label}; set it in '
                    'the dataset only',
                )


def files(data: Dataset) -> Iterator[Finding]:
    """Find files without a partner, that cannot be read, or of different sizes."""
    pairs, (image_ending, mask_ending) = data.pairs, data.endings
    if not pairs:
        ending = f' that ends in {image_ending!r}' if image_ending else ''
        yield about(data, 'no images', f'there is no image{ending}')
    lonely = [pair.image for pair in pairs if not pair.has_mask]
    if lonely:
        hint = ''
        if len(lonely) == len(pairs) and mask_ending:
            hint = f'; do masks really end in {mask_ending!r}?'
        message = f'{number(lonely, "image")} without a mask{hint}'
        yield about(data, 'missing mask', message, lonely)
    if data.lone_masks:
        message = f'{number(data.lone_masks, "mask")} without an image'
        yield about(data, 'missing image', message, data.lone_masks)
    if data.unread:
        message = f'{number(data.unread, "image")} not read, as img_suffix is '
        yield about(data, 'unread image', f'{message}{image_ending!r}', data.unread)
    for word in ('image', 'mask'):
        bad = [pair for pair in pairs if getattr(pair, f'{word}_error')]
        if bad:
            reason = getattr(bad[0], f'{word}_error')
            message = f'{number(bad, word)} cannot be read, the first: {reason}'
            paths = [getattr(pair, word) for pair in bad]
            yield about(data, f'unreadable {word}', message, paths)
    bad = [
        pair
        for pair in pairs
        if pair.image_size and pair.mask_size and pair.image_size != pair.mask_size
    ]
    if bad:
        yield size(data, bad)


def size(data: Dataset, bad: Sequence[Pair]) -> Finding:
    """Return the finding for masks of another size than their image."""
    image, mask = ('x'.join(map(str, s)) for s in (bad[0].image_size, bad[0].mask_size))
    turned = sum(pair.sideways for pair in bad)
    hint = f', {turned} of which because of the EXIF orientation' if turned else ''
    message = (
        f'{number(bad, "mask")} of another size than the image{hint}; the first is '
        f'{mask} px, its image {image}'
    )
    return about(data, 'size', message, [pair.mask for pair in bad])


def formats(data: Dataset) -> Iterator[Finding]:
    """Find masks that do not hold one label of 8 bits for each pixel."""
    for kind, meaning in FORMATS.items():
        bad = [pair.mask for pair in data.pairs if pair.format == kind]
        if bad:
            message = f'{number(bad, "mask")} {meaning}'
            yield about(data, f'mask format: {kind}', message, bad)


def outside_labels(data: Dataset) -> Iterator[Finding]:
    """Find labels that no class has."""
    if not data.outside:
        return
    masks = [pair.mask for pair in data.pairs if set(pair.counts) & set(data.outside)]
    count = int(data.raw_pixels[data.outside].sum())
    fine = np.flatnonzero(data.labels < len(data.classes))
    ignored = np.flatnonzero(data.labels == IGNORED)
    message = (
        f'{number(masks, "mask")} with the label {ranges(data.outside)} in {count:,} '
        f'pixels; allowed are {ranges(fine)} ({len(data.classes)} classes) and '
        f'{ranges(ignored)} (ignored)'
    )
    yield about(data, 'labels outside the classes', message, masks)


def zero_label(datasets: Sequence[Dataset]) -> Iterator[Finding]:
    """Find signs that ``reduce_zero_label`` is not what the masks were made for.

    All datasets are taken together: a class may be missing from a small one.
    """
    for reduce in (True, False):
        group = [data for data in datasets if data.reduce_zero_label == reduce]
        pixels = sum((data.raw_pixels for data in group), np.zeros(LABELS, np.int64))
        if not pixels.any():
            continue
        count = max(len(data.label_map or data.classes) for data in group)
        top = max(np.flatnonzero(pixels[:IGNORED]), default=0)
        names = ', '.join(data.name for data in group)
        if reduce and pixels[0] and top == count - 1:
            yield Finding(
                names,
                'reduce_zero_label',
                'masks seem to count classes from 0: reduce_zero_label=True ignores '
                f'label 0, {100 * pixels[0] / pixels.sum():.1f} % of the pixels, makes '
                f'1 the first class, and the last one, label {count}, never occurs; if '
                'label 0 is a class, set reduce_zero_label=False',
            )
        elif not reduce and top == count:
            zero = 'label 0 is no class' if pixels[0] else 'label 0 never occurs'
            yield Finding(
                names,
                'reduce_zero_label',
                f'masks seem to count classes from 1, up to label {top} for {count} '
                f'classes; if {zero}, set reduce_zero_label=True, which ignores it, '
                'else a class is missing from the list',
            )


def class_counts(datasets: Sequence[Dataset], cfg: Config | None) -> Iterator[Finding]:
    """Find classes that differ between datasets, and from those of the heads."""
    first, *others = datasets
    for data in others:
        if data.classes != first.classes:
            message = (
                f'its classes, {some(data.classes)}, are not those of {first.name}, '
                f'{some(first.classes)}'
            )
            yield about(data, 'classes', message)
    model = (cfg or {}).get('model') or {}
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name)
        several = isinstance(heads, (list, tuple))
        for index, head in enumerate(heads if several else [heads]):
            count = (head or {}).get('num_classes')
            if count not in (None, len(first.classes)):
                shown = f'model.{name}' + (f'[{index}]' if several else '')
                message = f'{shown}.num_classes is {count}, but the dataset has '
                message += f'{len(first.classes)} classes'
                yield Finding('model', 'num_classes', message)


def absent_classes(data: Dataset) -> Iterator[Finding]:
    """Find classes that no mask has."""
    absent = [data.classes[i] for i in np.flatnonzero(data.pixels == 0)]
    if absent and data.raw_pixels.any():
        validation = data.loader == 'val'
        meaning = 'have no IoU' if validation else 'cannot be learned'
        yield Finding(
            data.name,
            'absent classes',
            f'{len(absent)} of {len(data.classes)} classes never occur and {meaning}: '
            f'{some(absent)}',
            count=len(absent),
            problem=not validation,
        )


def same_content(datasets: Sequence[Dataset]) -> Iterator[Finding]:
    """Find images that are in both training and validation, or twice in one."""
    seen: dict[str, dict[bytes, Pair]] = {}
    for data in datasets:
        here = seen.setdefault(data.loader, {})
        twice = []
        for pair in data.pairs:
            if pair.digest and here.setdefault(pair.digest, pair) is not pair:
                twice.append(pair.image)
        if twice:
            message = f'{number(twice, "image")} with the content of an earlier one'
            yield about(data, 'duplicates', message, twice, problem=False)
        training = seen.get('train', {}) if data.loader != 'train' else {}
        both = [pair for pair in data.pairs if pair.digest in training]
        if both:
            twin = training[both[0].digest].image
            message = (
                f'{number(both, "image")} of {len(data.pairs)} trained on as well, so '
                f'that results look better than they are; the first is {twin}'
            )
            yield about(data, 'overlap', message, [pair.image for pair in both])


def number(items: Sequence, word: str) -> str:
    """Return such as ``3 images``."""
    return f'{len(items):,} {word}' + ('' if len(items) == 1 else 's')


def some(names: Sequence[str]) -> str:
    """Return the first of some names."""
    return ', '.join(names[: 2 * SHOWN]) + (', ...' if len(names) > 2 * SHOWN else '')


def ranges(values: Sequence[int]) -> str:
    """Return integers in short, such as ``0 to 3, 7``."""
    groups = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    text = [' to '.join(map(str, dict.fromkeys((g[0], g[-1])))) for g in groups]
    return ', '.join(text[:8]) + (', ...' if len(text) > 8 else '')
