"""K-means with clusters of equal size, by annealed exchanges of two points.

Lloyd's iteration with equal sizes solves a transport problem in each step, which is slow, and stops
early where clusters are small, since a point is a good part of its own mean. Exchanging two points
keeps the sizes and changes the inertia by a closed form (Costa, Aloise and Mladenović, Information
Sciences 415-416, 2017). The exchanges are annealed (Kirkpatrick, Gelatt and Vecchi, Science 220,
1983), so that the result hardly depends on the start, which is random.
"""

import numpy as np

SCALE = 4000  # grid points per unit of length, see `integer_gram`
HOT = 0.2  # first temperature, in what the greedy first sweep gains per point
WARM_SWEEPS = 20  # more lower the inertia further, by tenths of a percent
COLD_SWEEPS = 100  # at most; 2 to 10 are usual
TOLERANCE = 1e-6  # gain per point of a cluster, for unit rows, that may be rounding


def balanced_kmeans(rows: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Split points into clusters of equal size with a small sum of squared distances to the means.

    Time grows with points²; besides the rows, memory is 4 points (points + clusters) bytes.

    Args:
        rows: [points, dimension], L2 norms at most 1.
        clusters: n; must divide points.
        seed: fixes the result to the bit, whatever the number of threads.

    Returns:
        The points of each cluster, integers [clusters, points / clusters].
    """
    points = len(rows)
    if clusters in (1, points):  # one possible result, and no exchange to look for
        return np.arange(points).reshape(clusters, -1)
    rng = np.random.default_rng(seed)
    partition = Partition(integer_gram(rows), rng.permutation(points).reshape(clusters, -1))
    cold = np.zeros(2 * points, np.float32)
    at_random = partition.cohesion()
    _sweep(partition, cold, rng)
    hot = HOT * (partition.cohesion() - at_random) / points
    gumbel = rng.gumbel(size=2 * points).astype(np.float32)
    for temperature in np.linspace(hot, 0, WARM_SWEEPS, endpoint=False, dtype=np.float32):
        _sweep(partition, temperature * gumbel, rng)
    for _ in range(COLD_SWEEPS):
        if _sweep(partition, cold, rng) <= points / 1000:  # the rest gains next to nothing
            break
    return partition.members


def integer_gram(rows: np.ndarray) -> np.ndarray:
    """Inner products of rows rounded to the grid of 1 / `SCALE`, in units of 1 / `SCALE`².

    Rows of norm <= 1 become integers of norm < 4096 (up to a dimension of 36,864), so every partial
    sum is an integer below 2^24 and exact in float32: neither the number of threads nor the machine
    changes a bit. The rounding error, 7e-5 an entry, is small against 1 / sqrt(dimension).

    Args:
        rows: [points, dimension], L2 norms at most 1.

    Returns:
        float32 [points, points].
    """
    rounded = np.rint(rows * SCALE).astype(np.float32)
    return rounded @ rounded.T


class Partition:
    """Points in clusters of equal size, and what exchanging two of them gains.

    With x in cluster A, y in cluster B and S the sum of a cluster's rows, the exchange lowers the
    inertia by 4 gain / size, where

        gain = (S_A·y + S_B·x - S_A·x - S_B·y + |x|² + |y|²) / 2 - x·y.

    Args:
        gram: inner products of the rows, from `integer_gram`, [points, points].
        members: the points of each cluster, [clusters, size]; exchanges change it in place.
    """

    def __init__(self, gram: np.ndarray, members: np.ndarray):
        clusters, size = members.shape
        self.gram, self.members = gram, members
        self.labels = np.empty(len(gram), int)  # the cluster of each point
        self.labels[members] = np.arange(clusters)[:, None]
        self._squares = gram.diagonal() / 2  # |x|² / 2, [points]
        self._pull = np.empty((clusters, len(gram)), np.float32)  # S_k·x / 2
        self._unease = np.empty(len(gram), np.float32)  # (|x|² - S_A·x) / 2
        self._gains = np.empty(len(gram), np.float32)
        self._tolerance = TOLERANCE * size * SCALE**2
        self.refresh()

    def refresh(self) -> None:
        """Compute the sums anew, without the rounding errors that exchanges add up."""
        for members, pull in zip(self.members, self._pull, strict=True):
            np.sum(self.gram[members], axis=0, out=pull)
        self._pull /= 2
        self._unease[:] = self._squares - self._pull[self.labels, np.arange(len(self.labels))]

    def cohesion(self) -> float:
        """Σ_x S_A·x / 2; the inertia is Σ |x|² less 2 / size times it."""
        return float((self._squares - self._unease).sum(dtype=np.float64))

    def gains(self, x: int) -> np.ndarray:
        """Gain of exchanging x with each point, [points], in a buffer that the next call reuses.

        It is -inf within the cluster of x and, for x itself, what counts as no gain.
        """
        own = self.labels[x]
        towards = self._pull[:, x] + self._unease[x]  # [clusters]
        towards[own] = -np.inf
        gains = towards.take(self.labels, out=self._gains, mode="clip")  # "clip" skips a copy
        gains += self._pull[own]
        gains += self._unease
        gains -= self.gram[x]
        gains[x] = self._tolerance
        return gains

    def exchange(self, x: int, y: int) -> None:
        """Move x to the cluster of y, and y to that of x."""
        a, b = self.labels[x], self.labels[y]
        change = (self.gram[y] - self.gram[x]) / 2
        self._pull[a] += change
        self._pull[b] -= change
        self.labels[x], self.labels[y] = b, a
        for cluster, old, new in ((a, x, y), (b, y, x)):
            members = self.members[cluster]
            members[members == old] = new
            self._unease[members] = self._squares[members] - self._pull[cluster, members]


def _sweep(partition: Partition, noise: np.ndarray, rng: np.random.Generator) -> int:
    """Exchange each point in turn where gain plus noise is largest; returns how many moved.

    Noise of Gumbel's distribution times a temperature makes this a draw in proportion to
    exp(gain / temperature). A random stretch of `noise`, [2 points], serves each point: drawing
    anew would take longer than all the rest.
    """
    points = len(partition.labels)
    partition.refresh()
    moved = 0
    for x, offset in enumerate(rng.integers(points, size=points).tolist()):
        gains = partition.gains(x)
        gains += noise[offset : offset + points]
        y = int(gains.argmax())
        if y != x:
            partition.exchange(x, y)
            moved += 1
    return moved
