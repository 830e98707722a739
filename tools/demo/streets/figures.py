"""The quickstart's two pictures: predictions beside the truth, and curves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from streets.street.labels import CLASSES, OTHER_COLOUR, PALETTE

_INK = '#2b2b33'
_FAINT = '#8c8c98'


@dataclass(frozen=True)
class Comparison:
    """What a model makes of one scene.

    Args:
        title: Stands above the scene's row.
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) numbers of annotation files: 0 is other, classes count from 1.
        prediction: (H, W), numbered the same way.
    """

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray

    @property
    def correct(self) -> float:
        """Share of the scored pixels that are predicted rightly."""
        scored = self.truth > 0
        return float((self.prediction == self.truth)[scored].mean())


@dataclass
class History:
    """What a training logged.

    Args:
        steps: Iterations at which the loss was logged.
        losses: Mean loss since the log before.
        checks: Iterations after which the model was evaluated.
        miou: Mean IoU at those, in percent.
        class_iou: IoU of each class at those, in percent.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)
    miou: list[float] = field(default_factory=list)
    class_iou: dict[str, list[float]] = field(default_factory=dict)


def read_history(scalars: str | os.PathLike) -> History:
    """Read the log that mmengine writes for programs.

    Args:
        scalars: A ``vis_data/scalars.json``, one JSON object on each line.

    Returns:
        The history; empty lists where nothing was logged.

    Raises:
        FileNotFoundError: There is no such file.
    """
    history = History()
    for line in Path(scalars).read_text().splitlines():
        values = json.loads(line)
        if 'loss' in values:
            history.steps.append(values['step'])
            history.losses.append(values['loss'])
        elif 'mIoU' in values:
            history.checks.append(values['step'])
            history.miou.append(values['mIoU'])
            for key, value in values.items():
                if key.startswith('IoU/'):
                    history.class_iou.setdefault(key[4:], []).append(value)
    return history


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """Paint the numbers of an annotation file, (H, W) to (H, W, 3) uint8."""
    return np.array([OTHER_COLOUR, *PALETTE], np.uint8)[labels]


def draw_scenes(
    path: str | os.PathLike, comparisons: Sequence[Comparison], *, title: str
) -> None:
    """Draw image, truth and prediction of scenes, two scenes in a row.

    Args:
        path: PNG file to write.
        comparisons: The scenes.
        title: Stands above all.
    """
    rows = -(-len(comparisons) // 2)
    height, width = comparisons[0].truth.shape
    panel = 2.15
    head, foot, gap, between = 0.42, 0.42, 0.27, 0.16
    tall = panel * height / width
    size = (6 * panel + 3 * between, head + rows * (tall + gap) + foot)
    figure = Figure(figsize=size, dpi=150, facecolor='white')
    figure.text(
        0.5,
        1 - 0.14 / size[1],
        title,
        ha='center',
        va='top',
        fontsize=14,
        weight='bold',
        color=_INK,
    )
    for index, one in enumerate(comparisons):
        row, column = divmod(index, 2)
        left = between + column * (3 * panel + between)
        bottom = size[1] - head - (row + 1) * (tall + gap) + 0.06
        panels = (
            (one.image, one.title),
            (colour_labels(one.truth), 'truth'),
            (
                colour_labels(one.prediction),
                f'prediction · {100 * one.correct:.1f} % right',
            ),
        )
        for place, (pixels, name) in enumerate(panels):
            axes = figure.add_axes(
                (
                    (left + place * panel) / size[0],
                    bottom / size[1],
                    (panel - 0.05) / size[0],
                    (panel - 0.05) * height / width / size[1],
                )
            )
            axes.imshow(pixels, interpolation='lanczos' if place == 0 else 'nearest')
            axes.set_title(name, fontsize=9.5, color=_INK, pad=3)
            axes.set_axis_off()
    entries = [
        Patch(facecolor=np.array(colour) / 255, edgecolor=_FAINT, lw=0.5, label=name)
        for name, colour in zip(CLASSES, PALETTE, strict=True)
    ]
    entries.append(
        Patch(
            facecolor=np.array(OTHER_COLOUR) / 255,
            edgecolor=_FAINT,
            lw=0.5,
            label='other (not scored)',
        )
    )
    figure.legend(
        handles=entries,
        loc='lower center',
        ncol=len(entries),
        frameon=False,
        fontsize=10.5,
        handlelength=1.4,
        handleheight=1.1,
        columnspacing=1.7,
        bbox_to_anchor=(0.5, 0.06 / size[1]),
    )
    _save(figure, path)


def draw_curves(path: str | os.PathLike, history: History, *, title: str) -> None:
    """Draw loss and IoU over the iterations.

    Args:
        path: PNG file to write.
        history: With at least one loss and one evaluation.
        title: Stands above both.
    """
    figure = Figure(figsize=(11.5, 4.4), dpi=130, facecolor='white')
    loss, iou = figure.subplots(1, 2, gridspec_kw={'width_ratios': [1, 1.08]})
    figure.subplots_adjust(0.06, 0.13, 0.905, 0.83, wspace=0.17)
    figure.suptitle(title, fontsize=13, weight='bold', color=_INK, y=0.965)

    loss.plot(history.steps, history.losses, color='#3d6fb4', lw=2)
    loss.set_ylim(0, None)
    _style(loss, 'training loss (cross entropy)', history)

    last = {name: values[-1] for name, values in history.class_iou.items()}
    colours = dict(zip(CLASSES, PALETTE, strict=True))
    for name, values in history.class_iou.items():
        colour = np.array(colours.get(name, (140, 140, 140))) / 255 * 0.88
        iou.plot(
            history.checks,
            values,
            color=colour,
            lw=1.4,
            marker='o',
            ms=3,
            clip_on=False,
        )
    iou.plot(
        history.checks,
        history.miou,
        color=_INK,
        lw=2.6,
        marker='o',
        ms=5,
        clip_on=False,
        zorder=3,
    )
    iou.set_ylim(0, 100)
    _style(iou, 'IoU on held-out scenes (%)', history)
    last['mean'] = history.miou[-1]
    for name, at in _spread(last, least=5.4).items():
        colour = np.array(colours.get(name, (43, 43, 51))) / 255 * 0.8
        iou.annotate(
            f'{name} {last[name]:.1f}',
            (1.015, at / 100),
            xycoords='axes fraction',
            va='center',
            fontsize=9.5,
            color=colour,
            weight='bold' if name == 'mean' else 'normal',
            annotation_clip=False,
        )
    _save(figure, path)


def _style(axes: Axes, title: str, history: History) -> None:
    axes.set_title(title, fontsize=11, color=_INK, loc='left')
    axes.set_xlabel('iteration', fontsize=10, color=_INK)
    axes.set_xlim(0, max(history.steps + history.checks))
    axes.grid(color='#e4e4ea', lw=0.8)
    axes.tick_params(colors=_INK, labelsize=9, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _spread(values: dict[str, float], *, least: float) -> dict[str, float]:
    """Move values apart until neighbours differ by ``least``, order kept.

    The values are percentages; they stay between 0 and 100 where there is room.
    """
    names = sorted(values, key=values.get)
    places = [values[name] for name in names]
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + least)
    ceiling = max(100.0, least * (len(places) - 1))
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - least
    return dict(zip(names, places, strict=True))


def _save(figure: Figure, path: str | os.PathLike) -> None:
    # A figure made without pyplot needs no display.
    figure.savefig(path, format='png')
