"""Real data sets that come with scikit-learn: no download."""

from typing import Any

import numpy as np

from jaxdp.data.dataset import Dataset, stratified_split

# Lowest and highest value that the published description of the features gives, rounded outwards to one or
# two digits, for radius, texture, perimeter, area, smoothness, compactness, concavity, concave points,
# symmetry, fractal dimension: of the mean, of its standard error, and of the worst nuclei of a sample.
_MEASURED_RANGES = [
    (6, 30), (9, 40), (40, 190), (100, 2600), (0.05, 0.17), (0.01, 0.35),
    (0, 0.45), (0, 0.21), (0.1, 0.31), (0.04, 0.1),
    (0.1, 3), (0.3, 5), (0.7, 22), (6, 550), (0.001, 0.032), (0.002, 0.14),
    (0, 0.4), (0, 0.06), (0.007, 0.08), (0.0008, 0.03),
    (7, 40), (12, 50), (50, 260), (180, 4300), (0.07, 0.23), (0.02, 1.1),
    (0, 1.3), (0, 0.3), (0.15, 0.7), (0.05, 0.21),
]  # fmt: skip


def _split(x, y, **about) -> Dataset:
    x, y = x.astype(np.float32), y.astype(np.int32)
    train, test = stratified_split(y)
    return Dataset(train_x=x[train], train_y=y[train], test_x=x[test], test_y=y[test], **about)


def digits() -> Dataset:
    """1,797 handwritten digits of 8 x 8 pixels, 16 grey levels."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    return _split(
        bunch.images[..., None] / 16,
        bunch.target,
        name="digits",
        classes=tuple("0123456789"),
        preprocessing="pixels divided by 16, the largest grey level of the format (public)",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        citation="Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part)",
    )


def breast_cancer() -> Dataset:
    """569 samples of breast tissue: 30 measurements of cell nuclei, malignant or benign."""
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    low, high = np.asarray(_MEASURED_RANGES, np.float64).T
    return _split(
        4 * (bunch.data - low) / (high - low) - 1,
        bunch.target,
        name="breast_cancer",
        classes=tuple(str(name) for name in bunch.target_names),
        preprocessing="each feature mapped from a fixed range to [-1, 3] (these measurements are skewed "
        "to the left); the ranges are round numbers from the published description, treated as public",
        licence="CC BY 4.0 (UCI Machine Learning Repository)",
        citation="Wolberg, Mangasarian, Street & Street, Breast Cancer Wisconsin (Diagnostic), UCI, 1995",
    )
