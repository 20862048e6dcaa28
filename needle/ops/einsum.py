"""Sums of products, written as letters: "ij,jk->ik" is the matrix product.

In: a text with a letter for each axis, and Values. Out: a Value. Invariant: made of transposes, sums, and one product
for each further input, taken from left to right; so it has gradients of any order and needs no kernel of its own.
Next: conv.py.
"""

from collections.abc import Iterable
from math import prod
from typing import Any

from needle.errors import ArgumentError, ShapeError
from needle.ops.contract import MatMul
from needle.ops.movement import Permute, Reshape
from needle.value import shape_of

_SYNTAX = "einsum: {text!r}: {problem}; write a letter for each axis, such as 'bij,bjk->bik'"
_NO_TEXT = "einsum: the first argument is a text such as 'ij,jk->ik', not {kind}"
_AXES = "einsum: {text!r}: {term!r} names {given} axes, but its input has shape {shape}"
_SIZES = "einsum: {text!r}: {letter!r} is an axis of length {first} and one of length {second}; they must be equal"


def einsum(text: str, *inputs: Any) -> Any:
    """The sum over all letters that do not stand after "->" of the product of the inputs' elements.

    Without "->" the result has, in alphabetical order, the letters that occur once. A letter may occur once in each
    input; "..." is not known.

    Raises:
        ArgumentError: the text cannot be read. ShapeError: letters and shapes do not fit.
    """
    terms, result = _parse(text, len(inputs))
    sizes: dict[str, int] = {}
    for term, value in zip(terms, inputs, strict=True):
        if len(term) != len(shape_of("einsum", value)):
            raise ShapeError(_AXES.format(text=text, term=term, given=len(term), shape=value.shape))
        for letter, n in zip(term, value.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                raise ShapeError(_SIZES.format(text=text, letter=letter, first=sizes[letter], second=n))
    letters, total = terms[0], inputs[0]
    for i in range(1, len(terms)):
        needed = set(result).union(*terms[i + 1 :])
        letters, total = _multiply(letters, total, terms[i], inputs[i], needed, sizes)
    letters, total = _sum_out(letters, total, set(result))
    return _ordered(letters, total, result)


def _parse(text: str, count: int) -> tuple[list[str], str]:
    """The letters of each input, and of the result."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_NO_TEXT.format(kind=type(text).__name__))
    left, arrow, result = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        joined = "".join(terms)
        result = "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    problem = ""
    if len(terms) != count:
        problem = f"it names {len(terms)} inputs, but {count} were given"
    for term in (*terms, result):
        if not (term.isalpha() or not term):
            problem = f"{term!r} is not letters only"
        elif len(set(term)) != len(term):
            problem = f"{term!r} has a letter twice"
    if not problem and (unknown := set(result) - set(left)):
        problem = f"{min(unknown)!r} is in no input"
    if problem:
        raise ArgumentError(_SYNTAX.format(text=text, problem=problem))
    return terms, result


def _multiply(left: str, a: Any, right: str, b: Any, needed: set[str], sizes: dict[str, int]) -> tuple[str, Any]:
    """The product of two inputs, summed over the letters that nobody needs afterwards."""
    left, a = _sum_out(left, a, needed | set(right))
    right, b = _sum_out(right, b, needed | set(left))
    both = [letter for letter in left if letter in right]
    batch = "".join(letter for letter in both if letter in needed)
    inner = "".join(letter for letter in both if letter not in needed)
    rows = "".join(letter for letter in left if letter not in right)
    columns = "".join(letter for letter in right if letter not in left)
    leading, (m, k, n) = _lengths(batch, sizes), (prod(_lengths(group, sizes)) for group in (rows, inner, columns))
    first = Reshape((*leading, m, k))(_ordered(left, a, batch + rows + inner))
    second = Reshape((*leading, k, n))(_ordered(right, b, batch + inner + columns))
    product = MatMul()(first, second) if inner else first * second  # with k = 1 the product is one by elements
    letters = batch + rows + columns
    return letters, Reshape(_lengths(letters, sizes))(product)


def _lengths(letters: Iterable[str], sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in letters)


def _sum_out(letters: str, value: Any, kept: set[str]) -> tuple[str, Any]:
    """`value` summed over the letters that are not kept."""
    axes = tuple(i for i, letter in enumerate(letters) if letter not in kept)
    return "".join(letter for letter in letters if letter in kept), value.sum(axes) if axes else value


def _ordered(letters: str, value: Any, wanted: str) -> Any:
    return value if letters == wanted else Permute(tuple(letters.index(letter) for letter in wanted))(value)
