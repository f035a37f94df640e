from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_problems import CANDIDATES, agree, brute_force, drawn, problem

from onnxq.allocation import ilp
from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation, Outcome, allocation_from_json
from onnxq.allocation.milp import OUTCOMES, Found
from onnxq.allocation.pareto import pareto_front
from onnxq.allocation.problem import Agreement, problem_from_json
from onnxq.allocation.terms import InfeasibleError
from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidate, parse_candidates
from onnxq.config.budget import LOSS, Budget, parse_budget, parse_budgets
from onnxq.errors import ConfigError

W4, W8 = Candidate(4, 8), Candidate(8, 8)
PAIR = (W4, W8)

MODES = {
    "loss under size": (LOSS, ("size",)),
    "loss under size and bops": (LOSS, ("size", "bops")),
    "size under loss": ("size", (LOSS,)),
    "bops under loss and size": ("bops", (LOSS, "size")),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(60))
def test_the_optimum_is_that_of_trying_everything(mode: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if seed % 2:  # as large programmes are solved, beginning with as few variables as can be
        monkeypatch.setattr("onnxq.allocation.ilp.SMALL", 0)
        monkeypatch.setattr("onnxq.allocation.ilp.FIRST", 0)
    minimised, limited = MODES[mode]
    rng = np.random.default_rng([seed, list(MODES).index(mode)])
    given_problem = drawn(rng)
    limits = {}
    for quantity in limited:  # from below the least, where nothing fits, to the most; often exactly a choice's own sum
        values = given_problem.matrix(quantity)
        own = sum(row[rng.integers(len(row))] for row in values)
        least, most = values.min(axis=1).sum(), values.max(axis=1).sum()
        limits[quantity] = float(own if rng.integers(2) else least - 0.5 + rng.uniform() * (most - least + 0.5))
    wanted = brute_force(given_problem, minimised, limits)
    budgets = [Budget(q, v) for q, v in limits.items()]
    if wanted is None:
        with pytest.raises(InfeasibleError, match="no allocation keeps"):
            allocate(given_problem, budgets, minimise=minimised)
        return
    found = allocate(given_problem, budgets, minimise=minimised)
    value = found.loss if minimised == LOSS else found.costs[minimised]
    # The solver works on numbers of up to 1e4 with tolerances of 1e-6.
    assert value == pytest.approx(wanted, rel=1e-8, abs=1e-8)
    assert (found.status, found.gap, found.bound) == (Outcome.OPTIMAL, 0.0, pytest.approx(value, abs=1e-12))
    assert agree(given_problem, found.choice)
    spent = {**found.costs, LOSS: found.loss}
    assert all(spent[q] <= limit + 2e-9 * abs(limit) for q, limit in limits.items())


@pytest.mark.parametrize("budgets", [("size",), ("size", "bops")])
def test_a_large_programme_has_the_optimum_that_searching_all_of_it_finds(
    budgets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    candidates = tuple(Candidate(w, a) for w in (2, 3, 4, 5, 6, 7, 8, 16) for a in (4, 8))
    bits = np.array([[c.weights, c.activations] for c in candidates], float)
    weights, work = rng.uniform(1, 50, (24, 1)), rng.uniform(1, 50, (24, 1))
    loss = np.exp(rng.normal(0, 1, (24, 1))) * (4.0 ** -bits[:, 0] + 0.3 * 4.0 ** -bits[:, 1])
    costs = {"size": weights * bits[:, 0], "bops": work * bits.prod(axis=1)}
    large = problem(loss * rng.uniform(0.9, 1.1, loss.shape), costs, candidates)
    limits = [Budget(q, float(costs[q].min(axis=1).sum() * 1.8)) for q in budgets]
    found = allocate(large, limits)
    assert len(set(found.choice.values())) > 3
    monkeypatch.setattr("onnxq.allocation.ilp.SMALL", 10**6)
    whole = allocate(large, limits)
    assert (found.choice, found.status, found.gap) == (whole.choice, Outcome.OPTIMAL, 0.0)


def test_a_search_without_time_keeps_the_first_choice_and_its_distance_from_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnxq.allocation.ilp.SMALL", 0)
    real, calls = ilp.search, []

    def once(*args: Any, **options: Any) -> Found:
        calls.append(args)
        return real(*args, **options) if len(calls) == 1 else Found(Outcome.FAILED)

    monkeypatch.setattr(ilp, "search", once)
    rng = np.random.default_rng(1)
    found = allocate(problem(rng.uniform(size=(6, 6)), {"size": rng.uniform(size=(6, 6))}), [Budget("size", 2.0)])
    assert len(calls) == 2
    assert found.status is Outcome.FEASIBLE
    assert found.gap > 0
    assert found.bound < found.loss


def test_the_same_problem_gives_the_same_allocation_among_many_equal_ones() -> None:
    equal = problem(np.ones((6, 6)), {"size": np.ones((6, 6))})
    first = allocate(equal, [Budget("size", 6.0)])
    assert all(allocate(equal, [Budget("size", 6.0)]) == first for _ in range(3))


def test_a_layer_that_gains_from_quantisation_is_quantised() -> None:
    found = allocate(problem([[-0.5, 0.0], [0.25, 0.0]], {"size": [[1, 2], [1, 2]]}, (W4, FLOAT)), [])
    assert found.choice == {"a": W4, "b": FLOAT}
    assert found.loss == -0.5


def test_the_rest_of_the_network_counts_and_fractions_are_of_the_float_network() -> None:
    two = problem([[1, 0], [3, 0]], {"size": [[10, 40], [10, 40]]}, PAIR, in_float=45.0, rest=10.0)
    found = allocate(two, [Budget("size", 0.6, relative=True)])
    assert found.budgets == {"size": 60.0}
    assert found.choice == {"a": W4, "b": W8}
    assert found.costs == {"size": 60.0}
    with pytest.raises(InfeasibleError, match=r"the least size that can be reached is 30 \(0\.3000 of the float"):
        allocate(two, [Budget("size", 0.29, relative=True)])


def test_the_loss_of_the_reference_counts_in_prediction_bound_and_budget() -> None:
    shifted = problem([[0.2, -0.1]], {"size": [[1, 2]]}, PAIR, reference_loss=1.0)
    found = allocate(shifted, [])
    assert (found.loss, found.bound) == (pytest.approx(0.9), pytest.approx(0.9))
    assert allocate(shifted, [Budget(LOSS, 1.25)]).choice == {"a": W4}
    assert allocate(shifted, [Budget(LOSS, 1.1)]).choice == {"a": W8}


def test_budgets_that_are_kept_one_by_one_but_not_together_are_explained() -> None:
    apart = problem([[0, 0]], {"size": [[1, 9]], "latency": [[9, 1]]}, PAIR)
    allocate(apart, [Budget("size", 2.0)])
    allocate(apart, [Budget("latency", 2.0)])
    with pytest.raises(InfeasibleError, match=r"within the other budgets the least size is 9 .*the least latency is 9"):
        allocate(apart, [Budget("size", 2.0), Budget("latency", 2.0)])


def test_layers_that_share_weights_take_one_candidate_and_readers_of_one_tensor_the_same_activation_bits() -> None:
    wide = (Candidate(4, 4), Candidate(4, 8), Candidate(8, 8))
    loss, size = [[0, 1, 2], [9, 5, 0]], [[1, 1, 2], [1, 1, 2]]
    assert allocate(problem(loss, {"size": size}, wide), []).choice == {"a": wide[0], "b": wide[2]}
    inputs = problem(loss, {"size": size}, wide, (Agreement(("a", "b"), weights=False),))
    assert allocate(inputs, []).choice == {"a": wide[1], "b": wide[2]}
    whole = problem(loss, {"size": size}, wide, (Agreement(("a", "b"), weights=True),))
    assert allocate(whole, []).choice == {"a": wide[2], "b": wide[2]}


def test_layers_that_must_agree_but_cannot_are_told() -> None:
    nan = math.nan
    apart = problem([[0, nan], [nan, 0]], {"size": [[1, 1], [1, 1]]}, PAIR, (Agreement(("a", "b"), weights=True),))
    with pytest.raises(InfeasibleError, match="no candidate in common"):
        allocate(apart, [Budget("size", 5.0)])


def test_a_fixed_layer_keeps_its_candidate_and_an_unknown_one_is_refused() -> None:
    two = problem([[1, 0], [1, 0]], {"size": [[1, 2], [1, 2]]}, PAIR)
    assert allocate(two, [], fixed={"a": W4}).choice == {"a": W4, "b": W8}
    with pytest.raises(ConfigError, match="'z' cannot be fixed at w4a8: the table holds no such layer"):
        allocate(two, [], fixed={"z": W4})
    with pytest.raises(ConfigError, match="'a' cannot be fixed at float: the table holds the candidates w4a8, w8a8"):
        allocate(two, [], fixed={"a": FLOAT})


def test_a_target_without_4_bit_activations_gets_none() -> None:
    rng = np.random.default_rng(0)
    six = problem(rng.uniform(size=(4, 6)), {"size": np.ones((4, 6))})
    usual = allocate(six, [])
    assert 4 in {c.activations for c in usual.choice.values()}
    found = allocate(six, [], allowed=[c for c in CANDIDATES if c.activations != 4])
    assert {c.activations for c in found.choice.values()} == {8}
    with pytest.raises(InfeasibleError, match="layer 'a' is left without a candidate that is allowed"):
        allocate(six, [], allowed=[])


def test_a_candidate_without_a_number_is_left_out_where_that_number_counts() -> None:
    holes = problem([[1, 0]], {"size": [[1, 2]], "latency": [[5, math.nan]]}, PAIR)
    assert allocate(holes, [Budget("size", 2.0)]).choice == {"a": W8}
    assert "latency" not in allocate(holes, [Budget("size", 2.0)]).costs
    assert allocate(holes, [Budget("latency", 9.0)]).choice == {"a": W4}


def test_every_status_of_cvxpy_has_an_outcome_and_a_solver_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = {v for k, v in vars(cp.settings).items() if k in (
        "OPTIMAL", "OPTIMAL_INACCURATE", "INFEASIBLE", "INFEASIBLE_INACCURATE", "UNBOUNDED", "UNBOUNDED_INACCURATE",
        "INFEASIBLE_OR_UNBOUNDED", "USER_LIMIT", "SOLVER_ERROR",
    )}  # fmt: skip
    assert statuses <= set(OUTCOMES)
    one = problem([[1, 0]], {"size": [[1, 2]]}, PAIR)

    def fail(*_: object, **__: object) -> None:
        raise cp.error.SolverError("broken")

    monkeypatch.setattr(cp.Problem, "solve", fail)
    with pytest.raises(ConfigError, match="no allocation was found: the solver failed"):
        allocate(one, [])


def test_a_quantity_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="the table holds no energy; it holds loss, size"):
        allocate(problem([[1, 0]], {"size": [[1, 2]]}, PAIR), [Budget("energy", 5.0)])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_along_the_front_less_cost_is_more_loss_and_every_point_is_the_best_of_its_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = drawn(rng)
    front = pareto_front(one, "size", points=5)
    costs, losses = [p.costs["size"] for p in front], [p.loss for p in front]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
    for point in front:
        wanted = brute_force(one, LOSS, {"size": point.costs["size"]})
        assert point.loss == pytest.approx(wanted, rel=1e-8, abs=1e-8)


def test_the_front_keeps_other_budgets() -> None:
    rng = np.random.default_rng(3)
    one = problem(rng.uniform(size=(5, 6)), {"size": rng.uniform(size=(5, 6)), "latency": rng.uniform(size=(5, 6))})
    tight = float(one.matrix("latency").min(axis=1).sum() + 0.5)
    assert all(
        p.costs["latency"] <= tight for p in pareto_front(one, "size", points=6, budgets=[Budget("latency", tight)])
    )


def test_problem_and_allocation_come_back_from_their_json() -> None:
    one = problem([[1, math.nan], [0.1, 0]], {"size": [[1, 2], [3, 4]]}, PAIR, (Agreement(("a", "b"), False),))
    again = problem_from_json(one.to_json())
    np.testing.assert_array_equal(again.matrix(LOSS), one.matrix(LOSS))
    assert again.to_json() == one.to_json()
    assert (again.agreements, again.candidates) == (one.agreements, one.candidates)
    found = allocate(one, [Budget("size", 9.0)])
    assert allocation_from_json(found.to_json()) == found
    assert isinstance(found, BitAllocation)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"choice": 3}'])
def test_a_file_of_another_form_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"the table (is not JSON|lacks or misstates .*); give a file that onnxq sens"
    ):
        problem_from_json(text)
    with pytest.raises(ConfigError, match="the allocation"):
        allocation_from_json(text)


def test_a_table_whose_rows_do_not_fit_is_refused() -> None:
    text = problem([[1, 0]], {"size": [[1, 2]]}, PAIR).to_json().replace("[[1.0, 2.0]]", "[[1.0]]")
    with pytest.raises(ConfigError, match="a number for each of 2 candidates"):
        problem_from_json(text)


@pytest.mark.parametrize(
    ("word", "budget"),
    {
        "size=0.13": Budget("size", 0.13, True),
        "size=1": Budget("size", 1.0, True),
        "size=12.5%": Budget("size", 0.125, True),
        "size=300KiB": Budget("size", 300 * 1024.0),
        "size=0.5MiB": Budget("size", 2.0**19),
        "size=200B": Budget("size", 200.0),
        "size=123456": Budget("size", 123456.0),
        "latency=2.5ms": Budget("latency", 2.5),
        "latency=0.5ms": Budget("latency", 0.5),
        "latency=250us": Budget("latency", 0.25),
        "latency=0.9": Budget("latency", 0.9, True),
        "bops=1e9": Budget("bops", 1e9),
        "bops=0.5ops": Budget("bops", 0.5),
        "bops=2G": Budget("bops", 2e9),
        "energy=3uJ": Budget("energy", 3e6),
        " loss = 0.02 ": Budget("loss", 0.02),
        "loss=2": Budget("loss", 2.0),
    }.items(),
)
def test_a_budget_reads_as_written(word: str, budget: Budget) -> None:
    assert parse_budget(word) == budget
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    "word", ["size", "size=", "size=-1", "size=nan", "size=much", "speed=3", "loss=5%", "latency=2KiB", "=3"]
)
def test_a_budget_that_makes_no_sense_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        parse_budget(word)


def test_several_budgets_come_in_one_word_or_many_but_once_for_each_quantity() -> None:
    assert parse_budgets(["size=0.2,latency=3ms", "loss=1"]) == (
        Budget("size", 0.2, True), Budget("latency", 3.0), Budget("loss", 1.0),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="size has two budgets"):
        parse_budgets(["size=0.2", "size=5"])


def test_candidates_read_as_written_and_nonsense_is_refused() -> None:
    assert parse_candidates("w4a8, W8A8,float,w4a8") == (W4, W8, FLOAT)
    assert all(parse_candidate(str(c)) == c for c in (*CANDIDATES, FLOAT, Candidate(4, 32), Candidate(16, 16)))
    for word in ("w4", "a8", "w1a8", "w4a9", "w32a8", "int8"):
        with pytest.raises(ConfigError, match=f"candidate '{word}' is not understood"):
            parse_candidate(word)
    with pytest.raises(ConfigError, match="no candidate was given"):
        parse_candidates(" , ")


def test_nothing_but_the_answer_reaches_standard_output() -> None:
    """In a process of its own: HiGHS writes past Python."""
    lines = (
        "from small_problems import problem",
        "from onnxq.allocation.allocate import allocate",
        "from onnxq.config.bit_widths import Candidate",
        "tables = problem([[1, 0]], {'size': [[1, 2]]}, (Candidate(4, 8), Candidate(8, 8)))",
        "print(allocate(tables, []).loss)",
    )
    told = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=Path(__file__).parents[1] / "helpers", capture_output=True
    )
    assert told.stdout.decode().split() == ["0.0"], told.stderr.decode()
