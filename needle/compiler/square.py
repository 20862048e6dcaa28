"""Square: as many lines as a vector has lanes, transposed in registers.

In: a dtype and a number of lanes. Out: a function in LLVM IR, which all kernels of a program share.
Next: turned.py, then pack.py.
"""

import functools

from needle.compiler.code import INT, Code, Reg, integer
from needle.dtype import DType


@functools.cache
def square(dtype: DType, lanes: int) -> tuple[str, set[str]]:
    """The name and text of a function that transposes a square; all products of a program share it.

    It reads `lanes` lines that are %stride apart, %left elements of each; behind line %last that one again, because
    nobody looks there. It writes them as columns of lines that are %step apart.
    """
    c = Code(f"square_{dtype.name}_{lanes}", ["ptr %from", "ptr %to", *(f"i64 %{n}" for n in _SQUARE)])
    stride, last, step, left = (Reg(f"%{name}", INT) for name in _SQUARE)
    mask = c.compare("lt", c.lane_numbers(lanes), left)
    lines: list[Reg] = []
    for i in range(lanes):
        line = Reg(c.make(c.call("llvm.umin.i64", "i64", integer(i), last), INT).text, INT)
        at = c.make(f"mul nsw i64 {line.text}, {stride.text}", INT)
        lines.append(c.load(c.address("%from", at, dtype), dtype, lanes, mask))
    for i, turned in enumerate(transpose(c, lines)):
        c.store(turned, c.address("%to", c.mul(step, i), dtype))
    return c.name, {*c.declared, c.text().replace("define void", "define internal void")}


_SQUARE = ("stride", "last", "step", "left")


def transpose(c: Code, lines: list[Reg]) -> list[Reg]:
    """A square of as many vectors as they have lanes, transposed: blocks of 1, 2, 4 ... change places."""
    lines, lanes, step = list(lines), len(lines), 1
    while step < lanes:
        first = ", ".join(f"i32 {lanes + k - step if k & step else k}" for k in range(lanes))
        second = ", ".join(f"i32 {lanes + k if k & step else k + step}" for k in range(lanes))
        for i in (i for i in range(lanes) if not i & step):
            a, b = lines[i], lines[i + step]
            for at, chosen in ((i, first), (i + step, second)):
                text = f"shufflevector {a}, {b}, <{lanes} x i32> <{chosen}>"
                lines[at] = c.make(text, a.dtype, lanes)
        step *= 2
    return lines
