"""Programs whose artefacts are kept as text, so that a change of the compiler shows in them.

In: nothing. Out: PROGRAMS, each a function and the shapes of its arguments; `artefacts` gives what became of one.
Invariant: small shapes, so that a person can check the text. `python tests/compiled_programs.py` prints the tables of
test_graph.py and test_kernel.py as they would be now. Next: test_graph.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import needle as ndl
from interpreted import Interpreted, built_by, compile_module

Tensor = ndl.Tensor


@dataclass(frozen=True)
class Example:
    """A function, and (shape, dtype) of its arguments."""

    function: Callable[..., Any]
    arguments: tuple[tuple[tuple[int, ...], str], ...]

    def tensors(self) -> list[Tensor]:
        """Arguments of ones."""
        return [Tensor(np.ones(shape, dtype), requires_grad=dtype == "float32") for shape, dtype in self.arguments]


def example(*arguments: Any) -> Callable[[Any], Any]:
    """A shape, or a (shape, dtype), for each argument."""

    def add(function: Any) -> Any:
        full = tuple(a if len(a) == 2 and isinstance(a[1], str) else (a, "float32") for a in arguments)
        PROGRAMS[function.__name__] = Example(function, full)
        return function

    return add


PROGRAMS: dict[str, Example] = {}


@example((4, 5))
def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + ndl.tanh(0.7978845608 * (x + 0.044715 * x**3)))


@example((4, 5))
def softmax(x: Tensor) -> Tensor:
    e = ndl.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@example((4, 5), (5,), (5,))
def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    centered = x - x.mean(1, keepdims=True)
    variance = (centered * centered).mean(1, keepdims=True)
    return centered / ndl.sqrt(variance + 1e-5) * scale + shift


@example((4, 5), (5,))
def column_statistics(x: Tensor, scale: Tensor) -> list[Tensor]:
    return [x.sum(0) * scale, (x * x).sum(0), x.max(), x.sum((0, 1), keepdims=True)]


@example((8, 3), (3, 5), (5,))
def product_with_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ndl.relu(x @ weight + bias)


@example((2, 3, 4), (2, 3, 4))
def scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.transpose() * 0.5


@example((8, 15))
def heads(x: Tensor) -> Tensor:
    return x.reshape((2, 4, 3, 5)).permute((0, 2, 1, 3)).reshape((6, 20))


@example((7, 3), ((5,), "int64"))
def embedding_gradient(table: Tensor, index: Tensor) -> Tensor:
    rows = ndl.gather(table, index)
    (rows * rows).sum().backward()
    return table.grad


@example((3, 4))
def slice_gradient(x: Tensor) -> Tensor:
    (x[1:, ::-2] ** 2).sum().backward()
    return x.grad


weight, velocity = Tensor(np.ones((3, 4), "float32")), Tensor(np.ones((3, 4), "float32"))


@example((3, 4))
def momentum(gradient: Tensor) -> None:
    velocity.data = 0.9 * velocity + gradient
    weight.data = weight - 0.1 * velocity


bias = Tensor(np.ones((5,), "float32"), requires_grad=True)
optimizer = ndl.optim.SGD([bias], lr=0.1)


@example((4, 5), ((4,), "int64"))
def classify(x: Tensor, labels: Tensor) -> Tensor:
    optimizer.reset_grad()
    loss = -(ndl.logsoftmax(x + bias) * ndl.init.one_hot(5, labels)).sum() / 4
    loss.backward()
    optimizer.step()
    return loss


def artefacts(name: str) -> tuple[str, str]:
    """The simplified graph (without the user's lines) and the kernels of a program."""
    chosen = PROGRAMS[name]
    step = compile_module.compile(chosen.function)
    with built_by(Interpreted):
        step(*chosen.tensors())
    program = step.last.program
    graph = "\n".join(line.split("  # ")[0].rstrip() for line in str(program.simple).splitlines())
    return graph, "\n".join(str(lowered.kernel) for lowered in program.kernels)


def table(which: int) -> str:
    """A table: names, and their artefact below them, indented."""
    rows = {name: artefacts(name)[which] for name in PROGRAMS}
    return "".join(f"{name}\n" + "".join(f"    {line}\n" for line in text.splitlines()) for name, text in rows.items())


def read(text: str) -> dict[str, str]:
    """The artefacts of a table, by name."""
    found: dict[str, list[str]] = {}
    for line in text.strip("\n").splitlines():
        if line.startswith("    "):
            found[list(found)[-1]].append(line[4:])
        else:
            found[line] = []
    return {name: "\n".join(lines) for name, lines in found.items()}


if __name__ == "__main__":
    print(table(0), table(1), sep="\n" * 3)
