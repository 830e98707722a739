"""The page of a report: a self-contained HTML file that also works without scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from string import Template
from typing import NamedTuple

import numpy as np

from .report_pictures import draw_confusion, draw_panels

MATRIX_SIZE = 30  # number of classes that are readable in an image
CONFUSIONS = 10
NONE = '\u2013'  # a dash
TILES = {
    'mIoU': 'mean IoU',
    'aAcc': 'pixel accuracy',
    'mAcc': 'mean accuracy',
    'mBoundaryIoU': 'mean boundary IoU',
}
COLUMNS = {
    'IoU': 'IoU',
    'Acc': 'Accuracy',
    'Precision': 'Precision',
    'BoundaryIoU': 'Boundary IoU',
    'share': 'Share',
}
ALT = {
    'image': 'The image {}',
    'truth': 'The true classes of {}',
    'prediction': 'The predicted classes of {}',
    'errors': 'Wrong pixels of {} in red',
}

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --text: #1c2330; --faint: #566174; --line: #d5dbe4;
  --back: #ffffff; --box: #f4f6f9; --bar: #cfe0f3; --link: #0b57a4 }
@media (prefers-color-scheme: dark) { :root { --text: #dce3ec; --faint: #9aa7b8;
  --line: #323b48; --back: #161b22; --box: #1e252f; --bar: #24486d; --link: #86bdf5 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
main { max-width: 75rem; margin: auto; padding: 1rem 1.25rem 3rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 2rem 0 .5rem }
h1, h3, dd { overflow-wrap: anywhere }
p { max-width: 46rem }
p, small { color: var(--faint) }
a { color: var(--link) }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 1rem 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr));
  gap: .75rem; padding: 0; margin: 1rem 0; list-style: none }
.tiles li { background: var(--box); border-radius: .5rem; padding: .75rem 1rem }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.2 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem;
  margin: 0 }
dt { color: var(--faint) }
dd { margin: 0 }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .75rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line) }
thead th { border-top: 0; background: var(--box) }
tfoot { font-weight: 600 }
th { font-weight: inherit }
thead th { font-weight: 600 }
.name { text-align: left; white-space: normal; min-width: 10rem; max-width: 18rem;
  overflow-wrap: anywhere }
.bar { background: linear-gradient(90deg, var(--bar) calc(var(--v) * 1%),
  transparent 0) no-repeat 0 / calc(100% - .5rem) 100% }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .5em;
  border: 1px solid var(--faint); border-radius: .2em; vertical-align: -.08em }
button { all: unset; cursor: pointer }
button:focus-visible { outline: 2px solid var(--link) }
[aria-sort] button::after { content: " \\2195"; color: var(--faint) }
[aria-sort=ascending] button::after { content: " \\2191" }
[aria-sort=descending] button::after { content: " \\2193" }
img { display: block; max-width: 100%; height: auto; border-radius: .25rem }
.matrix { margin: auto }
figure { margin: 0 }
figcaption { color: var(--faint); font-size: .875rem }
.panels { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem }
.panels img { width: 100% }
@media (max-width: 50rem) { .panels { grid-template-columns: repeat(2, 1fr) }
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem } }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0; margin: .5rem 0;
  list-style: none; font-size: .875rem }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<ul class="tiles">$tiles</ul>
<nav aria-label="Contents"><a href="#evaluated">What was evaluated</a>
<a href="#classes">Classes</a> <a href="#confusion">Confusion matrix</a>
<a href="#worst">Worst images</a></nav>

<h2 id="evaluated">What was evaluated</h2>
<dl>$about</dl>

<h2 id="classes">Classes</h2>
<p>In percent, over the pixels of all images. Accuracy (recall) is the share of a
class's pixels that are predicted right, precision the share of right ones among the
pixels predicted as the class. Boundary IoU
(<a href="https://arxiv.org/abs/2103.16562">Cheng et al. 2021</a>) compares only pixels
near the contours, in a band as wide as $band&nbsp;% of the image's diagonal. The last
column is the class's share of the true pixels. Scores without any pixel are a dash and
do not count in the mean.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="classes">
<table class="sortable">
<thead><tr><th scope="col">No.</th><th scope="col" class="name">Class</th>$heads</tr>
</thead>
<tbody>
$classes
</tbody>
<tfoot><tr><td></td><th scope="row" class="name">mean</th>$mean<td></td></tr></tfoot>
</table></div>

<h2 id="confusion">Confusion matrix</h2>
<p>$matrix_text Each row adds up to 100&nbsp;%: how the pixels of a class are predicted.
Numbers below 0.5 are left out; the colors grow with the square root.</p>
<div class="scroll" tabindex="0" role="region" aria-labelledby="confusion">
<picture><source media="(prefers-color-scheme: dark)" srcset="$dark_matrix">
<img class="matrix" style="min-width: ${matrix_width}rem" src="$light_matrix"
alt="Confusion matrix; the table below lists the most frequent confusions"></picture>
</div>
<h3 id="confusions">Most frequent confusions</h3>
<div class="scroll" tabindex="0" role="region" aria-labelledby="confusions">
<table>
<thead><tr><th scope="col" class="name">Truth</th>
<th scope="col" class="name">Predicted as</th><th scope="col">Share of the class</th>
<th scope="col">Share of all pixels</th></tr></thead>
<tbody>
$confusions
</tbody></table></div>

<h2 id="worst">Worst images</h2>
<p>$worst_text</p>
$worst
</main>
<script>
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;
  heads.forEach((head, i) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute('aria-sort', i ? 'none' : 'ascending');
    button.onclick = () => {
      const sign = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      heads.forEach(each => each.setAttribute('aria-sort', 'none'));
      head.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
      body.append(...[...body.rows].sort((a, b) => {
        const x = key(a, i), y = key(b, i);
        if (x === '' || y === '') return (x === '') - (y === '');
        return sign * (i === 1 ? x.localeCompare(y) : x - y)
          || key(a, 0) - key(b, 0);
      }));
    };
  });
}
</script>
</body>
</html>
""")


class WorstImage(NamedTuple):
    """An image for the page.

    Attributes:
        ious: IoU of each class, from 0 to 1; NaN for classes that are not in the image.
        truth: (H, W), labels; see :func:`draw_panels`.
        prediction: (H, W), likewise.
    """

    path: str
    ious: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def make_page(numbers: Mapping, worst: Sequence[WorstImage]) -> str:
    """Return the page.

    Args:
        numbers: the content of ``report.json``.
    """
    classes = numbers['classes']
    names = [one['name'] for one in classes]
    confusion = np.array(numbers['confusion']).reshape(len(names), len(names))
    shown = most_confused(confusion)
    about, unknown = numbers['about'], numbers['pixels_of_no_class']
    black = ''
    if unknown:
        about = {**about, 'pixels without a class': unknown}
        black = ', and those whose label is not a class black'
    subject = os.path.basename(about.get('checkpoint') or '') or 'a segmentor'
    only = len(shown) < len(names)
    return PAGE.substitute(
        title=escape(f'Evaluation of {subject}'),
        tiles=''.join(
            f'<li><b>{number(numbers[key])}&nbsp;%</b> {name}</li>'
            for key, name in TILES.items()
        ),
        about=''.join(
            f'<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>'
            for key, value in about.items()
        ),
        band=f'{100 * numbers["band"]:g}',
        heads=''.join(f'<th scope="col">{name}</th>' for name in COLUMNS.values()),
        classes='\n'.join(map(class_row, range(len(classes)), classes)),
        mean=''.join(
            f'<td>{number(numbers[f"m{key}"])}</td>' for key in list(COLUMNS)[:-1]
        ),
        matrix_text=(
            f'The {len(shown)} of {len(names)} classes with the most frequent '
            'confusions. The last column is the sum of all others.'
            if only
            else 'Truth by row, prediction by column.'
        ),
        # Stays readable on a phone.
        matrix_width=13 + 2 * len(shown),
        light_matrix=draw_confusion(confusion, names, shown, 'light'),
        dark_matrix=draw_confusion(confusion, names, shown, 'dark'),
        confusions='\n'.join(confusion_rows(confusion, names))
        or '<tr><td class="name" colspan="4">none</td></tr>',
        worst_text=f'The {len(worst)} images with the lowest mean IoU over the classes '
        'in their truth or prediction. Wrong pixels are red, ignored ones '
        f'hatched{black}.'
        if worst
        else 'All pixels are ignored.',
        worst='\n'.join(worst_image(one, classes) for one in worst),
    )


def number(value: float | None) -> str:
    """Return a number with two decimals; a dash for None."""
    return NONE if value is None else f'{value:.2f}'


def swatch(color: Sequence[int]) -> str:
    """Return a small square in a class's color."""
    return f'<span class="swatch" style="background:rgb{tuple(color)}"></span>'


def class_row(index: int, scores: Mapping) -> str:
    """Return a class's row of the table."""
    cells = ''
    for key in COLUMNS:
        value = scores[key]
        bar = '' if value is None else f' class="bar" style="--v:{value:.1f}"'
        exact = '' if value is None else f'{value:.6f}'
        cells += f'<td data-v="{exact}"{bar}>{number(value)}</td>'
    absent = '' if scores['share'] else ' <small>(not in the truth)</small>'
    return (
        f'<tr><td data-v="{index}">{index}</td><th scope="row" class="name">'
        f'{swatch(scores["color"])}<bdi>{escape(scores["name"])}</bdi>{absent}</th>'
        f'{cells}</tr>'
    )


def frequent_confusions(confusion: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield pairs of truth and wrong prediction, the most frequent first."""
    wrong = confusion - np.diag(np.diag(confusion))
    for place in np.argsort(-wrong, axis=None, kind='stable'):
        row, column = divmod(int(place), len(confusion))
        if not wrong[row, column]:
            return
        yield row, column


def most_confused(confusion: np.ndarray) -> list[int]:
    """Return the classes of the most frequent confusions; all if there are few."""
    if len(confusion) <= MATRIX_SIZE:
        return list(range(len(confusion)))
    found: set[int] = set()
    for pair in frequent_confusions(confusion):
        if len(found | set(pair)) > MATRIX_SIZE:
            break
        found |= set(pair)
    return sorted(found)


def confusion_rows(confusion: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Yield rows of the table of confusions."""
    for (row, column), _ in zip(
        frequent_confusions(confusion), range(CONFUSIONS), strict=False
    ):
        pixels = 100 * confusion[row, column]
        yield (
            f'<tr><td class="name"><bdi>{escape(names[row])}</bdi></td>'
            f'<td class="name"><bdi>{escape(names[column])}</bdi></td>'
            f'<td>{pixels / confusion[row].sum():.2f}</td>'
            f'<td>{pixels / confusion.sum():.2f}</td></tr>'
        )


def worst_image(image: WorstImage, classes: Sequence[Mapping]) -> str:
    """Return an image's section of the page."""
    name = escape(os.path.basename(image.path))
    panels = draw_panels(
        image.path, image.truth, image.prediction, [one['color'] for one in classes]
    )
    figures = ''.join(
        f'<figure><img src="{source}" alt="{ALT[kind].format(name)}">'
        f'<figcaption>{kind}</figcaption></figure>'
        for kind, source in panels.items()
    )
    counted = image.truth <= len(classes)
    right = (image.truth == image.prediction)[counted].mean()
    legend = ''.join(
        f'<li>{swatch(classes[index]["color"])}<bdi>{escape(classes[index]["name"])}'
        f'</bdi> {100 * image.ious[index]:.1f}</li>'
        for index in np.argsort(image.ious)
        if not np.isnan(image.ious[index])
    )
    return (
        f'<section><h3>{name}: mean IoU {100 * np.nanmean(image.ious):.2f}&nbsp;%, '
        f'{100 * right:.2f}&nbsp;% of pixels right</h3>\n'
        f'<div class="panels">{figures}</div>\n'
        f'<ul class="legend" aria-label="IoU of its classes, in percent">{legend}</ul>'
        '</section>'
    )
