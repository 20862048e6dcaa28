"""From a Graph to a native function, in six steps; each is one file that exports one verb.

In: a Graph from a trace. Out: a Program. Next: graph.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from needle.compiler.fuse import Grouping, fuse
from needle.compiler.graph import Graph, Input
from needle.compiler.interpret import interpret
from needle.compiler.lower import Lowered, lower
from needle.compiler.simplify import simplify
from needle.dtype import Array


class Program:
    """What can be run, and every artefact on the way to it."""

    def __init__(self, graph: Graph, grouping: Grouping, kernels: list[Lowered]) -> None:
        self.graph, self.grouping, self.kernels = graph, grouping, kernels

    def run(self, arrays: Sequence[Array], numbers: Sequence[float]) -> tuple[list[Array], dict[int, Array]]:
        memory: dict[Any, Array] = {}
        for lowered in self.kernels:
            slots = []
            for node, written in zip(lowered.memory, lowered.kernel.written, strict=True):
                if isinstance(node.op, Input):
                    slots.append(np.ascontiguousarray(arrays[node.op.index]).reshape(-1))
                else:
                    if written:
                        memory[id(node)] = np.empty(node.shape, node.dtype).reshape(-1)
                    slots.append(memory[id(node)])
            interpret(lowered.kernel, slots, numbers)
        def get(n):
            return arrays[n.op.index].copy() if isinstance(n.op, Input) else memory[id(n)].reshape(n.shape)
        return [get(n) for n in self.graph.outputs], {i: get(n) for i, n in self.graph.updates.items()}


def build(graph: Graph, names: Sequence[str] = ()) -> Program:
    """The six steps, in order."""
    graph.verify()
    graph = simplify(graph)
    graph.verify()
    grouping = fuse(graph)
    return Program(graph, grouping, lower(grouping))
