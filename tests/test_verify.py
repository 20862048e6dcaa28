"""The compiler's own checks: what `verify` of a Grouping and of a Plan refuses.

In: small training steps, compiled, and then broken on purpose, one thing at a time. Out: a failure where `verify`
notices nothing. Invariant: what is not broken passes. Next: test_fuzz.py, where every random program is verified.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.compiler.bundle import bundle
from needle.compiler.chain import chain
from needle.compiler.emit import AVX2
from needle.compiler.fuse import Grouping, fuse
from needle.compiler.graph import Graph, Node
from needle.compiler.lower import Lowered, lower
from needle.compiler.plan import Plan, plan
from needle.errors import NeedleError

THREADS = 2


def graph() -> Graph:
    """A training step: products, norms, sums, updates in place."""
    np.random.seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = ndl.optim.Adam(model.parameters())

    @ndl.compile
    def step(x: Any, y: Any) -> Any:
        optimizer.reset_grad()
        loss = nn.SoftmaxLoss()(model(x), y)
        loss.backward()
        optimizer.step()
        return loss, ndl.concatenate([x, x * 2], 1), ndl.pad(x, ((1, 1), (0, 0)))

    step.explain(ndl.rand(48, 32), ndl.Tensor(np.zeros(48, "int64")))
    return step.last.program.graph


GRAPH = graph()


def planned() -> tuple[Plan, list[Lowered]]:
    kernels, chains = chain(bundle(lower(fuse(GRAPH))), GRAPH)
    return plan(GRAPH, kernels, chains, AVX2, THREADS), kernels


def swapped(grouping: Grouping) -> None:
    grouping.groups.insert(0, grouping.groups.pop())


def twice_in_order(grouping: Grouping) -> None:
    first = next(g for g in grouping.groups if g.roots)
    next(g for g in reversed(grouping.groups) if g.roots).roots.append(first.roots[0])


def lost(grouping: Grouping) -> None:
    next(g for g in grouping.groups if g.roots).roots.pop()


def owned_by_another(grouping: Grouping) -> None:
    first, *_, last = (g for g in grouping.groups if g.roots)
    grouping.owner[id(first.roots[0])] = last


def roots_reversed(grouping: Grouping) -> None:
    max(grouping.groups, key=lambda g: len(g.roots) if g.reduced else 0).roots.reverse()


def no_root(grouping: Grouping) -> None:
    product = next(g.product for g in grouping.groups if g.product is not None)
    grouping.roots.remove(id(product))


def other_loops(grouping: Grouping) -> None:
    next(g for g in grouping.groups if g.reduced).shape = (7, 3)


def zeros_too_late(grouping: Grouping) -> None:
    fill = next(g for g in grouping.groups if g.fill)
    grouping.groups.remove(fill)
    grouping.groups.append(fill)


GROUPS: dict[Callable[[Grouping], None], str] = {
    swapped: "needs what is made later",
    twice_in_order: "is in group",
    lost: "is in no group, or in another",
    owned_by_another: "is in no group, or in another",
    roots_reversed: "needs what follows in it",
    no_root: "cannot be written into its users",
    other_loops: "has no place in",
    zeros_too_late: "before what goes under it",
}


@pytest.mark.parametrize("breaks", GROUPS, ids=lambda f: f.__name__)
def test_a_broken_grouping_is_refused(breaks: Callable[[Grouping], None]) -> None:
    grouping = fuse(GRAPH)
    grouping.verify()
    breaks(grouping)
    with pytest.raises(NeedleError, match=f"^groups: .*{GROUPS[breaks]}"):
        grouping.verify()


def in_arena(at: Plan, kernels: list[Lowered]) -> list[tuple[int, int, Node]]:
    """(kernel, slot, array) for each array of the arena that a kernel writes."""
    places = [(k, slot) for k, row in enumerate(at.places) for slot, place in enumerate(row) if place[0] == "arena"]
    return [(k, slot, kernels[k].memory[slot]) for k, slot in places if kernels[k].kernel.written[slot]]


def no_barriers(found: Plan, _: list[Lowered]) -> None:
    found.barriers = [False] * len(found.barriers)


def one_barrier_less(found: Plan, _: list[Lowered]) -> None:
    found.barriers[max(i for i, b in enumerate(found.barriers) if b)] = False


def shared_place(found: Plan, kernels: list[Lowered]) -> None:
    """An array moves, wherever it is touched, over another that is alive."""
    last_read = {id(n): k for k, lowered in enumerate(kernels) for n in lowered.memory}
    arrays = in_arena(found, kernels)
    k, slot, over = next(a for a in arrays if any(a[0] < b[0] < last_read[id(a[2])] for b in arrays))
    moves = next(b[2] for b in arrays if k < b[0] < last_read[id(over)])
    for at, lowered in enumerate(kernels):
        for i, node in enumerate(lowered.memory):
            if node is moves:
                found.places[at][i] = found.places[k][slot]


def read_elsewhere(found: Plan, kernels: list[Lowered]) -> None:
    k, slot = next(
        (k, i)
        for k, lowered in enumerate(kernels)
        for i, w in enumerate(lowered.kernel.written)
        if not w and found.places[k][i][0] == "arena"
    )
    found.places[k][slot] = "arena", found.places[k][slot][1] + 64


def too_small(found: Plan, _: list[Lowered]) -> None:
    found.arena_bytes -= 4096


def never_written(found: Plan, kernels: list[Lowered]) -> None:
    k, slot, _ = in_arena(found, kernels)[0]
    kernels[k].kernel.written[slot] = False


def read_after_the_update(found: Plan, kernels: list[Lowered]) -> None:
    """The first kernel that updates state comes first of all."""
    at = next(k for k, row in enumerate(found.places) if any(place[0] == "update" for place in row))
    reader = max(k for k, lowered in enumerate(kernels) if GRAPH.inputs[0] in lowered.memory)
    index = next(number for kind, number in found.places[at] if kind == "update" and number in found.in_place)
    kernels[reader + 1 :] = [*kernels[reader + 1 :], kernels[at]]
    found.places.append([("input", index) if place[0] == "input" else place for place in found.places[at]])
    found.barriers.append(True)


def output_elsewhere(found: Plan, _: list[Lowered]) -> None:
    for row in found.places:
        row[:] = [("arena", 0) if place[0] == "output" else place for place in row]


PLANS: dict[Callable[[Plan, list[Lowered]], None], str] = {
    no_barriers: "no barrier before kernel",
    one_barrier_less: "no barrier before kernel",
    shared_place: "is not there yet, or no more|over",
    read_elsewhere: "is not there yet, or no more",
    too_small: "ends after the memory",
    never_written: "is not there yet, or no more",
    read_after_the_update: "is not there yet, or no more",
    output_elsewhere: "is not there in the end|over|no more",
}


@pytest.mark.parametrize("breaks", PLANS, ids=lambda f: f.__name__)
def test_a_broken_plan_is_refused(breaks: Callable[[Plan, list[Lowered]], None]) -> None:
    found, kernels = planned()
    found.verify(GRAPH, kernels, AVX2, THREADS)
    breaks(found, kernels)
    with pytest.raises(NeedleError, match=f"^plan: .*({PLANS[breaks]})"):
        found.verify(GRAPH, kernels, AVX2, THREADS)


def test_each_compilation_is_verified_where_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[Plan] = []
    monkeypatch.setattr(Plan, "verify", lambda found, *_: verified.append(found))
    ndl.compile(lambda x: x * 2)(ndl.ones(2))
    assert not verified
    ndl.compile(lambda x: x * 3, check=True)(ndl.ones(2))
    monkeypatch.setenv("NEEDLE_DEBUG", "plan")
    ndl.compile(lambda x: x * 4)(ndl.ones(2))
    assert len(verified) == 2
