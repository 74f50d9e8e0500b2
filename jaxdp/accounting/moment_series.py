"""The two series behind a moment of the Poisson-sampled Gaussian at a fractional order.

Section 3.3 of Mironov, Talwar & Zhang (arXiv 1908.10530) splits the integral at z0 = sigma^2 l + 1/2, l =
ln((1 - q) / q), where both parts of the mixture are equal.  In absolute value the terms i of the two parts
are

    |binomial(order, i)| (1 - q)^order e^(-z0^2 / 2 sigma^2) / 2 x erfcx((i - z0) / (sqrt(2) sigma)) and
    the same with erfcx((z0 - order + i) / (sqrt(2) sigma)),

erfcx(x) = e^(x^2) erfc(x): a factor for the order, and one for sigma that orders a whole number apart share.

`dp_accounting` sums logarithms in turn and stops at a term of e^-30 of the sum, which is visible in the ninth
digit of small divergences: the same terms are summed here.  Where the moment is within 1e-5 of one, even the
rounding of its sequence of operations is visible: there that sequence is followed.
"""

import math

import numpy as np
from scipy import special

_MAX_TERMS = 1000  # dp_accounting then gives the order up, and so do we
_HEAD = 32  # terms looked at one by one; the rest, all falling, in chunks of as many
_NEGLIGIBLE = -150.0  # ln of a term that changes nothing in float64
_SHOWS = 1e-5  # of ln of a moment: below it, 1e-9 of it may be rounding
_OVERFLOWS = 600.0  # exponent from which on everything is kept as logarithms
_STOP = math.exp(-30)


def fractional(q: float, sigmas: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """ln E_Q[(P/Q)^order], [sigmas, orders]; inf where the series does not converge.

    Args:
      q: sampling rate in (0, 1).
      sigmas: ascending, > 0.
      orders: > 1, none of them whole.
    """
    series = _Series(q, sigmas, orders)
    if series.overflows():
        every = np.indices((orders.size, sigmas.size)).reshape(2, -1)
        return series.sum_logarithms(*every).reshape(orders.size, sigmas.size).T
    if series.second_is_negligible():
        return series.sum_first().T
    result = series.sum_both()
    column, row = np.nonzero(result < _SHOWS)
    if row.size:
        result[column, row] = series.sum_logarithms(column, row)
    return result.T


def log_binomial(n, k):
    """ln |binomial(n, k)|."""
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


def _log_half_erfc(x):
    """ln(erfc(x) / 2), in dp_accounting's sequence of operations."""
    return math.log(0.5) + (math.log(2) + special.log_ndtr(-x * 2**0.5))


class _Series:
    """Both series for some noise multipliers and orders; arrays are [orders, sigmas]."""

    def __init__(self, q: float, sigmas: np.ndarray, orders: np.ndarray):
        self.log_q, self.log_1mq = math.log(q), math.log1p(-q)
        self.odds = self.log_1mq - self.log_q
        self.sigmas, self.orders = sigmas, orders
        self.z0 = sigmas**2 * math.log(1 / q - 1) + 0.5
        self._shared: dict[float, np.ndarray] = {}

    def overflows(self) -> bool:
        """Whether a term may be too large for a float64."""
        top = float(self.orders.max())
        return top * top / (2 * float(self.sigmas[0]) ** 2) + abs(self.odds) * (top + 1) > _OVERFLOWS

    def second_is_negligible(self) -> bool:
        """Whether no term of the second series changes a sum in float64.

        By erfc(x) < e^(-x^2) and z0, term i is below binomial(order, i) q^order (1/q - 1)^order
        e^(-z0^2 / 2 sigma^2) wherever z0 > order, and |binomial(order, i)| < 2^(order + 1).
        """
        top = float(self.orders.max())
        if self.z0.min() < 2 * top:
            return False
        return bool((top + 1) * math.log(2) - (self.z0**2 / (2 * self.sigmas**2)).min() < _NEGLIGIBLE)

    def weight(self, i, orders: np.ndarray) -> np.ndarray:
        """The factor of term i that depends on the order."""
        return np.exp(log_binomial(orders, i) + orders * self.log_1mq)

    def first(self, i: int) -> np.ndarray:
        """The other factor of the first series, [sigmas]."""
        tail = special.log_ndtr((self.z0 - i) / self.sigmas)
        return np.exp((i * i - i) / (2 * self.sigmas**2) + tail - i * self.odds)

    def second(self, i: int, orders: np.ndarray) -> np.ndarray:
        """The other factor of the second series, [orders, sigmas]."""
        rows = []
        for j in orders - i:
            key = round(float(j), 9)
            if key not in self._shared:
                tail = special.log_ndtr((j - self.z0) / self.sigmas)
                self._shared[key] = np.exp((j * j - j) / (2 * self.sigmas**2) + tail - j * self.odds)
            rows.append(self._shared[key])
        return np.stack(rows)

    def terms(self, i: int, orders: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Term i of both series, [orders, sigmas]."""
        weight = self.weight(i, orders)[:, None]
        return weight * self.first(i)[None, :], weight * self.second(i, orders)

    def sum_first(self) -> np.ndarray:
        """ln of the sum where only the first series counts; finished orders drop out.

        The two terms that make up nearly all of a moment close to one are added as logarithms.
        """
        sigmas, z0 = self.sigmas[None, :], self.z0[None, :]
        zeroth, one = (self._first_logarithm(i, self.orders[:, None], sigmas, z0) for i in (0, 1))
        start = np.logaddexp(zeroth, one)
        total = np.full(start.shape, np.inf)  # of the other terms
        column, rest, going = np.arange(self.orders.size), np.zeros(start.shape), np.ones(start.shape, bool)
        last, constant = np.exp(one), np.exp(start)
        for i in range(2, _MAX_TERMS):
            orders = self.orders[column]
            term = self.weight(i, orders)[:, None] * self.first(i)[None, :]
            rest += term
            done = term < _STOP * (constant + rest)
            if done.any():
                # The second series' terms go as |binomial| / (z0 - order + i): dp_accounting waits for
                # their fall.
                order = orders[:, None]
                done &= going & (term < last) & (np.abs(order - i + 1) / i * (1 - 1 / (z0 - order + i)) < 1)
                total[column] = np.where(done, rest, total[column])
                going &= ~done
                left = going.any(axis=1)
                if not left.any():
                    break
                column, term, rest, going, constant = (a[left] for a in (column, term, rest, going, constant))
            last = term
        with np.errstate(divide="ignore"):
            return np.logaddexp(start, np.log(total))

    def sum_both(self) -> np.ndarray:
        """ln of the sum of both; finished orders drop out."""
        result = np.full((self.orders.size, self.sigmas.size), np.inf)
        column = np.arange(self.orders.size)
        total, going = np.zeros(result.shape), np.ones(result.shape, bool)
        last0 = last1 = np.zeros(result.shape)
        head = max(_HEAD, math.ceil(self.orders.max()) + 1)
        for i in range(head):
            term0, term1 = self.terms(i, self.orders[column])
            total += term0
            total += term1
            done = np.maximum(term0, term1) < _STOP * total
            if done.any():
                done &= going & ((term0 < last0) | (term0 == 0)) & ((term1 < last1) | (term1 == 0)) & (i > 0)
                result[column] = np.where(done, total, result[column])
                going &= ~done
            left = going.any(axis=1)
            last0, last1 = term0, term1
            if not left.all():
                column, going = column[left], going[left]
                total, last0, last1 = (a[left] for a in (total, last0, last1))
            if not column.size:
                return np.log(result)
        # The terms fall slowly from here: look whether they get there at all.
        going &= np.maximum(*self.terms(_MAX_TERMS - 1, self.orders[column])) < math.e * _STOP * total
        left = going.any(axis=1)
        self._tail(result, head, column[left], total[left], going[left])
        return np.log(result)

    def _tail(self, result, head: int, column: np.ndarray, total: np.ndarray, going: np.ndarray) -> None:
        """Goes on from term `head`, where all terms fall; a chunk that does not end a sum is one product."""
        for begin in range(head, _MAX_TERMS, _HEAD):
            if not column.size:
                return
            orders, i = self.orders[column], np.arange(begin, min(begin + _HEAD, _MAX_TERMS))
            weight = self.weight(i, orders[:, None])  # [orders, terms]
            first = self._scaled_erfcx(i[:, None] - self.z0)  # [terms, sigmas]
            keys, place = np.unique(np.round(i - orders[:, None], 9), return_inverse=True)
            place = place.reshape(weight.shape)
            shared = self._scaled_erfcx(self.z0 + keys[:, None])  # [keys, sigmas]
            spread = np.zeros((column.size, keys.size))
            np.put_along_axis(spread, place, weight, axis=1)
            after = total + weight @ first + spread @ shared
            at_end = weight[:, -1:] * np.maximum(first[-1], shared[place[:, -1]])
            ends = going & (at_end < _STOP * after)
            for k in np.flatnonzero(ends.any(axis=1)):
                here = np.flatnonzero(ends[k])
                term0, term1 = (
                    weight[k, :, None] * first[:, here],
                    weight[k, :, None] * shared[place[k]][:, here],
                )
                sums = total[k, here] + np.cumsum(term0 + term1, axis=0)
                stop = np.argmax(np.maximum(term0, term1) < _STOP * sums, axis=0)
                result[column[k], here] = sums[stop, np.arange(here.size)]
            going = going & ~ends
            left = going.any(axis=1)
            column, total, going = column[left], after[left], going[left]

    def _scaled_erfcx(self, distance: np.ndarray) -> np.ndarray:
        """e^(-z0^2 / 2 sigma^2) / 2 x erfcx(distance / (sqrt(2) sigma)), not above e^600."""
        x, centre = distance / (math.sqrt(2) * self.sigmas), self.z0**2 / (2 * self.sigmas**2)
        if x.min() > -20:
            return np.exp(-centre) / 2 * special.erfcx(x)
        exponent = np.square(np.minimum(x, 0)) - centre
        tail = np.where(x < 0, special.erfc(np.minimum(x, 0)), special.erfcx(np.maximum(x, 0)))
        return np.exp(np.minimum(exponent, _OVERFLOWS)) / 2 * tail

    def _first_logarithm(self, i: int, order, sigma, z0) -> np.ndarray:
        """ln of term i of the first series, in dp_accounting's sequence of operations."""
        weight = log_binomial(order, i) + i * self.log_q + (order - i) * self.log_1mq
        return weight + (i * i - i) / (2 * sigma**2) + _log_half_erfc((i - z0) / (math.sqrt(2) * sigma))

    def _second_logarithm(self, i: int, order, sigma, z0) -> np.ndarray:
        """ln of term i of the second series, likewise."""
        j = order - i
        weight = log_binomial(order, i) + j * self.log_q + i * self.log_1mq
        return weight + (j * j - j) / (2 * sigma**2) + _log_half_erfc((z0 - j) / (math.sqrt(2) * sigma))

    def sum_logarithms(self, column: np.ndarray, row: np.ndarray) -> np.ndarray:
        """ln of the sum of both at pairs of order and sigma; finished pairs drop out."""
        result, place = np.full(row.size, np.inf), np.arange(row.size)
        where = (self.orders[column], self.sigmas[row], self.z0[row])
        log_a0 = np.full(row.size, -np.inf)
        log_a1, last0, last1 = log_a0.copy(), log_a0.copy(), log_a0.copy()
        for i in range(_MAX_TERMS):
            s0, s1 = self._first_logarithm(i, *where), self._second_logarithm(i, *where)
            log_a0, log_a1 = np.logaddexp(log_a0, s0), np.logaddexp(log_a1, s1)
            total = np.logaddexp(log_a0, log_a1)
            done = (s0 < last0) & (s1 < last1) & (np.maximum(s0, s1) < total - 30)
            result[place[done]] = total[done]
            going = ~done
            if i == _HEAD:  # as in `sum_both`
                end = _MAX_TERMS - 1
                first, second = self._first_logarithm(end, *where), self._second_logarithm(end, *where)
                going &= np.maximum(first, second) < total - 29
            if not going.any():
                break
            where = tuple(a[going] for a in where)
            place, log_a0, log_a1, last0, last1 = (a[going] for a in (place, log_a0, log_a1, s0, s1))
        return result
