"""How attenuation becomes gray on one film, and the noise that comes with it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocessing.phantom.hand import Array
from preprocessing.phantom.projection import Window

ALL: Window = (slice(None), slice(None))


@dataclass(frozen=True)
class Developer:
    """How attenuation becomes gray, 0..1, on this film."""

    blur: float  # standard deviation, pixels
    edge: float  # that of unsharp masking, pixels
    sharp: float  # how much of that
    white: float  # attenuation of the brightest
    base: float
    gamma: float
    knee: float
    haze: float
    ramp: Array  # (H, W) uneven exposure
    rim: Array  # (H, W) the carrier's border, bright or dark

    @classmethod
    def draw(cls, healthy: Array, depth: Array, unit: float, tone: np.random.Generator) -> Developer:
        """Exposed for the healthy hand's attenuation (H, W), so that no finding shifts it."""
        blur = unit * tone.uniform(0.55, 0.95)
        inside = healthy[(healthy > 0.1) & (depth > 0)]
        white = float(np.percentile(inside, 97)) * tone.uniform(0.95, 1.3)
        bases = [tone.uniform(0.05, 0.12), tone.uniform(0.1, 0.2), tone.uniform(0.3, 0.5)]
        base = float(tone.choice(bases, p=(0.62, 0.3, 0.08)))
        gamma = tone.uniform(0.8, 1.3)
        knee = tone.uniform(0.6, 1.7)
        sharp = tone.uniform(0.2, 0.7) if tone.random() < 0.5 else 0.0
        height, width = depth.shape
        lean, heel = tone.normal(0, 0.03, 2), tone.uniform(0, 0.05)
        across = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        ramp = np.float32(lean[0]) * across + np.float32(lean[1]) * down - np.float32(heel) * (across**2 + down**2)
        border = float(tone.choice([0.0, tone.uniform(0.15, 0.6), -base]))  # none, bright or dark
        rim = border * np.exp(-np.maximum(depth, 0) / (unit * tone.uniform(1.5, 7)))
        haze = tone.uniform(0.02, 0.08)
        return cls(blur, 3 * unit, sharp, white, base, gamma, knee, haze, ramp, rim)

    @property
    def reach(self) -> int:
        """How many pixels away attenuation changes gray: OpenCV's blur of floats ends at 4 standard deviations."""
        return int(np.ceil(4 * self.blur + (4 * self.edge if self.sharp else 0))) + 2

    def __call__(self, rays: Array, window: Window = ALL) -> Array:
        """The film of attenuation (h, w), which lies in a window of the whole; may exceed 0..1 slightly."""
        rays = cv2.GaussianBlur(rays, (0, 0), self.blur)
        if self.sharp:
            rays = np.maximum(rays + self.sharp * (rays - cv2.GaussianBlur(rays, (0, 0), self.edge)), 0)
        shown = 1 - np.exp(-self.knee * rays / self.white)
        shown = (shown / (1 - np.exp(-self.knee))) ** self.gamma
        scatter = self.haze * np.exp(-rays / self.white)
        film = self.base + scatter + (0.93 - self.base) * shown + self.ramp[window] * (0.4 + shown) + self.rim[window]
        over = np.maximum(film - 0.8, 0)
        # A shoulder rather than an edge: dense things go on getting brighter.
        return np.asarray(np.minimum(film, 0.8) + 0.2 * (1 - np.exp(-over / 0.2)))


@dataclass(frozen=True)
class Noise:
    """Quantum noise: a finer and a coarser part, the stronger the brighter."""

    level: float
    mix: float  # share of the coarser part
    blur: float  # standard deviation of the coarser part, pixels

    @classmethod
    def draw(cls, unit: float, tone: np.random.Generator) -> Noise:
        """The noise of one film; `unit` is pixels of this film to one of a film of 512."""
        level = tone.uniform(0.004, 0.02)
        return cls(level, tone.uniform(0.2, 0.8), max(1.1 * unit, 0.4))

    def amplitude(self, film: Array) -> Array:
        """What a film (H, W), 0..1, multiplies the noise of `field` with, (H, W)."""
        return np.asarray(self.level * (0.5 + 0.9 * np.sqrt(np.clip(film, 0, 1))))

    def field(self, white: Array) -> Array:
        """Noise (H, W) of white noise (2, H, W), before `amplitude`."""
        coarse = cv2.GaussianBlur(white[1], (0, 0), self.blur)
        return np.asarray((1 - self.mix) * white[0] + self.mix * coarse / max(float(coarse.std()), 1e-6))

    @property
    def variance(self) -> float:
        """The variance of `field`."""
        return (1 - self.mix) ** 2 + self.mix**2
