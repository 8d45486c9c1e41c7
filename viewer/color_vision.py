"""How different two colors look, also to color-blind readers."""

import numpy as np
from jaxtyping import Float, UInt8

VISIONS = np.array(
    [
        [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
"""Normal vision, protanopia, deuteranopia and tritanopia as matrices of linear RGB (Machado et al. 2009)."""

_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(rgb: UInt8[np.ndarray, "color 3"]) -> Float[np.ndarray, "color vision 3"]:
    """OKLab (Ottosson 2020) of sRGB colors as each of `VISIONS` sees them."""
    unit = rgb / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    seen = np.einsum("vij,cj->cvi", VISIONS, linear).clip(0, 1)
    return np.cbrt(seen @ _LMS.T) @ _LAB.T


def distance(
    one: Float[np.ndarray, "*color vision 3"], other: Float[np.ndarray, "*color vision 3"]
) -> Float[np.ndarray, "*color"]:
    """The OKLab distance in the worst of `VISIONS`; 0.02 is just noticeable."""
    return np.linalg.norm(one - other, axis=-1).min(axis=-1)
