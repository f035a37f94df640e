"""A lower bound of a knapsack, and what each variable adds to it: which of them no best choice can hold.

With multipliers λ ≥ 0 of the budgets and μ of the agreements, every choice x within the budgets has

    objective·x ≥ Σ_l min_c d_lc − λ·limits + Σ_lc (d_lc − min_c d_lc) x_lc,   d = objective + λ·spent + μ·equal.

So a variable whose last bracket exceeds the distance from a known choice to the bound is in no better choice. The
bound holds for any multipliers; those of the linear relaxation make it as high as it gets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.knapsack import Knapsack

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Relaxation:
    """What the linear relaxation tells of the integer optimum.

    Attributes:
        bound: no choice within the budgets has less of the objective; infinite where there is none.
        added: at least what a choice has beyond the bound if it takes a variable, (variables,).
    """

    bound: float
    added: Array


def relax(knapsack: Knapsack) -> Relaxation:
    """The bound of a knapsack; a weak one where the relaxation cannot be solved."""
    top = np.abs(knapsack.objective).max(initial=0.0) or 1.0
    most = np.maximum(np.abs(knapsack.spent).max(axis=1, initial=0.0), np.abs(knapsack.limits))
    most[most == 0] = 1.0
    x = cp.Variable(len(knapsack.layer), nonneg=True)
    constraints = [knapsack.one_each @ x == 1]
    rows = {}
    if len(knapsack.limits):
        rows["budgets"] = (knapsack.spent / most[:, None]) @ x <= knapsack.allowances / most
    if knapsack.equal.shape[0]:
        rows["agreements"] = knapsack.equal @ x == 0
    programme = cp.Problem(cp.Minimize((knapsack.objective / top) @ x), [*constraints, *rows.values()])
    try:
        programme.solve(solver=cp.HIGHS, threads=1, random_seed=0)
    except cp.error.SolverError:
        return _bounded(knapsack, np.zeros(len(knapsack.limits)), np.zeros(knapsack.equal.shape[0]))
    if programme.status == cp.INFEASIBLE:
        return Relaxation(math.inf, np.zeros(len(knapsack.layer)))
    price, agreement = (rows[n].dual_value if n in rows else None for n in ("budgets", "agreements"))
    return _bounded(
        knapsack,
        np.zeros(len(knapsack.limits)) if price is None else np.maximum(price, 0.0) * top / most,
        np.zeros(knapsack.equal.shape[0]) if agreement is None else np.asarray(agreement) * top,
    )


def _bounded(knapsack: Knapsack, price: Array, agreement: Array) -> Relaxation:
    """The bound that multipliers give."""
    each = knapsack.objective + price @ knapsack.spent + agreement @ knapsack.equal
    least = np.full(knapsack.layers, math.inf)
    np.minimum.at(least, knapsack.layer, each)
    return Relaxation(math.fsum(least) - float(price @ knapsack.allowances), each - least[knapsack.layer])
