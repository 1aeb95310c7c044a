"""Latency and batch sizes at a load, computed: engines that take what is there when they are free.

Owns the arithmetic. Arrivals are Poisson, all jobs have one batch key, a batch of B takes
`fixed + per_image * B`. The line is looked at when an engine becomes free while all the others are
busy. Between two such moments lies a *gap*: with one engine, the time of the batch just begun; with
more, the shortest of that and of what the others still need, each of them caught at a random moment
of its run. How many jobs are in the line after a gap depends on nothing but how many were there
after the last and on the size of the batch just begun, so that moments form a Markov chain.

For one engine this is exact, but for the grid of times. For more it takes the others' moments as
independent; who stands behind full batches waits for as many mean gaps; while engines idle, their
runs end as if they had no memory. `python -m tests.bench.capacity check` says how far off that is.

Sources: Neuts, A General Class of Bulk Queues with Poisson Input, 1967 (one engine); the gap is the
least of residual times of renewal theory, Cox, Renewal Theory, 1962, section 5.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.bench.capacity.load import EngineTime, OfferedLoad

# Shape suffixes: T times on the grid, L jobs left in line, P places in line, K batch sizes.

Array = NDArray[np.float64]
# Times on the grid per mean gap, and the survival below which a gap's tail is cut.
_STEPS_PER_GAP, _MIN_STEPS, _CUT = 24, 256, 1e-9
# The longest line looked at, in full batches; and how much of the truth may lie beyond.
_LONGEST_LINE, _BEYOND = 40, 1e-6
_ROUNDS = 8
# Gaps that follow one another make up for each other: as many as there are engines span about one
# run. So the line grows less than with independent gaps, and more than with equal ones. The share
# that counts as independent was chosen on the grid that the test looks at; one engine has none.
_UNEVEN = 0.6


class Overloaded(ValueError):
    """The line grows without end, or so long that the model gives up."""


@dataclass(frozen=True)
class Steady:
    """The long run.

    Attributes:
        utilisation: share of the engines' time in which they run.
        mean_batch_size: over batches.
        latencies_s: values that latency takes, ascending; from arrival to the batch's end.
        shares: of all jobs, that have at most this latency.
    """

    utilisation: float
    mean_batch_size: float
    latencies_s: Array
    shares: Array

    def latency_s(self, quantile: float) -> float:
        """What this share of the jobs stays within."""
        index = int(np.searchsorted(self.shares, quantile))
        return float(self.latencies_s[min(index, len(self.latencies_s) - 1)])


def steady(engine: EngineTime, offered: OfferedLoad) -> Steady:
    """What comes of a load in the long run.

    Raises:
        Overloaded: it is more than the engines can draw, or so near to it that lines of more than
            40 full batches are common.
    """
    if offered.share_of(engine) >= 1:
        raise Overloaded("more is asked for than full batches can draw")
    return _Chain(engine, offered).solve()


class _Chain:
    """Moments at which the line is looked at.

    States: `num_engines` of idling (so many engines are busy, nobody waits), then one for each size
    of the batch just begun with nobody left in line, then the full batch with 1, 2, ... jobs left.
    """

    def __init__(self, engine: EngineTime, offered: OfferedLoad) -> None:
        self._rate, self._num_engines = offered.rate_per_s, offered.num_engines
        self._max = engine.max_batch_size
        self._sizes_K = np.arange(1, self._max + 1)
        self._batch_s_K = engine.fixed_s + engine.per_image_s * self._sizes_K
        # How often each size is begun; first as if all were full.
        self._begun_K = np.eye(self._max)[-1]
        self._num_left = _LONGEST_LINE * self._max
        longest_s = float(self._batch_s_K[-1])
        steps = max(_MIN_STEPS, _STEPS_PER_GAP * self._num_engines)
        self._step_s = longest_s / steps
        self._num_times = steps + 2
        if self._num_engines > 1:
            # Beyond that, no gap is left: the survival is a power of a line that falls to zero.
            kept = 1 - _CUT ** (1 / (self._num_engines - 1))
            self._num_times = min(self._num_times, max(64, int(steps * kept) + 2))
        self._times_s_T = np.arange(self._num_times) * self._step_s

    def solve(self) -> Steady:
        """Repeat until the sizes that are begun agree with the gaps that they cause."""
        num_rounds = 1 if self._num_engines == 1 else _ROUNDS
        for _ in range(num_rounds):
            gaps_KT = self._gaps()
            visits = self._visits(gaps_KT)
            idle, busy = visits[: self._num_engines], visits[self._num_engines :]
            self._begun_K = self._begun(idle, busy)
        if busy[-self._max :].sum() > _BEYOND * busy.sum():
            raise Overloaded(f"lines of more than {_LONGEST_LINE} full batches are common")
        latencies_s, weights = self._latencies(idle, busy, gaps_KT)
        order = np.argsort(latencies_s, kind="stable")
        shares = np.cumsum(weights[order])
        mean_size = float(self._begun_K @ self._sizes_K)
        batches_per_s = self._rate / mean_size
        utilisation = batches_per_s * float(self._begun_K @ self._batch_s_K) / self._num_engines
        return Steady(utilisation, mean_size, latencies_s[order], shares / shares[-1])

    def _gaps(self) -> Array:
        """Probability of each length of a gap, by the size of the batch just begun."""
        edges_T = (np.arange(self._num_times + 1) - 0.5).clip(0) * self._step_s
        # A run that is met at a random moment is a long one more often, and half over on average.
        left_KT = (self._batch_s_K[:, None] - edges_T).clip(0)
        residual_T = self._begun_K @ left_KT / (self._begun_K @ self._batch_s_K)
        others_T = residual_T ** (self._num_engines - 1)
        gaps_KT = np.zeros((self._max, self._num_times))
        for index, batch_s in enumerate(self._batch_s_K):
            if self._num_engines > 1:
                survival_T = np.where(edges_T < batch_s, others_T, 0.0)
                gaps_KT[index] = -np.diff(survival_T)
                gaps_KT[index, -1] += survival_T[-1]
            else:
                # Between two times of the grid, so that the mean is kept.
                low, part = divmod(batch_s / self._step_s, 1)
                gaps_KT[index, int(low)], gaps_KT[index, int(low) + 1] = 1 - part, part
        return gaps_KT

    def _visits(self, gaps_KT: Array) -> Array:
        """How often each state is entered, in proportion."""
        engines, size = self._num_engines, self._num_engines + self._max + self._num_left
        moves = np.zeros((size, size))
        ends_per_s = 1 / float(self._begun_K @ self._batch_s_K)
        for num_busy in range(engines):
            arrives = self._rate / (self._rate + num_busy * ends_per_s)
            moves[num_busy, num_busy + 1] = arrives
            if num_busy:
                moves[num_busy, num_busy - 1] = 1 - arrives
        mean_s_K = gaps_KT @ self._times_s_T
        spread_KP = gaps_KT @ _poisson(self._rate * self._times_s_T, size)
        even_KP = _poisson(self._rate * mean_s_K, size)
        arrived_KP = _UNEVEN * spread_KP + (1 - _UNEVEN) * even_KP
        # Nobody came, so that an engine idles; 1 to the largest batch; more, so that some are left.
        places = np.concatenate(([engines - 1], np.arange(engines, size)))
        for index in range(self._max):
            moves[engines + index, places] = arrived_KP[index, : len(places)]
        for left in range(1, self._num_left + 1):
            num_kept = len(places) - left
            moves[engines + self._max - 1 + left, places[left:]] = arrived_KP[-1, :num_kept]
        moves[:, -1] += (1 - moves.sum(axis=1)).clip(0)
        equations = np.vstack([(moves.T - np.eye(size))[:-1], np.ones(size)])
        return np.linalg.solve(equations, np.eye(size)[-1]).clip(0)

    def _begun(self, idle: Array, busy: Array) -> Array:
        """How often each size is begun."""
        begun_K = busy[: self._max].copy()
        begun_K[-1] += busy[self._max :].sum()
        # A batch begun while others idle has one picture; the last of these fills the engines and
        # is counted among the busy states already.
        ends_per_s = 1 / float(self._begun_K @ self._batch_s_K)
        num_busy = np.arange(len(idle) - 1)
        begun_K[0] += float(idle[:-1] @ (self._rate / (self._rate + num_busy * ends_per_s)))
        return begun_K / begun_K.sum()

    def _latencies(self, idle: Array, busy: Array, gaps_KT: Array) -> tuple[Array, Array]:
        """Values of latency and how many jobs have each: who arrives meets the states by time."""
        ends_per_s = 1 / float(self._begun_K @ self._batch_s_K)
        num_busy = np.arange(len(idle))
        idle_s = float(np.sum(idle / (self._rate + num_busy * ends_per_s)))
        met_TP = self._met(busy, gaps_KT)
        full_gap_s = float(gaps_KT[-1] @ self._times_s_T)
        values, weights = [np.array([self._batch_s_K[0]])], [np.array([idle_s])]
        for num_before in range(math.ceil(met_TP.shape[1] / self._max)):
            # Who stands behind so many full batches waits for as many more gaps.
            places = slice(num_before * self._max, (num_before + 1) * self._max)
            wait_TP = met_TP[:, places]
            if wait_TP.sum() < _CUT * met_TP.sum():
                continue
            wait_s_T = self._times_s_T + 0.5 * self._step_s + num_before * full_gap_s
            behind_TP = _poisson(self._rate * wait_s_T, self._max)
            for place in range(wait_TP.shape[1]):
                num_room = self._max - place - 1
                for extra in range(num_room + 1):
                    share_T = behind_TP[:, extra]
                    if extra == num_room:
                        share_T = 1 - behind_TP[:, :extra].sum(axis=1)
                    values.append(wait_s_T + self._batch_s_K[place + extra])
                    weights.append(wait_TP[:, place] * share_T)
        return np.concatenate(values), np.concatenate(weights)

    def _met(self, busy: Array, gaps_KT: Array) -> Array:
        """Time per gap in which who arrives has so long to wait for its end, by place in line."""
        elapsed_s_T = self._times_s_T + 0.5 * self._step_s
        arrived_TP = _poisson(self._rate * elapsed_s_T, self._num_left + self._max)
        met_TP = np.zeros((self._num_times, self._num_left + self._max))
        for index in range(self._max):
            left_L = busy[index : index + 1]
            if index == self._max - 1:
                left_L = busy[index:]
            place_TP = np.stack([np.convolve(row_P, left_L) for row_P in arrived_TP])
            place_TP = place_TP[:, : met_TP.shape[1]]
            # Elapsed and remaining make the gap: lengths stand on the antidiagonals.
            total = np.add.outer(np.arange(self._num_times), np.arange(self._num_times)) + 1
            density_TT = np.append(gaps_KT[index], 0.0)[total.clip(max=self._num_times)]
            met_TP += density_TT @ place_TP * self._step_s
        return met_TP


def _poisson(means_T: Array, num: int) -> Array:
    """Probabilities of 0 to num - 1 events."""
    counts_P = np.arange(num)
    log_factorials_P = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, num)))))
    with np.errstate(divide="ignore"):
        logs_T = np.log(means_T)[:, None]
    exponents = np.where(counts_P == 0, 0.0, counts_P * np.maximum(logs_T, -745.0))
    return np.exp(exponents - means_T[:, None] - log_factorials_P)
