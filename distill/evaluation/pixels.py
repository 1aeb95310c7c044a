"""What can be said of pictures without a network: sharpness and colour.

Owns the arithmetic on pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.dataset.recolour import hue_distance

# Shape suffixes: N pictures, H/W pixels, C channel.

HUE_TOLERANCE_DEGREES = 30.0
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def detail_energy(images_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square of the Laplacian of each picture's luma, in grey levels.

    The second derivative, because blur leaves the sum of a contour's gradients as it is.
    Source: Pertuz et al., Pattern Recognition 46 (2013), operator LAP.
    """
    energies = []
    for image_HWC in images_NHWC:
        luma_HW = image_HWC.astype(np.float32) @ _LUMA
        laplacian = (
            luma_HW[:-2, 1:-1]
            + luma_HW[2:, 1:-1]
            + luma_HW[1:-1, :-2]
            + luma_HW[1:-1, 2:]
            - 4 * luma_HW[1:-1, 1:-1]
        )
        energies.append(float(np.sqrt((laplacian.astype(np.float64) ** 2).mean())))
    return np.asarray(energies)


def has_hue(images_NHWC: NDArray[np.uint8], colours: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each picture's mean hue lies within 30 degrees of the colour asked for."""
    return np.asarray(hue_distance(images_NHWC, colours) <= HUE_TOLERANCE_DEGREES)


def grey(images_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pictures without colour, in three equal channels, to compare shapes alone."""
    luma_NHW = np.stack([np.round(image.astype(np.float32) @ _LUMA) for image in images_NHWC])
    return np.repeat(luma_NHW.astype(np.uint8)[..., None], 3, axis=3)
