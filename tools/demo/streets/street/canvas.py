"""A picture and its labels, painted together."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from streets.street.labels import Label

# Corners are handed to OpenCV in sixteenths of a pixel: edges that nearly align
# with the pixel grid would show steps otherwise.
_FRACTION_BITS = 4
_FRACTION = 1 << _FRACTION_BITS


class Canvas:
    """Picture (H, W, 3) in RGB and labels (H, W), both uint8.

    Args:
        width: In pixels.
        height: In pixels.
    """

    def __init__(self, *, width: int, height: int) -> None:
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels = np.zeros((height, width), np.uint8)

    def fill(
        self,
        corners: np.ndarray | None,
        colour: Sequence[float],
        label: Label | None,
    ) -> None:
        """Fill a polygon.

        Args:
            corners: (N, 2) in pixels, or None for a polygon out of sight.
            colour: RGB from 0 to 255.
            label: What it is; None leaves the labels as they are.
        """
        if corners is None:
            return
        points = [np.round(corners * _FRACTION).astype(np.int32)]
        cv2.fillPoly(self.image, points, as_rgb(colour), cv2.LINE_AA, _FRACTION_BITS)
        if label is not None:
            cv2.fillPoly(self.labels, points, int(label), cv2.LINE_8, _FRACTION_BITS)

    def disc(
        self,
        centre: Sequence[float],
        radius: float,
        colour: Sequence[float],
        label: Label | None,
    ) -> None:
        """Fill a circle; centre and radius are in pixels."""
        x, y = (round(value * _FRACTION) for value in centre)
        size = round(radius * _FRACTION)
        cv2.circle(
            self.image, (x, y), size, as_rgb(colour), -1, cv2.LINE_AA, _FRACTION_BITS
        )
        if label is not None:
            cv2.circle(
                self.labels, (x, y), size, int(label), -1, cv2.LINE_8, _FRACTION_BITS
            )

    def limb(
        self,
        start: Sequence[float],
        end: Sequence[float],
        thickness: float,
        colour: Sequence[float],
        label: Label | None,
    ) -> None:
        """Draw a stroke with round ends; everything is in pixels."""
        ends = [
            tuple(round(float(value) * _FRACTION) for value in point)
            for point in (start, end)
        ]
        width = max(1, round(thickness))
        cv2.line(self.image, *ends, as_rgb(colour), width, cv2.LINE_AA, _FRACTION_BITS)
        if label is not None:
            cv2.line(self.labels, *ends, int(label), width, cv2.LINE_8, _FRACTION_BITS)

    def paste(
        self, texture: np.ndarray, corners: np.ndarray, label: Label | None
    ) -> None:
        """Paint a texture over a quadrilateral, in perspective.

        Args:
            texture: (h, w, 3) uint8, RGB.
            corners: (4, 2) pixels of its top left, top right, bottom right and
                bottom left corner.
            label: What it is.
        """
        height, width = self.labels.shape
        low = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
        if (high <= low).any():
            return
        rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
        texture_corners = np.array(
            [
                [0, 0],
                [texture.shape[1], 0],
                [texture.shape[1], texture.shape[0]],
                [0, texture.shape[0]],
            ]
        )
        # Pixel centres are at half numbers for the corners, at whole numbers for
        # OpenCV, hence the halves.
        warp = cv2.getPerspectiveTransform(
            (texture_corners - 0.5).astype(np.float32),
            (corners - low - 0.5).astype(np.float32),
        )
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        warped = cv2.warpPerspective(
            texture, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        mask = np.zeros((size[1], size[0]), np.uint8)
        points = np.round((corners - low) * _FRACTION).astype(np.int32)
        cv2.fillConvexPoly(mask, points, 255, cv2.LINE_8, _FRACTION_BITS)
        cv2.copyTo(warped, mask, self.image[rows, columns])
        if label is not None:
            self.labels[rows, columns][mask > 0] = label


def as_rgb(colour: Sequence[float] | np.ndarray) -> tuple[int, int, int]:
    """Round and clip a colour to what OpenCV takes."""
    red, green, blue = colour
    return _byte(red), _byte(green), _byte(blue)


def _byte(value: float) -> int:
    return min(255, max(0, int(value + 0.5)))
