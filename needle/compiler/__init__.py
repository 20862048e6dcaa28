"""From a Graph to a native function, step by step; each is one file that exports one verb.

In: a Graph from a trace. Out: a Program. Next: graph.py.
"""

import gc

from needle.compiler.axes import is_serial
from needle.compiler.bundle import bundle
from needle.compiler.chain import chain
from needle.compiler.fuse import fuse
from needle.compiler.graph import Graph
from needle.compiler.loop import settle
from needle.compiler.lower import lower
from needle.compiler.plan import plan
from needle.compiler.program import Program, host_machine
from needle.compiler.recompute import recompute
from needle.compiler.reroll import reroll
from needle.config import thread_count

__all__ = ["Program", "build"]


def build(graph: Graph, threads: int | None = None) -> Program:
    """Settle (which simplifies), reroll, recompute, fuse, lower, bundle, chain, plan, emit."""
    collects = gc.isenabled()
    gc.disable()  # nothing becomes garbage before all is done
    try:
        return _build(graph, threads)
    finally:
        if collects:
            gc.enable()


def _build(graph: Graph, threads: int | None) -> Program:
    graph.verify()
    graph = recompute(reroll(settle(graph)))
    graph.verify()
    grouping = fuse(graph)
    grouping.verify()
    kernels, chains = chain(bundle(lower(grouping)), graph)
    grouping.leaves.clear()
    for lowered in kernels:
        lowered.forget()
    alone = all(is_serial(lowered.kernel) for lowered in kernels)  # then there is nothing to wake others for
    threads = 1 if alone else threads or thread_count()
    return Program(graph, grouping, kernels, plan(graph, kernels, chains, host_machine(), threads), threads)
