"""A pinhole camera that stands on the street.

World coordinates are metres: X to the right, Y up from the ground, Z along the
street. The camera turns about the vertical axis only, and the horizon is moved
by shifting the lens, so verticals stay vertical as in architectural photographs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Nothing nearer than this, in metres, is drawn.
NEAR = 0.6


@dataclass(frozen=True)
class Camera:
    """Where the camera stands, and what it sees.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        focal: Focal length in pixels.
        horizon: Row of the horizon in pixels.
        eye: World position (X, Y, Z) in metres.
        yaw: Turn to the right, in radians.
    """

    width: int
    height: int
    focal: float
    horizon: float
    eye: tuple[float, float, float]
    yaw: float

    def view(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) to (right, up, forward) of the camera, (N, 3)."""
        offset = np.asarray(points, dtype=np.float64) - self.eye
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        right = offset[:, 0] * cos - offset[:, 2] * sin
        forward = offset[:, 0] * sin + offset[:, 2] * cos
        offset[:, 0], offset[:, 2] = right, forward
        return offset

    def to_pixels(self, viewed: np.ndarray) -> np.ndarray:
        """Camera points (N, 3), all in front of it, to pixels (N, 2)."""
        pixels = viewed[:, :2] * (self.focal / viewed[:, 2:])
        pixels[:, 0] += self.width / 2
        pixels[:, 1] = self.horizon - pixels[:, 1]
        return pixels

    def polygon(self, points: np.ndarray) -> np.ndarray | None:
        """Project a polygon, and cut off what lies behind the camera.

        Args:
            points: (N, 3) corners in the world.

        Returns:
            (M, 2) corners in pixels, or None where nothing is in front.
        """
        kept = clip_near(self.view(points))
        return self.to_pixels(kept) if len(kept) >= 3 else None

    def place(self, point: tuple[float, float, float]) -> tuple[np.ndarray, float]:
        """Project one point that is in front of the camera.

        Returns:
            The pixel (2,) and the number of pixels that a metre takes there.
        """
        viewed = self.view(np.array([point]))
        return self.to_pixels(viewed)[0], self.focal / viewed[0, 2]

    def depth(self, x: float, z: float) -> float:
        """Distance in metres in front of the camera, negative behind it."""
        dx, dz = x - self.eye[0], z - self.eye[2]
        return dx * np.sin(self.yaw) + dz * np.cos(self.yaw)

    def ground(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """Find the point of the ground that each pixel shows.

        Returns:
            X, Z and the depth, each float32 of the shape of the picture from
            the returned first row to its bottom; above that row is the sky.
        """
        first = int(np.ceil(self.horizon + 0.5))
        rows = np.arange(first, self.height, dtype=np.float32) + 0.5
        columns = np.arange(self.width, dtype=np.float32) + 0.5
        depth = (self.focal * self.eye[1] / (rows - self.horizon))[:, None]
        right = (columns - self.width / 2) / self.focal * depth
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        x = self.eye[0] + right * cos + depth * sin
        z = self.eye[2] - right * sin + depth * cos
        shape = right.shape
        return (
            x.astype(np.float32),
            z.astype(np.float32),
            np.broadcast_to(depth, shape).astype(np.float32),
            first,
        )


def clip_near(viewed: np.ndarray) -> np.ndarray:
    """Cut a polygon in camera coordinates (N, 3) at the plane in front of it."""
    if viewed[:, 2].min() >= NEAR:
        return viewed
    kept = []
    for start, end in zip(viewed, np.roll(viewed, -1, axis=0), strict=True):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            share = (NEAR - start[2]) / (end[2] - start[2])
            kept.append(start + share * (end - start))
    return np.array(kept)
