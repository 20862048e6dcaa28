"""Sums of products, written as letters: "ij,jk->ik" is the matrix product.

In: a text with a letter for each axis, and Values. Out: a Value. Invariant: made of movements, sums, and one product
for each further input, taken from left to right; so it has gradients of any order and needs no kernel of its own.
Next: conv.py.
"""

from collections.abc import Iterable
from math import prod
from typing import Any

from needle.errors import ArgumentError, ShapeError
from needle.ops.contract import MatMul
from needle.ops.movement import Permute, Reshape, Slice
from needle.value import shape_of

_SYNTAX = "einsum: {text!r}: {problem}; write a letter for each axis, such as 'bij,bjk->bik'"
_NO_TEXT = "einsum: the first argument is a text such as 'ij,jk->ik', not {kind}"
_AXES = "einsum: {text!r}: {term!r} names {given} axes, but its input has shape {shape}"
_SIZES = (
    "einsum: {text!r}: {letter!r} is an axis of length {first} and one of length {second}; "
    "they must be equal{alternative}"
)
_DOTS = "."
"""Stands for "..." in a text that is being read, and, with a number behind it, for one of its axes."""

Letters = tuple[str, ...]


def einsum(text: str, *inputs: Any) -> Any:
    """The sum over all letters that do not stand after "->" of the product of the inputs' elements.

    Without "->" the result has, in alphabetical order, the letters that occur once. A letter that an input has twice
    stands for its diagonal. "..." stands for any further axes, the last ones of several inputs being the same; the
    result begins with them where there is no "->", and they are summed over where they do not stand behind it. An axis
    of length 1 is repeated along one with the same letter.

    Raises:
        ArgumentError: the text cannot be read. ShapeError: letters and shapes do not fit.
    """
    written, result = _parse(text, len(inputs))
    given = [len(shape_of("einsum", value)) for value in inputs]
    for term, value, ndim in zip(written, inputs, given, strict=True):
        count = len(term) - (_DOTS in term)
        if count > ndim or (count < ndim and _DOTS not in term):
            shown = term.replace(_DOTS, "...")
            raise ShapeError(_AXES.format(text=text, term=shown, given=count, shape=value.shape))
    most = max(ndim - len(term) + 1 if _DOTS in term else 0 for term, ndim in zip(written, given, strict=True))
    terms = [_letters(term, ndim - len(term) + 1, most) for term, ndim in zip(written, given, strict=True)]
    parts = [_diagonal(text, term, value) for term, value in zip(terms, inputs, strict=True)]
    sizes = _sizes(text, parts)
    parts = [_without_ones(term, value, sizes) for term, value in parts]
    wanted = _letters(result, most, most)
    letters, total = parts[0]
    for i, (term, value) in enumerate(parts[1:], 1):
        needed = set(wanted).union(*(later for later, _ in parts[i + 1 :]))
        letters, total = _multiply(letters, total, term, value, needed, sizes)
    letters, total = _sum_out(letters, total, set(wanted))
    return _ordered(letters, total, wanted)


def _parse(text: str, count: int) -> tuple[list[str], str]:
    """The letters of each input, and of the result, with one dot for "..."."""
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ArgumentError(_NO_TEXT.format(kind=type(text).__name__))
    problem = "a '.' stands outside of '...'" if _DOTS in text.replace("...", "") else ""
    left, arrow, result = text.replace(" ", "").replace("...", _DOTS).partition("->")
    terms = left.split(",")
    if not arrow:
        once = (letter for letter in set(left) - {",", _DOTS} if left.count(letter) == 1)
        result = _DOTS * (_DOTS in left) + "".join(sorted(once))
    if len(terms) != count:
        problem = problem or f"it names {len(terms)} inputs, but {count} were given"
    for term in (*terms, result):
        shown, letters = term.replace(_DOTS, "..."), term.replace(_DOTS, "")
        if not (letters.isalpha() or not letters):
            problem = problem or f"{shown!r} is not letters only"
        elif term.count(_DOTS) > 1:
            problem = problem or f"{shown!r} has '...' twice"
    if len(set(result)) != len(result):
        problem = problem or f"the result {result.replace(_DOTS, '...')!r} has a letter twice"
    if unknown := set(result) - set(left):
        problem = problem or f"{min(unknown).replace(_DOTS, '...')!r} is in no input"
    if problem:
        raise ArgumentError(_SYNTAX.format(text=text, problem=problem))
    return terms, result


def _letters(term: str, count: int, most: int) -> Letters:
    """The letters one by one, "..." being the last `count` of `most` axes."""
    dots = [f"{_DOTS}{i}" for i in range(most - count, most)]
    return tuple(letter for each in term for letter in (dots if each == _DOTS else [each]))


def _diagonal(text: str, letters: Letters, value: Any) -> tuple[Letters, Any]:
    """`value` with one axis for each letter: of two with the same, the diagonal."""
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            i = letters.index(letter)
            j = letters.index(letter, i + 1)
            n, m = value.shape[i], value.shape[j]
            if n != m:
                raise ShapeError(_SIZES.format(text=text, letter=letter, first=n, second=m, alternative=""))
            others = [k for k in range(len(letters)) if k not in (i, j)]
            outer = tuple(value.shape[k] for k in others)
            lines = Reshape((*outer, n * n))(Permute((*others, i, j))(value))
            value = Slice((*((0, k, 1) for k in outer), (0, n, n + 1)))(lines)
            letters = (*(letters[k] for k in others), letter)
    return letters, value


def _sizes(text: str, parts: list[tuple[Letters, Any]]) -> dict[str, int]:
    """The length of each letter. Raises `ShapeError` where it has two other than 1."""
    sizes: dict[str, int] = {}
    for letters, value in parts:
        for letter, n in zip(letters, value.shape, strict=True):
            known = sizes.get(letter, 1)
            if 1 not in (known, n) and known != n:
                name = "..." if letter.startswith(_DOTS) else letter
                raise ShapeError(_SIZES.format(text=text, letter=name, first=known, second=n, alternative=", or 1"))
            sizes[letter] = n if known == 1 else known
    return sizes


def _without_ones(letters: Letters, value: Any, sizes: dict[str, int]) -> tuple[Letters, Any]:
    """`value` without axes of length 1 that are longer elsewhere: a product repeats it along these."""
    kept = tuple(letter for letter, n in zip(letters, value.shape, strict=True) if n == sizes[letter])
    return kept, value if kept == letters else Reshape(_lengths(kept, sizes))(value)


def _multiply(
    left: Letters, a: Any, right: Letters, b: Any, needed: set[str], sizes: dict[str, int]
) -> tuple[Letters, Any]:
    """The product of two inputs, summed over the letters that nobody needs afterwards."""
    left, a = _sum_out(left, a, needed | set(right))
    right, b = _sum_out(right, b, needed | set(left))
    both = [letter for letter in left if letter in right]
    batch = tuple(letter for letter in both if letter in needed)
    inner = tuple(letter for letter in both if letter not in needed)
    rows = tuple(letter for letter in left if letter not in right)
    columns = tuple(letter for letter in right if letter not in left)
    leading, (m, k, n) = _lengths(batch, sizes), (prod(_lengths(group, sizes)) for group in (rows, inner, columns))
    first = Reshape((*leading, m, k))(_ordered(left, a, batch + rows + inner))
    second = Reshape((*leading, k, n))(_ordered(right, b, batch + inner + columns))
    product = MatMul()(first, second) if inner else first * second  # with k = 1 the product is one by elements
    letters = batch + rows + columns
    return letters, Reshape(_lengths(letters, sizes))(product)


def _lengths(letters: Iterable[str], sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[letter] for letter in letters)


def _sum_out(letters: Letters, value: Any, kept: set[str]) -> tuple[Letters, Any]:
    """`value` summed over the letters that are not kept."""
    axes = tuple(i for i, letter in enumerate(letters) if letter not in kept)
    return tuple(letter for letter in letters if letter in kept), value.sum(axes) if axes else value


def _ordered(letters: Letters, value: Any, wanted: Letters) -> Any:
    return value if letters == wanted else Permute(tuple(letters.index(letter) for letter in wanted))(value)
