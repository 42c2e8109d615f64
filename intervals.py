"""The confidence interval of a share."""

from __future__ import annotations

import math

Z = 1.959963984540054  # of 95 %


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval, 0..1, of the share ``right`` of ``total``.

    Wilson 1927. Unlike the usual interval it is also valid near 0 and 1 (Brown et al. 2001, doi 10.1214/ss/1009213286).
    """
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, Z * Z
    middle = (share + square / (2 * total)) / (1 + square / total)
    half = Z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    # Exact at the ends, where the sum has a rounding error.
    return (0.0 if right == 0 else middle - half), (1.0 if right == total else middle + half)
