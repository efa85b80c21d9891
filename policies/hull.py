"""The upper concave hull of (cost, value): what mixing choices over time can reach."""

from __future__ import annotations

from collections.abc import Sequence


def concave_hull(costs: Sequence[float], values: Sequence[float]) -> tuple[int, ...]:
    """Indices of the choices on the upper concave hull, in strictly ascending cost and value.

    Whatever average value any mix of choices has at some average cost, a mix of two neighbours on this hull has at
    least as much for no more cost: a linear programme with one budget has an optimum with at most two choices in
    use. Monotone chain (Andrew 1979), from the cheapest choice (the better of equals) to the most valuable one (the
    cheaper of equals).
    """
    hull: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i])):
        if hull and values[index] <= values[hull[-1]]:
            continue
        while len(hull) >= 2:
            first, middle = hull[-2], hull[-1]
            rise = (values[middle] - values[first]) * (costs[index] - costs[first])
            if rise > (values[index] - values[first]) * (costs[middle] - costs[first]):
                break
            hull.pop()
        hull.append(index)
    return tuple(hull)
