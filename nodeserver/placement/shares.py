"""The rates at which runners must run so that each is among the first as often as it should be.

In a race each runner's time is exponentially distributed, with a rate. The first to arrive is runner i with
probability rate_i / sum of rates. That it is among the first ``places`` is *not* in proportion to its rate: a heavy
runner takes only one of the places. Placing copies on nodes of unequal weight by their weights alone therefore fills
the light nodes first (CRUSH corrects it by sets of adjusted weights). Here the rates are found that give the
wanted probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ALWAYS = 1e9
"""The rate, relative to the others', of a runner that must be among the first every time."""

STEPS = 64
"""Spans of time that a race is looked at in: enough for errors of a thousandth."""
TOLERANCE = 1e-3
"""How far from the wanted probability, relative to it, is near enough."""
ROUNDS = 40
OVER = 1e-6
"""A race with places left is less probable than this: it need not be looked at any longer."""
SURELY = 0.98
DIGITS = 5
"""Significant digits of a rate: fewer than two machines' mathematical libraries could disagree on."""


def rates(weights: Sequence[float], places: int) -> list[float]:
    """Rates with which runner i is among the first ``places`` with the probability ``wanted`` says.

    Equal weights give equal rates and one place the weights themselves, exactly; else within 0.3 %.
    """
    if places >= len(weights) or places <= 1 or min(weights) == max(weights):
        return list(weights)
    found = wanted(weights, places)
    sure = sum(share >= 1 for share in found)
    # Runners of one weight run at one rate: it is worked out once for each weight.
    classes = Counter(weight for weight, share in zip(weights, found, strict=True) if share < 1)
    values = sorted(classes)
    target = {weight: share for weight, share in zip(weights, found, strict=True) if share < 1}
    solved = _solve([target[weight] for weight in values], [classes[weight] for weight in values], places - sure)
    rate = {weight: _rounded(one) for weight, one in zip(values, solved, strict=True)}
    return [rate[weight] if share < 1 else ALWAYS for weight, share in zip(weights, found, strict=True)]


def wanted(weights: Sequence[float], places: int) -> list[float]:
    """The probability of each to be among the first ``places``: in proportion to its weight, and never above 1.

    What is cut off at 1 goes to the others, in proportion to their weights.
    """
    if places >= len(weights):
        return [1.0] * len(weights)
    sure: set[int] = set()
    while True:
        rest = sum(weight for index, weight in enumerate(weights) if index not in sure)
        left = places - len(sure)
        # A hair under 1 would need a rate without bounds to be met: it counts as 1.
        full = {i for i, weight in enumerate(weights) if i not in sure and left * weight >= 0.999 * rest}
        if not full or len(sure | full) > places:
            return [1.0 if i in sure else min(1.0, left * weight / rest) for i, weight in enumerate(weights)]
        sure |= full


def _solve(target: list[float], counts: list[int], places: int) -> list[float]:
    """Rates of classes of ``counts`` runners whose probabilities to be among the first ``places`` are ``target``."""
    # Were the finish at a fixed time instead of at a fixed number of runners, this would be the answer.
    guess = [-math.log1p(-share) for share in target]
    if places == 1:
        return list(target)
    for _ in range(ROUNDS):
        got = _probabilities(guess, counts, places)
        if max(abs(one / share - 1) for one, share in zip(got, target, strict=True)) < TOLERANCE:
            break
        guess = [
            rate * math.log1p(-share) / math.log1p(-min(one, 1 - 1e-12))
            for rate, one, share in zip(guess, got, target, strict=True)
        ]
    return guess


def _probabilities(found: list[float], counts: list[int], places: int) -> list[float]:
    """For one runner of each class the probability that it is among the first ``places``.

    The sum over short spans of time of the probability that it arrives then and a place is left.
    """
    total = sum(rate * count for rate, count in zip(found, counts, strict=True))
    slowest = min(found)
    start, end = math.log(1e-5 / total), math.log(16 / slowest)
    times = [0.0, *(math.exp(start + (end - start) * step / STEPS) for step in range(STEPS + 1))]
    sums = [0.0] * len(found)
    for before, after in pairwise(times):
        middle = (before + after) / 2
        arrived = [-math.expm1(-rate * middle) for rate in found]
        everyone = _arrivals(arrived, counts, places)
        if sum(everyone) < OVER:
            break
        free = _fewer_before(everyone, arrived, counts)
        for index, rate in enumerate(found):
            sums[index] += (math.exp(-rate * before) - math.exp(-rate * after)) * free[index]
    return sums


def _fewer_before(everyone: list[float], arrived: list[float], counts: list[int]) -> list[float]:
    """For one runner of each class: the probability that there is still a place when the others are counted.

    ``everyone`` is what ``_arrivals`` says.
    """
    places = len(everyone)
    return [
        # Taking a runner out again by division loses digits when it has almost surely arrived.
        sum(_without(everyone, chance))
        if chance < SURELY
        else sum(_arrivals(arrived, [number - (other == index) for other, number in enumerate(counts)], places))
        for index, chance in enumerate(arrived)
    ]


def _arrivals(arrived: list[float], counts: list[int], places: int) -> list[float]:
    """Probabilities that 0, 1, … ``places`` - 1 of all have arrived."""
    result = [1.0] + [0.0] * (places - 1)
    for chance, number in zip(arrived, counts, strict=True):
        if number == 1:
            for some in range(places - 1, 0, -1):
                result[some] += chance * (result[some - 1] - result[some])
            result[0] *= 1 - chance
        elif number:
            result = _convolved(result, _binomial(chance, number, places))
    return result


def _without(everyone: list[float], chance: float) -> list[float]:
    """``everyone`` less one who has arrived with probability ``chance``."""
    rest = []
    before = 0.0
    for one in everyone:
        before = (one - chance * before) / (1 - chance)
        rest.append(before)
    return rest


def _binomial(chance: float, number: int, places: int) -> list[float]:
    """Probabilities that 0, 1, … ``places`` - 1 of ``number`` have arrived."""
    if chance >= 1:
        return [float(some == number) for some in range(places)]
    terms = [(1 - chance) ** number]
    for some in range(places - 1):
        terms.append(terms[-1] * max(0, number - some) / (some + 1) * chance / (1 - chance))
    return terms


def _convolved(one: list[float], other: list[float]) -> list[float]:
    """Probabilities of the sum of two counts, as far as ``one`` goes."""
    return [sum(one[some] * other[whole - some] for some in range(whole + 1)) for whole in range(len(one))]


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS - 1}e}")
