"""The images of a report, as ``data:`` URIs."""

from __future__ import annotations

import base64
import functools
import io
import unicodedata
from collections.abc import Sequence

import cv2
import mmcv
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from mmengine import fileio
from PIL import Image

SIDE = 480  # the longer side of images, in pixels
MAX_NAME_LENGTH = 24
WRONG = (214, 0, 62)
# Colors of the confusion matrix: background, cells from 0 to 1, and text.
THEMES = {
    'light': ('#ffffff', ['#f1f5fa', '#9ec3e6', '#08427f'], '#1c2330'),
    'dark': ('#161b22', ['#1e2630', '#2f6ea8', '#c4e2ff'], '#dce3ec'),
}
# Colors of the numbers in cells: the share that divides them, below it, above it.
NUMBERS = {'light': (0.6, '#10161f', '#ffffff'), 'dark': (0.35, '#ffffff', '#10161f')}


def draw_panels(
    path: str, truth: np.ndarray, prediction: np.ndarray, palette: Sequence
) -> dict[str, str]:
    """Draw an image, its truth, its prediction and where they differ.

    Args:
        truth: (H, W), labels; the number of classes plus one marks ignored pixels.
        prediction: (H, W), labels.
        palette: RGB colors of the classes.

    Returns:
        The drawings by name; without the image if it cannot be read.
    """
    scale = min(1, SIDE / max(truth.shape))
    height, width = (max(1, round(scale * side)) for side in truth.shape)
    truth, prediction = (
        cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        for labels in (truth, prediction)
    )
    ignored = truth == len(palette) + 1
    rows, columns = np.indices(truth.shape)
    hatch = np.where((rows + columns) // 4 % 2, 150, 215)[..., None].astype(np.uint8)
    colors = np.array([*palette, (0, 0, 0), (0, 0, 0)], np.uint8)
    image = read_image(path)
    if image is None:
        gray = np.full((height, width, 1), 200, np.uint8)
    else:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] // 2 + 128
    errors = np.where((truth != prediction)[..., None], np.uint8(WRONG), gray)
    panels = {} if image is None else {'image': jpeg(image)}
    return panels | {
        'truth': png(np.where(ignored[..., None], hatch, colors[truth])),
        'prediction': png(colors[prediction]),
        'errors': jpeg(np.where(ignored[..., None], hatch, errors)),
    }


def read_image(path: str) -> np.ndarray | None:
    """Read an image as RGB, as mmsegmentation does; None if that fails."""
    try:
        return mmcv.imfrombytes(fileio.get(path), channel_order='rgb')
    except (OSError, cv2.error, ValueError):
        return None


def draw_confusion(
    confusion: np.ndarray, names: Sequence[str], shown: Sequence[int], theme: str
) -> str:
    """Draw a confusion matrix, each row as shares of the class's pixels.

    Args:
        confusion: pixels of each class (rows) by prediction (columns).
        shown: the classes to draw; an additional column has the sum of the others.
        theme: ``'light'`` or ``'dark'``.
    """
    background, tones, text = THEMES[theme]
    limit, below, above = NUMBERS[theme]
    cells = row_shares(confusion, shown)
    labels = [label(index, names[index]) for index in shown]
    columns = labels + ['other'] * (cells.shape[1] - len(labels))
    figure = Figure(
        (2.6 + 0.36 * len(columns), 2 + 0.36 * len(labels)), dpi=110,
        facecolor=background, layout='constrained',
    )  # fmt: skip
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list(theme, tones)
    axes.imshow(cells, colors, PowerNorm(0.5, 0, 1), aspect='auto')
    axes.set_facecolor(background)
    for (row, column), share in np.ndenumerate(cells):
        if share >= 0.005:
            axes.text(
                column, row, f'{100 * share:.0f}', ha='center', va='center', size=8,
                color=above if share > limit else below, in_layout=False,
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel('prediction', color=text)
    axes.set_ylabel('truth', color=text)
    axes.tick_params(colors=text, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return uri('png', file.getvalue())


def row_shares(confusion: np.ndarray, shown: Sequence[int]) -> np.ndarray:
    """Return the share of each prediction in the pixels of each shown class.

    Classes without pixels have NaN. If not all classes are shown, the last column is
    the sum of the others.
    """
    pixels = confusion[shown].sum(1, keepdims=True)
    cells = confusion[np.ix_(shown, shown)] / np.maximum(pixels, 1)
    if len(shown) < len(confusion):
        cells = np.column_stack([cells, 1 - cells.sum(1)])
    return np.where(pixels, cells, np.nan)


def label(index: int, name: str) -> str:
    """Return a class's name and number; only the number if the font lacks letters."""
    if not all(map(can_be_drawn, name)):
        return str(index)
    long = len(name) > MAX_NAME_LENGTH
    return f'{name[: MAX_NAME_LENGTH - 1]}… {index}' if long else f'{name} {index}'


def can_be_drawn(letter: str) -> bool:
    """Return whether matplotlib can draw a letter: in its font, left to right."""
    is_drawn = ord(letter) in letters() and letter.isprintable()
    return is_drawn and unicodedata.bidirectional(letter) not in ('R', 'AL')


@functools.cache
def letters() -> frozenset[int]:
    """Return the letters of matplotlib's font."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def png(image: np.ndarray) -> str:
    """Return an image, (H, W, 3) in RGB, as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return uri('png', file.getvalue())


def jpeg(image: np.ndarray) -> str:
    """Return an image, (H, W, 3) in RGB, as JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=85, subsampling=0)
    return uri('jpeg', file.getvalue())


def uri(kind: str, content: bytes) -> str:
    """Return a URI that contains an image."""
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
