"""Expressions over a table's columns: `cloud_cover < 20 and country in ['FR', 'ES'] and not night`.

Comparisons (also `10 < a <= 20`), `in`, `not in`, `and`, `or`, `not`, brackets,
numbers, texts, True and False; a name is a column, in backticks if it is no
Python name: `` `eo:cloud_cover` ``. A time is compared with a text in ISO 8601,
UTC. What a missing value decides is unknown, and what is unknown is not allowed.
Python's own parser reads them; nothing is ever evaluated as Python.
"""

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.errors import RequestError

LONGEST = 10_000  # characters
COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def names_in(text: str) -> list[str]:
    """The columns that an expression names, in their order.

    Raises:
        RequestError: it is no expression.
    """
    tree, quoted = _parse(text)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names.sort(key=lambda node: (node.lineno, node.col_offset))
    return list(dict.fromkeys(quoted.get(node.id, node.id) for node in names))


def compile_filter(text: str, schema: pa.Schema) -> pc.Expression:
    """The expression for `pyarrow.Table.filter`.

    Args:
        text: what the user wrote.
        schema: of the columns that it names.

    Raises:
        RequestError: it holds something else than the module lists, or compares what cannot be compared.
    """
    tree, quoted = _parse(text)
    try:
        found = _Compiler(text, schema, quoted).condition(tree)
        schema.empty_table().filter(found)  # do the types fit?
    except (pa.ArrowException, TypeError, RecursionError) as error:
        raise _wrong(text, str(error).splitlines()[0]) from error
    return found


def _parse(text: str) -> tuple[ast.expr, dict[str, str]]:
    """The tree, and the column that each name made up for one in backticks stands for."""
    quoted: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]  # a text
        made = f"_column_{len(quoted)}_"
        quoted[made] = match[1]
        return made

    if len(text) > LONGEST:
        raise RequestError(f"archive.filter has {len(text)} characters; {LONGEST} at most")
    plain = re.sub(r"`([^`]+)`|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", name, text)
    try:
        return ast.parse(plain.strip(), mode="eval").body, quoted
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError) as error:
        raise _wrong(text, str(getattr(error, "msg", error))) from error


def _wrong(text: str, why: str) -> RequestError:
    return RequestError(f"archive.filter={text}: {why}")


class _Compiler:
    """Turns a tree into Arrow's expression, and refuses what is not on the list."""

    def __init__(self, text: str, schema: pa.Schema, quoted: dict[str, str]) -> None:
        self.text, self.schema, self.quoted = text, schema, quoted

    def condition(self, node: ast.expr) -> Any:
        """A node that is true or false."""
        if isinstance(node, ast.BoolOp):
            conditions = [self.condition(value) for value in node.values]
            joined = conditions[0]
            for other in conditions[1:]:
                joined = joined & other if isinstance(node.op, ast.And) else joined | other
            return joined
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.Name):
            if not pa.types.is_boolean(self._type(node)):
                raise self._refuse(node, "is no column of true and false: compare it with something")
            return self._field(node)
        raise self._refuse(node, "is not understood: see docs/formats.md for what a filter can say")

    def _compare(self, node: ast.Compare) -> Any:
        """`a < b < c` is `a < b and b < c`."""
        joined: Any = None
        sides = [node.left, *node.comparators]
        for left, op, right in zip(sides, node.ops, sides[1:], strict=False):
            if isinstance(op, ast.In | ast.NotIn):
                found = self._within(left, right)
                found = ~found if isinstance(op, ast.NotIn) else found
            elif type(op) in COMPARE:
                found = COMPARE[type(op)](self._value(left, right), self._value(right, left))
            else:
                raise self._refuse(node, "is not understood: compare with ==, !=, <, <=, >, >=, in or not in")
            joined = found if joined is None else joined & found
        return joined

    def _within(self, left: ast.expr, right: ast.expr) -> Any:
        if not isinstance(left, ast.Name) or not isinstance(right, ast.List | ast.Tuple):
            raise self._refuse(right, "is not understood: write column in [value, value]")
        values = [self._literal(value, self._type(left)) for value in right.elts]
        listed = pa.array([value.as_py() for value in values], self._type(left))
        nothing = pc.scalar(pa.scalar(None, pa.bool_()))  # isin calls a missing value no member
        return pc.if_else(self._field(left).is_valid(), self._field(left).isin(listed), nothing)

    def _value(self, node: ast.expr, other: ast.expr) -> Any:
        """A column, or a literal of the type of the column on the other side."""
        if isinstance(node, ast.Name):
            return self._field(node)
        if not isinstance(other, ast.Name):
            raise self._refuse(node, "is compared with no column")
        return pc.scalar(self._literal(node, self._type(other)))

    def _literal(self, node: ast.expr, like: pa.DataType) -> pa.Scalar:
        """A number, text or truth."""
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        constant = node.operand if isinstance(node, ast.UnaryOp) and negative else node
        if not isinstance(constant, ast.Constant) or not isinstance(constant.value, bool | int | float | str):
            raise self._refuse(node, "is no number, text, True, False or column")
        value = constant.value
        if negative:
            if isinstance(value, bool | str):
                raise self._refuse(node, "is no number")
            value = -value
        number = pa.types.is_integer(like) or pa.types.is_floating(like) or pa.types.is_decimal(like)
        if number if isinstance(value, str) else pa.types.is_string(like) or pa.types.is_large_string(like):
            raise self._refuse(node, f"is compared with a column of {like}")
        if isinstance(value, str) and pa.types.is_temporal(like):
            try:
                moment = pa.scalar(value).cast(pa.timestamp("us"))
                return pc.assume_timezone(moment, "UTC") if getattr(like, "tz", None) else moment
            except pa.ArrowException as error:
                raise self._refuse(node, "is no time: write it as 2020-01-31 or 2020-01-31 12:00:00") from error
        return pa.scalar(value)

    def _name(self, node: ast.Name) -> str:
        return self.quoted.get(node.id, node.id)

    def _field(self, node: ast.Name) -> Any:
        return pc.field(self._name(node))

    def _type(self, node: ast.Name) -> pa.DataType:
        return self.schema.field(self._name(node)).type

    def _refuse(self, node: ast.expr, why: str) -> RequestError:
        shown = ast.unparse(node)
        for made, name in self.quoted.items():
            shown = shown.replace(made, f"`{name}`")
        return _wrong(self.text, f"{shown} {why}")
