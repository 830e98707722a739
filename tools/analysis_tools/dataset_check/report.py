"""What was found, as text and as plain values."""

from __future__ import annotations

from collections.abc import Sequence

from dataset_check.findings import Finding, Scanned


def text(scanned: Sequence[Scanned], findings: Sequence[Finding]) -> str:
    """A table of the classes, and below it what is wrong and what else to know."""
    parts = [class_table(scanned)]
    for title, problem in (('Problems', True), ('Worth knowing', False)):
        lines = [f'- {finding}' for finding in findings if finding.problem is problem]
        if lines:
            parts.append('\n'.join([f'{title}:', *lines]))
    count = sum(finding.problem for finding in findings)
    files = ', '.join(f'{one.dataset.name} {len(one.pairs):,}' for one in scanned)
    verdict = f'{count} problem{"s" * (count != 1)}' if count else 'no problems'
    parts.append(f'{verdict} found in the images: {files}')
    return '\n\n'.join(parts)


def class_table(scanned: Sequence[Scanned]) -> str:
    """For each class, its share of the pixels that count, and the images it is in.

    Datasets with other classes than the first are left out.
    """
    classes = scanned[0].dataset.classes
    scanned = [one for one in scanned if one.dataset.classes == classes]
    width = max(len('(ignored)'), *map(len, classes))
    head, rule = [f'{"class":{width}}'], ['-' * width]
    for one in scanned:
        head.append(f'{one.dataset.name + " pixels":>13}  {"images":>8}')
        rule.append('-' * 13 + '  ' + '-' * 8)
    rows = [head, rule]
    for index, name in enumerate(classes):
        cells = [f'{name:{width}}']
        for one in scanned:
            part = share(one.pixels[index], one.pixels.sum())
            cells.append(f'{part:>13}  {one.images[index]:>8,}')
        rows.append(cells)
    cells = [f'{"(ignored)":{width}}']
    for one in scanned:
        part = share(one.ignored, one.raw_pixels.sum())
        cells.append(f'{part:>13}  {"":8}')
    rows.append(cells)
    return '\n'.join('  '.join(row).rstrip() for row in rows)


def percent(value: float) -> str:
    """A percentage with three digits that mean something."""
    digits = f'{value:#.3g}'.removesuffix('.')
    return f'{digits} %'


def share(part: int, whole: int) -> str:
    """A part as a percentage; a dash for nothing."""
    return percent(100 * part / whole) if part else '-'


def as_dict(scanned: Sequence[Scanned], findings: Sequence[Finding]) -> dict:
    """All that was found, for JSON."""
    return {
        'datasets': [
            {
                'name': one.dataset.name,
                'images': len(one.pairs),
                'reduce_zero_label': one.dataset.reduce_zero_label,
                'ignored_pixels': one.ignored,
                'classes': {
                    name: {'pixels': int(pixels), 'images': int(images)}
                    for name, pixels, images in zip(
                        one.dataset.classes, one.pixels, one.images, strict=True
                    )
                },
            }
            for one in scanned
        ],
        'problems': [f.as_dict() for f in findings if f.problem],
        'notes': [f.as_dict() for f in findings if not f.problem],
    }
