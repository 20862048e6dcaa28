"""Roots: which nodes must exist in memory, or must be combined from many elements.

In: a Graph. Out: its roots. Invariant: everything else is written into the loops of whoever needs it. Next: fuse.py.

    products and reductions; what a product, a gather or a general reshape reads; outputs and updates;
    an expensive or long expression that several roots need; a large product, added to others.
"""

from math import prod

from needle.compiler.graph import Graph, Node
from needle.compiler.index import is_unit_reshape, storage
from needle.compiler.loop import LoopResult, consecutive
from needle.compiler.opaque import Opaque
from needle.errors import TraceError
from needle.ops import (
    Add,
    Assemble,
    Cos,
    Embed,
    Erf,
    Exp,
    Gather,
    Log,
    MatMul,
    Permute,
    Power,
    PowerScalar,
    Reshape,
    ScatterAdd,
    Sigmoid,
    Sin,
    Tanh,
)
from needle.ops.create import Creation, Uniform
from needle.value import Contraction, Elementwise, Movement, Op, Reduction

EXPENSIVE = (Exp, Log, Tanh, Sigmoid, Power, Sin, Cos, Erf, Uniform)
LONG = 8
"""How many virtual nodes an expression may have before several users share it through memory."""

SPREAD = 24
"""The same for an expression of a single array of its size: who needs it reads that array in its place."""

HEAVY = 1 << 20
"""Elements from which on products are added up one after the other; smaller ones may wait in the cache."""

ROW = 16
"""Elements of an innermost axis that are worth to be written elsewhere, as they are made."""

OFTEN, FEW_ROWS = 4, 128
"""A right side is turned over once for all products if there are so many of them with fewer rows than that."""

HUGE = 128
"""How many it may have before it is stored even for a single user: the stages after this one walk it by recursion."""

DEEP = 24
"""What an op counts whose `compute` is itself a long expression."""

_UNSUPPORTED = (
    "{site}: {op} cannot be compiled yet. Leave the function that uses it without ndl.compile, "
    "or compute this part outside and pass it as an argument"
)


def find_roots(graph: Graph) -> tuple[set[int], set[int]]:
    """The nodes that must be computed where they stand, and those among them that must be stored for their size."""
    nodes = graph.nodes()
    users: dict[int, int] = {}
    for node in nodes:
        for a in node.inputs:
            users[id(a)] = users.get(id(a), 0) + 1
    roots = {id(n) for n in [*graph.outputs, *graph.updates.values()]}
    for node in nodes:
        if isinstance(node.op, Contraction):
            roots |= {id(storage(a, roots)) for a in node.inputs} | {id(node)}
        elif isinstance(node.op, Reduction):
            roots.add(id(node))
        elif isinstance(node.op, Reshape) and not is_unit_reshape(node):
            roots.add(id(consecutive(node)))
        elif isinstance(node.op, Gather):
            roots |= {id(consecutive(node.inputs[0])), id(node)}
        elif isinstance(node.op, ScatterAdd | Embed | Assemble):
            roots.add(id(node))
        elif isinstance(node.op, Opaque):
            roots |= {id(node), *map(id, node.inputs)}
        elif isinstance(node.op, LoopResult):
            roots |= {id(node), *map(id, node.inputs[node.op.loop.carries :])}
        elif isinstance(node.op, Add) and _adds_products(node, roots, users):
            roots.add(id(node))
        elif not isinstance(node.op, Elementwise | Movement | Creation):
            raise TraceError(_UNSUPPORTED.format(site=node.site, op=node.op))
    weight: dict[int, int] = {}
    arrays: dict[int, set[int]] = {}
    huge: set[int] = set()
    for node in nodes:
        own = LONG if is_costly(node.op) else 1
        own = DEEP if isinstance(node.op, Erf) else own
        weight[id(node)] = own + sum(weight.get(id(a), 0) for a in node.inputs)
        arrays[id(node)] = _arrays(node, arrays, roots | huge)
        costly = own >= LONG or weight[id(node)] > (SPREAD if len(arrays[id(node)]) < 2 else LONG)
        shared = users.get(id(node), 0) > 1 and costly
        if weight[id(node)] > HUGE and isinstance(node.op, Elementwise):
            huge.add(id(node))
        if shared and isinstance(node.op, Elementwise | Uniform):
            roots.add(id(node))
        if id(node) in roots or id(node) in huge:
            weight[id(node)] = 1
    roots |= _often_turned(nodes)
    moved_rows = [n.inputs[0] for n in nodes if id(n) in roots and keeps_rows(n)]
    roots |= huge | {id(n) for n in moved_rows if isinstance(n.op, Elementwise)}
    return roots | _early(graph, roots, weight), huge


def _often_turned(nodes: list[Node]) -> set[int]:
    """Right sides that many small products, such as the steps of a sequence, would each turn over as they pack them."""
    products: dict[int, int] = {}
    for node in nodes:
        if isinstance(node.op, MatMul) and isinstance(node.inputs[1].op, Permute) and len(node.inputs[1].shape) == 2:
            few = prod(node.shape) < FEW_ROWS * node.shape[-1]
            products[id(node.inputs[1])] = products.get(id(node.inputs[1]), 0) + few
    return {name for name, count in products.items() if count >= OFTEN}


def _early(graph: Graph, roots: set[int], weight: dict[int, int]) -> set[int]:
    """Costly functions of a product, such as the slope of an activation, which other loops will want, while nobody will
    want the product: computed and stored in the loops that make it, they take its place."""
    product_of: dict[int, Node] = {}  # what is a function of one product alone
    wanted: dict[int, list[Node]] = {}  # of each product, which of its functions others read
    for node in graph.nodes():
        large = [a for a in node.inputs if prod(a.shape) >= prod(node.shape) and not isinstance(a.op, Creation)]
        products = [product_of.get(id(a)) for a in large]
        own = products[0] if products and all(p is products[0] for p in products) else None
        inside = isinstance(node.op, Elementwise) and own is not None and own.shape == node.shape
        if isinstance(node.op, Contraction):
            product_of[id(node)] = node
        elif inside and own is not None and id(node) not in roots:
            product_of[id(node)] = own
        for a, product in zip(large, products, strict=True):
            if product is not None and not inside and a not in wanted.setdefault(id(product), []):
                wanted[id(product)].append(a)
    found = (of[0] for of in wanted.values() if len(of) == 1)
    return {id(node) for node in found if weight[id(node)] >= DEEP}


def read_in_order(graph: Graph, roots: set[int]) -> set[int]:
    """The roots under general reshapes, and what is read at indices or by Python."""
    found: set[int] = set()
    for node in graph.nodes():
        if isinstance(node.op, Opaque | LoopResult):
            found |= set(map(id, node.inputs))
        elif isinstance(node.op, Gather) or (isinstance(node.op, Reshape) and not is_unit_reshape(node)):
            found.add(id(storage(node.inputs[0], roots)))
    return found


def _adds_products(node: Node, roots: set[int], users: dict[int, int]) -> bool:
    """Whether a large product is added to others. Then it is best added where it is made: a sum of many so takes no
    more memory than one."""
    if prod(node.shape) < HEAVY or not any(isinstance(x.op, Contraction) and users[id(x)] == 1 for x in node.inputs):
        return False
    terms = [storage(x, roots) for x in node.inputs]
    return all(isinstance(x.op, Contraction | Add) and id(x) in roots for x in terms)


def _arrays(node: Node, arrays: dict[int, set[int]], roots: set[int]) -> set[int]:
    """The stored arrays, at least as large as the node, that its expression reads."""
    found: set[int] = set()
    for a in node.inputs:
        if prod(a.shape) >= prod(node.shape):
            stored = id(a) in roots or id(a) not in arrays or isinstance(a.op, Reshape)
            found |= {id(a)} if stored else arrays[id(a)]
    return found


def is_costly(op: Op) -> bool:
    """Whether an elementwise op takes far longer than a multiplication."""
    return isinstance(op, EXPENSIVE) or (isinstance(op, PowerScalar) and op.scalar not in (2, 0.5, -1, -0.5))


def keeps_rows(node: Node) -> bool:
    """Whether a Permute only moves rows, so that they are written as fast as in any other place."""
    last = len(node.shape) - 1
    return isinstance(node.op, Permute) and node.op.axes[last] == last and node.shape[last] >= ROW
