"""The compiled loop over matrices that reads each of them once and sums products of them along rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any, Final, TypeAlias

import numpy as np

ROWS: Final = 64
"""Rows whose products are added up in the matrices' own precision before float64 takes them."""

COLUMNS: Final = 2048
"""Columns of one row that are added up so."""

FAST: Final = {"reassoc", "contract", "arcp", "nsz"}
"""What the compiler may do to sums: any order. Infinities and NaN stay what they are."""


Leaves: TypeAlias = tuple[tuple[int, ...], ...]
"""By number, a matrix x, (x,), or a quotient x / (√y + number), (x, y)."""

Bodies: TypeAlias = tuple[tuple[int, ...], ...]
"""By number, a leaf, or a leaf + Σ number · leaf."""

Products: TypeAlias = tuple[tuple[int, int, bool, bool], ...]
"""Two bodies; whether the sums of their product's rows are wanted, and of its columns."""

Plan: TypeAlias = tuple[Leaves, Bodies, Products]
"""What is to be summed. The numbers are taken in the order in which leaves, then bodies, mention them."""


@cache
def kernel(plan: Plan, dtype: type) -> Callable[..., None]:
    """``kernel(addresses, numbers, factor, rows, columns, width, first, last)`` of matrices that lie row by row.

    Adds factor · the sums that rows [first, last) give to ``rows``, (products, height), and ``columns``, (products,
    width). Others may run meanwhile: it holds no lock of Python's.
    """
    from numba import carray, njit  # pyright: ignore[reportPrivateImportUsage]
    from numba.core import cgutils, types
    from numba.extending import intrinsic

    def at(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(address), generate

    pointer: Any = intrinsic(at)

    @njit
    def matrix(address: int, height: int, width: int) -> Any:
        return carray(pointer(address), (height, width), dtype)

    written: dict[str, Any] = {"np": np, "matrix": matrix, "number": dtype}
    exec(source(plan), written)
    return njit(fastmath=FAST, nogil=True, error_model="numpy")(written["kernel"])


def source(plan: Plan) -> str:
    """The loop in Python; its inner one counts from zero, or numba would not make vectors of it.

    >>> print(source((((0,),), ((0,),), ((0, 0, True, True),))))
    def kernel(addresses, numbers, factor, rows, columns, width, first, last):
        part = np.zeros(columns.shape, number)
        whole0 = matrix(addresses[0], last, width)
        for top in range(first, last, 64):
            for i in range(top, min(top + 64, last)):
                for left in range(0, width, 2048):
                    right = min(left + 2048, width)
                    m0 = whole0[i, left:right]
                    p0 = part[0, left:right]
                    r0 = number(0)
                    for j in range(right - left):
                        l0 = m0[j]
                        b0 = l0
                        t0 = b0 * b0
                        r0 += t0
                        p0[j] += t0
                    rows[0, i] += factor * r0
            for j in range(width):
                columns[0, j] += factor * part[0, j]
                part[0, j] = 0
    """
    leaves, bodies, products = plan
    c = count()
    loop = []
    for k, (x, *below) in enumerate(leaves):
        over = f" / (np.sqrt(m{below[0]}[j]) + c{next(c)})" if below else ""
        loop.append(f"l{k} = m{x}[j]{over}")
    for k, (leaf, *others) in enumerate(bodies):
        loop.append(f"b{k} = " + " + ".join([f"l{leaf}", *(f"c{next(c)} * l{other}" for other in others)]))
    for k, (x, y, by_row, by_column) in enumerate(products):
        loop.append(f"t{k} = b{x} * b{y}")
        loop += [f"r{k} += t{k}"] * by_row + [f"p{k}[j] += t{k}"] * by_column
    matrices = range(1 + max(x for leaf in leaves for x in leaf))
    rows = [k for k, (_, _, by_row, _) in enumerate(products) if by_row]
    columns = [k for k, (_, _, _, by_column) in enumerate(products) if by_column]
    lines = [
        "def kernel(addresses, numbers, factor, rows, columns, width, first, last):",
        "    part = np.zeros(columns.shape, number)",
        *(f"    whole{k} = matrix(addresses[{k}], last, width)" for k in matrices),
        *(f"    c{k} = number(numbers[{k}])" for k in range(next(c))),
        f"    for top in range(first, last, {ROWS}):",
        f"        for i in range(top, min(top + {ROWS}, last)):",
        f"            for left in range(0, width, {COLUMNS}):",
        f"                right = min(left + {COLUMNS}, width)",
        *(f"                m{k} = whole{k}[i, left:right]" for k in matrices),
        *(f"                p{k} = part[{k}, left:right]" for k in columns),
        *(f"                r{k} = number(0)" for k in rows),
        "                for j in range(right - left):",
        *(f"                    {line}" for line in loop),
        *(f"                rows[{k}, i] += factor * r{k}" for k in rows),
    ]
    for k in columns:
        lines += ["        for j in range(width):", f"            columns[{k}, j] += factor * part[{k}, j]"]
        lines += [f"            part[{k}, j] = 0"]
    return "\n".join(lines)
