"""Draw a label map over its image, with a legend of its classes.

mmsegmentation's visualizer writes names into the regions, where those of small regions
overlap, and works on float64 images, which takes seconds and half a gigabyte at 12
megapixels. The colors here equal mmsegmentation's up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

MIN_TEXT_SIZE = 12  # pixels
LINE_HEIGHT = 1.5  # in units of the text size
MIN_LINES = 10
MAX_NAME_LENGTH = 40
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
    """Draw classes over an image, with a legend at its right, largest class first.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W), the class of each pixel, counted from 0.
        classes: names of the classes.
        palette: their RGB colors, from 0 to 255.
        opacity: 0 shows the image alone, 1 the classes alone.
        legend: whether to add the legend: colors, names and shares of the pixels.

    Returns:
        (H', W', 3) uint8, RGB, at the image's scale; white below the image if the
        legend is higher.

    Raises:
        ValueError: image and labels differ in size, a label has no class, or the
            opacity is not from 0 to 1.
    """
    painter = Painter(classes, palette, opacity)
    overlay = painter.paint(image, labels)
    return painter.with_legend(overlay) if legend else overlay


class Painter:
    """Draws an overlay a few rows at a time; see :func:`draw_overlay` for arguments.

    Raises:
        ValueError: the opacity is not from 0 to 1.
    """

    def __init__(
        self,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
        opacity: float = 0.6,
    ) -> None:
        if not 0 <= opacity <= 1:
            raise ValueError(f'opacity is {opacity}; give a number from 0 to 1')
        self._classes, self._palette, self._opacity = classes, palette, opacity
        self._counts = np.zeros(len(classes), np.int64)

    def paint(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the next rows of the overlay.

        Raises:
            ValueError: image and labels differ in size, or a label has no class.
        """
        if image.shape[:2] != labels.shape:
            raise ValueError(
                f'image {image.shape[:2]} and labels {labels.shape} differ in size'
            )
        classes, palette = self._classes, self._palette
        if labels.max() >= len(classes) or len(classes) != len(palette):
            raise ValueError(
                f'labels go up to {labels.max()}, but there are {len(classes)} classes '
                f'and {len(palette)} colors'
            )
        self._counts += np.bincount(labels.ravel(), minlength=len(classes))
        colors = np.asarray(palette, np.uint8)[labels]
        return cv2.addWeighted(image, 1 - self._opacity, colors, self._opacity, 0)

    def with_legend(self, overlay: np.ndarray) -> np.ndarray:
        """Return the whole overlay with the legend at its right."""
        counts = self._counts
        entries = [
            (self._classes[index], self._palette[index], counts[index] / counts.sum())
            for index in np.argsort(-counts, kind='stable')
            if counts[index]
        ]
        panel = draw_legend(entries, len(overlay))
        below = len(panel) - len(overlay)
        white = (255, 255, 255)
        overlay = cv2.copyMakeBorder(
            overlay, 0, below, 0, 0, cv2.BORDER_CONSTANT, value=white
        )
        return np.hstack([overlay, panel])


def draw_legend(
    entries: Sequence[tuple[str, Sequence[int], float]], height: int
) -> np.ndarray:
    """Draw a legend, black on white.

    Args:
        entries: name, RGB color and share of the pixels, from 0 to 1, of each class.
        height: the image's, in pixels.

    Returns:
        (at least ``height``, W, 3) uint8, RGB.
    """
    size, columns = layout(len(entries), height)
    figure = Figure(dpi=72)  # points are pixels
    canvas = FigureCanvasAgg(figure)
    handles = [
        Patch(
            facecolor=np.divide(color, 255),
            edgecolor='0.35',
            linewidth=size / 20,
            label=f'{percent(share)}  {shortened(name)}',
        )
        for name, color, share in entries
    ]
    legend = figure.legend(
        handles=handles,
        loc='upper left',
        ncols=columns,
        fontsize=size,
        frameon=False,
        handlelength=1.3,
        handleheight=1.0,
        labelspacing=LINE_HEIGHT - 1,
        columnspacing=1.2,
        borderaxespad=0,
        borderpad=0.6,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    extent = legend.get_window_extent(canvas.get_renderer())
    pixels = math.ceil(extent.width), max(height, math.ceil(extent.height))
    # Add 0.01 px, because matplotlib rounds down.
    figure.set_size_inches([(side + 0.01) / figure.dpi for side in pixels])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def layout(count: int, height: int) -> tuple[float, int]:
    """Choose the text size, in pixels, and the number of columns.

    There are at most two columns, unless the text would become too small. Columns are
    as high as the image, but at least ``MIN_LINES`` lines.
    """
    size = max(height / 36, MIN_TEXT_SIZE)
    while True:
        lines = max(math.floor(height / (LINE_HEIGHT * size)) - 1, MIN_LINES)
        columns = math.ceil(count / lines)
        if columns <= 2 or size == MIN_TEXT_SIZE:
            return size, columns
        size = max(0.85 * size, MIN_TEXT_SIZE)


def percent(share: float) -> str:
    """Return a share in percent, five characters wide."""
    text = f'{100 * share:.1f}' if share >= 0.0005 else '<0.1'
    return f'{text.rjust(5, FIGURE_SPACE)} %'


def shortened(name: str) -> str:
    """Return a name, cut if it is very long."""
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f'{name[: MAX_NAME_LENGTH - 1]}…'
