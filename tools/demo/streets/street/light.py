"""Light: where the sun stands, and what it does to a colour.

A colour is lit by the sky from everywhere and by the sun from one side, and
fades with distance into the colour of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """The light of one scene.

    Args:
        mood: ``'day'``, ``'dusk'`` or ``'overcast'``.
        sun: Unit vector (X, Y, Z) that points at the sun.
        sunshine: RGB factors of what the sun adds; zeros under clouds.
        skylight: RGB factors of what the sky adds.
        zenith: RGB of the sky overhead.
        horizon: RGB of the sky above the horizon, into which distance fades.
        clouds: Share of the sky that is covered, from 0 to 1.
        sight: Distance in metres at which 63 % of a colour is lost to haze.
        shadow: How much of the light a shadow takes, from 0 to 1.
    """

    mood: str
    sun: tuple[float, float, float]
    sunshine: Rgb
    skylight: Rgb
    zenith: Rgb
    horizon: Rgb
    clouds: float
    sight: float
    shadow: float

    @property
    def lamps_on(self) -> bool:
        """Whether windows, street lamps and headlights shine."""
        return self.mood == 'dusk'

    def lit(self, normal: tuple[float, float, float]) -> np.ndarray:
        """RGB factors (3,) of a surface that faces along ``normal``."""
        facing = max(0.0, float(np.dot(normal, self.sun)))
        return np.array(self.skylight) + facing * np.array(self.sunshine)

    def shade(
        self, colour: Rgb, normal: tuple[float, float, float], depth: float
    ) -> np.ndarray:
        """Colour (3,) of a surface that faces along ``normal``, seen from far."""
        return self.haze(np.array(colour) * self.lit(normal), depth)

    def haze(self, colour: np.ndarray, depth: float | np.ndarray) -> np.ndarray:
        """Fade a colour, or an array of them (..., 3), over ``depth`` metres.

        ``depth`` is one number, or an array (...) of them.
        """
        if isinstance(depth, np.ndarray):
            left = np.exp(depth * (-1 / self.sight))[..., None]
        else:
            left = float(np.exp(-depth / self.sight))
        horizon = np.array(self.horizon, np.float32)
        return horizon + (colour - horizon) * left


def random_light(rng: np.random.Generator) -> Light:
    """Draw the light of a scene: a day, a dusk or an overcast sky."""
    mood = str(rng.choice(['day', 'dusk', 'overcast'], p=[0.6, 0.18, 0.22]))
    azimuth = rng.uniform(0, 2 * np.pi)
    if mood == 'dusk':
        # Low above the street's far end, where it can be seen to set.
        azimuth = rng.uniform(-0.9, 0.9)
    elevation = {
        'day': rng.uniform(0.5, 1.1),
        'dusk': rng.uniform(0.12, 0.3),
        'overcast': 1.3,
    }[mood]
    sun = (
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
        float(np.cos(azimuth) * np.cos(elevation)),
    )
    if mood == 'day':
        warmth = rng.uniform(0, 1)
        return Light(
            mood=mood,
            sun=sun,
            sunshine=(0.7, 0.64 - 0.03 * warmth, 0.54 - 0.1 * warmth),
            skylight=(0.6, 0.63, 0.7),
            zenith=(52 + 30 * warmth, 112 + 20 * warmth, 196),
            horizon=(188 + 22 * warmth, 212, 232 - 14 * warmth),
            clouds=rng.uniform(0.05, 0.6),
            sight=rng.uniform(160, 420),
            shadow=rng.uniform(0.42, 0.55),
        )
    if mood == 'dusk':
        rose = rng.uniform(0, 1)
        return Light(
            mood=mood,
            sun=sun,
            sunshine=(0.5, 0.3, 0.16),
            skylight=(0.62, 0.55 - 0.03 * rose, 0.6),
            zenith=(58 + 24 * rose, 72, 128),
            horizon=(250, 178 - 28 * rose, 112 + 30 * rose),
            clouds=rng.uniform(0.2, 0.6),
            sight=rng.uniform(130, 260),
            shadow=rng.uniform(0.2, 0.3),
        )
    grey = rng.uniform(-12, 12)
    return Light(
        mood=mood,
        sun=sun,
        sunshine=(0.16, 0.16, 0.16),
        skylight=(0.72, 0.74, 0.76),
        zenith=(150 + grey, 158 + grey, 168 + grey),
        horizon=(206 + grey / 2, 209 + grey / 2, 212 + grey / 2),
        clouds=rng.uniform(0.85, 1.0),
        sight=rng.uniform(70, 180),
        shadow=0.0,
    )
