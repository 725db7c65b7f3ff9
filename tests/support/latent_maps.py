"""A map of training rows for the toy bundle."""

from __future__ import annotations

import numpy as np

from latentd.latent_map import LatentMap, sprite_sheet
from tests.support.toy_bundle import LATENT_SIZE, SHAPE

ROWS = 7


def toy_map() -> LatentMap:
    """The map of seven images, each of one gray; the toy encodes them to 16 equal numbers."""
    grays = np.arange(ROWS, dtype=np.uint8) * 40
    images = np.broadcast_to(grays[:, None, None], (ROWS, *SHAPE)).copy()
    mean = images.reshape(ROWS, -1) / np.float32(255)
    center = mean.mean(axis=0)
    components = np.zeros((2, LATENT_SIZE), np.float32)
    components[0] = 1 / np.sqrt(LATENT_SIZE)
    sheet, shape = sprite_sheet(images)
    return LatentMap(
        mean=mean,
        components=components,
        center=center,
        position=(mean - center) @ components.T,
        explained_variance=np.array([1.0, 0.0]),
        active=np.arange(LATENT_SIZE) % 2 == 0,
        unit_kl=np.linspace(0, 3, LATENT_SIZE, dtype=np.float32),
        classes=np.array(["dark", "é"]),
        label=(np.arange(ROWS) % 2).astype(np.int32),
        reconstruction_error=np.linspace(10, 20, ROWS, dtype=np.float32),
        kl=np.linspace(1, 2, ROWS, dtype=np.float32),
        sprites=np.frombuffer(sheet, np.uint8),
        sprite_shape=np.array(shape),
    )
