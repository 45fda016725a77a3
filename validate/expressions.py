"""Arithmetic in case files: numbers, names, calls and comparisons, and nothing else of Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from moesim.ground.errors import MoesimError, nearest

_BINARY: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARED: Mapping[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def evaluate(text: str, names: Mapping[str, Any]) -> Any:
    """Work out an expression over named values and functions.

    Raises
    ------
    MoesimError
        It is no expression, uses what is not allowed, or names something unknown.

    Examples
    --------
    >>> evaluate("2 * (a + 1) ** 2", {"a": 3})
    32
    >>> evaluate("1 < a < 4 and b.c >= 2", {"a": 3, "b": {"c": 2}})
    True
    >>> evaluate("[x, max(x, 2)]", {"x": 1, "max": max})
    [1, 2]
    >>> evaluate("__import__('os')", {})
    Traceback (most recent call last):
    moesim.ground.errors.MoesimError: `__import__('os')`: nothing is called `__import__`; known: none
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as flaw:
        raise MoesimError(f"`{text}` is no expression: {flaw.msg}") from None
    try:
        return _value(tree, names)
    except (MoesimError, ValueError, TypeError, ZeroDivisionError) as flaw:
        raise MoesimError(f"`{text}`: {flaw}") from flaw


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return _known(name, names)
        case ast.Attribute(value=inner, attr=name):
            return _known(name, _value(inner, names))
        case ast.List(elts=items):
            return [_value(item, names) for item in items]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, names)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, names)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _BINARY[type(sign)](_value(left, names), _value(right, names))
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, names) for part in parts)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return any(_value(part, names) for part in parts)
        case ast.Compare():
            return _compared(node, names)
        case ast.Call(func=called, args=arguments, keywords=keywords):
            named = {str(keyword.arg): _value(keyword.value, names) for keyword in keywords}
            return _value(called, names)(*(_value(argument, names) for argument in arguments), **named)
        case _:
            raise MoesimError(f"`{ast.unparse(node)}` is not arithmetic")


def _known(name: str, names: Mapping[str, Any]) -> Any:
    if name not in names:
        raise MoesimError(f"nothing is called `{name}`; {nearest(name, names) if names else 'known: none'}")
    return names[name]


def _compared(node: ast.Compare, names: Mapping[str, Any]) -> bool:
    values = [_value(part, names) for part in (node.left, *node.comparators)]
    pairs = zip(values, values[1:], node.ops, strict=False)
    return all(_COMPARED[type(sign)](left, right) for left, right, sign in pairs)
