import itertools

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from jaxdp import intervals
from jaxdp.attacks import metrics


def images(seed, *lead, size=16, channels=1):
    return np.random.default_rng(seed).uniform(size=(*lead, size, size, channels)).astype(np.float32)


def ssim_oracle(a, b, window=11, std=1.5):
    """Wang et al. (2004), in float64 with scipy's filters."""
    half = window // 2
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / std) ** 2)
    weights /= weights.sum()

    def blur(z):
        for axis in (0, 1):
            z = correlate1d(z, weights, axis=axis)
        return z[half:-half, half:-half]

    values = []
    for channel in range(a.shape[-1]):
        p, q = a[..., channel].astype(float), b[..., channel].astype(float)
        mp, mq = blur(p), blur(q)
        vp, vq, cov = blur(p * p) - mp**2, blur(q * q) - mq**2, blur(p * q) - mp * mq
        c1, c2 = 0.01**2, 0.03**2
        values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return np.mean(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_gaussian_window_one(channels):
    a = images(0, 2, size=20, channels=channels)
    b = np.clip(a + 0.2 * images(1, 2, size=20, channels=channels), 0, 1)
    expected = [ssim_oracle(p, q) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.ssim(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(metrics.ssim(a, a), 1, rtol=1e-6)


def test_ssim_shrinks_its_window_for_small_images():
    a, b = images(0, 2, size=8), images(1, 2, size=8)
    expected = [ssim_oracle(p, q, window=7) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.ssim(a, b), expected, rtol=1e-4)


def test_errors_of_one_pixel():
    truth = np.zeros((2, 4, 4, 1), np.float32)
    x = truth.copy()
    x[1, 0, 0, 0] = 0.8
    np.testing.assert_allclose(metrics.mse(x, truth), [0, 0.04], rtol=1e-6)
    np.testing.assert_allclose(metrics.rmse(x, truth), [0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(metrics.psnr(x, truth), [np.inf, 13.9794], rtol=1e-5)


def test_gain_is_nothing_for_the_mean_and_one_for_the_truth():
    truth = images(0, 3)
    mean = truth.mean(0)
    np.testing.assert_allclose(metrics.gain_over_mean(truth, truth, mean), 1)
    np.testing.assert_allclose(metrics.gain_over_mean(np.stack([mean] * 3), truth, mean), 0, atol=1e-6)
    assert (metrics.gain_over_mean(1 - truth, truth, mean) < 0).all()


@pytest.mark.parametrize("hits, trials", [(0, 10), (3, 10), (10, 10), (600, 1000)])
def test_wilson_solves_its_own_equation(hits, trials):
    interval = intervals.wilson(hits, trials)
    z = 1.959963984540054
    for bound in (interval.low, interval.high):
        # The bounds are the p at which the estimate lies z standard errors of p away.
        left, right = (hits / trials - bound) ** 2, z**2 * bound * (1 - bound) / trials
        assert left == pytest.approx(right, abs=1e-9)
    assert interval.low <= interval.estimate <= interval.high


def test_match_finds_the_best_of_all_permutations():
    truth, x = images(0, 4, size=3), images(1, 4, size=3)
    order = metrics.match(x, truth)
    best = min(np.square(x[list(p)] - truth).sum() for p in itertools.permutations(range(4)))
    assert np.square(x[order] - truth).sum() == pytest.approx(best)
    shuffled = np.stack([truth[[2, 0, 3, 1]]] * 2)
    np.testing.assert_array_equal(metrics.matched(shuffled, np.stack([truth] * 2)), np.stack([truth] * 2))


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: metrics.mse(images(0, 2), images(0, 3)), "shape"),
        (lambda: metrics.mse(np.zeros(3), np.zeros(3)), "3 trailing axes"),
        (lambda: metrics.ssim(images(0, 2), images(0, 2, size=8)), "shape"),
        (lambda: intervals.wilson(3, 2), "successes=3"),
        (lambda: intervals.wilson(1, 2, confidence=1.0), "confidence=1.0"),
        (lambda: intervals.success_rate(np.zeros(0, bool)), "trials=0"),
    ],
)
def test_nonsense_is_refused(call, word):
    with pytest.raises(ValueError, match=word):
        call()
