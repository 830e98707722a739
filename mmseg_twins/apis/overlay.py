"""Draws a label map over its image, with a legend of the classes in it.

mmsegmentation's visualizer writes names into the regions, where small ones cover each
other. At the same result to rounding, what it does with float64 images takes several
seconds and half a gigabyte at 12 megapixels; here it is a look-up and one blend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

SMALLEST_TEXT = 12  # pixels
LINE = 1.5  # of the text's size
FEWEST_LINES = 10
LONGEST_NAME = 40
FIGURE_SPACE = '\u2007'  # as wide as a digit


def draw_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float = 0.6,
    legend: bool = True,
) -> np.ndarray:
    """Paints classes over an image and lists them beside it, the largest first.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W), the class of each pixel, counted from 0.
        classes: Names of the classes.
        palette: Their colours, RGB from 0 to 255.
        opacity: Of the paint: 0 shows the image alone, 1 the classes alone.
        legend: Whether to add the list of names, colours and shares of the pixels.

    Returns:
        RGB, uint8. The image is at the upper left in its own size, the legend at its
        right; an image lower than the legend stands on white.

    Raises:
        ValueError: Image and labels differ in size, a label has no class, or the
            opacity is none.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f'image {image.shape[:2]} and labels {labels.shape} differ in size'
        )
    if labels.max() >= len(classes) or len(classes) != len(palette):
        raise ValueError(
            f'labels go up to {labels.max()} for {len(classes)} classes with '
            f'{len(palette)} colours'
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity is {opacity}; it goes from 0 to 1')
    colours = np.asarray(palette, np.uint8)
    painted = cv2.addWeighted(image, 1 - opacity, colours[labels], opacity, 0)
    if not legend:
        return painted
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    entries = [
        (classes[index], palette[index], counts[index] / labels.size)
        for index in np.argsort(-counts, kind='stable')
        if counts[index]
    ]
    panel = draw_legend(entries, len(image))
    below = len(panel) - len(painted)
    painted = cv2.copyMakeBorder(
        painted, 0, below, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    return np.hstack([painted, panel])


def draw_legend(
    entries: Sequence[tuple[str, Sequence[int], float]], height: int
) -> np.ndarray:
    """Draws a legend at a size that suits an image.

    Args:
        entries: Name, RGB colour and share, from 0 to 1, of each class.
        height: Of the image, in pixels.

    Returns:
        (at least ``height``, W, 3) uint8, RGB, black on white.
    """
    size, columns = _layout(len(entries), height)
    figure = Figure(dpi=72)  # points are pixels
    canvas = FigureCanvasAgg(figure)
    handles = [
        Patch(
            facecolor=np.divide(colour, 255),
            edgecolor='0.35',
            linewidth=size / 20,
            label=f'{_percent(share)}  {_shortened(name)}',
        )
        for name, colour, share in entries
    ]
    legend = figure.legend(
        handles=handles,
        loc='upper left',
        ncols=columns,
        fontsize=size,
        frameon=False,
        handlelength=1.3,
        handleheight=1.0,
        labelspacing=LINE - 1,
        columnspacing=1.2,
        borderaxespad=0,
        borderpad=0.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    extent = legend.get_window_extent(canvas.get_renderer())
    pixels = math.ceil(extent.width), max(height, math.ceil(extent.height))
    # A hundredth more, so that rounding down takes no pixel off.
    figure.set_size_inches([(side + 0.01) / figure.dpi for side in pixels])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _layout(count: int, height: int) -> tuple[float, int]:
    """Chooses size of text, in pixels, and columns: two at most, unless text gets tiny.

    A column is as high as the image, or higher where the image is very low.
    """
    size = max(height / 36, SMALLEST_TEXT)
    while True:
        lines = max(math.floor(height / (LINE * size)) - 1, FEWEST_LINES)
        columns = math.ceil(count / lines)
        if columns <= 2 or size == SMALLEST_TEXT:
            return size, columns
        size = max(0.85 * size, SMALLEST_TEXT)


def _percent(share: float) -> str:
    text = f'{100 * share:.1f}' if share >= 0.0005 else '<0.1'
    return f'{text.rjust(5, FIGURE_SPACE)} %'


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f'{name[: LONGEST_NAME - 1]}…'
