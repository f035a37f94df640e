from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from small_problems import agree, drawn, problem

from onnxq.allocation.knapsack import make_knapsack
from onnxq.allocation.lp_bound import relax

MODES = {"no budget": (), "one budget": ("size",), "two budgets": ("size", "bops")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(10))
def test_a_choice_within_the_budgets_exceeds_the_bound_by_what_its_variables_add(mode: str, seed: int) -> None:
    rng = np.random.default_rng([seed, len(mode)])
    given = drawn(rng)
    limits = {}
    for quantity in MODES[mode]:
        values = given.matrix(quantity)
        limits[quantity] = float(rng.uniform(values.min(axis=1).sum(), values.max(axis=1).sum()))
    knapsack = make_knapsack(given, np.ones((len(given.layers), len(given.candidates)), bool), "loss", limits)
    relaxed = relax(knapsack)
    places = [np.flatnonzero(knapsack.layer == la) for la in range(knapsack.layers)]
    reached = math.inf
    for chosen in map(list, itertools.product(*places)):
        choice = {n: given.candidates[knapsack.candidate[c]] for n, c in zip(given.layers, chosen, strict=True)}
        kept = agree(given, choice) and (knapsack.spent[:, chosen].sum(axis=1) <= knapsack.allowances).all()
        if kept:
            reached = min(reached, knapsack.objective[chosen].sum())
            least = relaxed.bound + relaxed.added[chosen].sum()
            assert knapsack.objective[chosen].sum() >= least - 1e-9
    assert relaxed.bound <= reached + 1e-9
    assert (relaxed.added >= 0).all()


def test_the_bound_of_a_problem_whose_relaxation_is_whole_is_its_optimum() -> None:
    # Lowering one layer whole spends the budget to the end: a corner of the relaxation.
    two = problem([[4, 0], [1, 0]], {"size": [[1, 2], [1, 2]]}, problem([[0, 0]], {"size": [[1, 1]]}).candidates[:2])
    knapsack = make_knapsack(two, np.ones((2, 2), bool), "loss", {"size": 3.0})
    assert relax(knapsack).bound == pytest.approx(1.0, rel=1e-6)  # the budget may be overstepped by a billionth


def test_budgets_below_the_least_have_an_infinite_bound() -> None:
    one = problem([[1, 0]], {"size": [[1, 2]]}, problem([[0]], {"size": [[1]]}).candidates[:2])
    assert relax(make_knapsack(one, np.ones((1, 2), bool), "loss", {"size": 0.5})).bound == math.inf
