"""The one door to pydantic: plain trees in, records out, and every fault of a file at once.

A record's own annotations are the schema: `bandwidth: BytesPerSecond` reads ``450 GB/s``, a field without a default
must be given, and no other field may be. *Readers* turn a value into a record by name (a node, a policy); *rules*
name what is wrong with a record whose fields are each right (a degree that does not divide).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from moesim.files.trees import Tree
from moesim.ground.errors import Fault, InputError, UnitError, nearest
from moesim.ground.units import EXAMPLES, Unit, parse

T = TypeVar("T")
K = TypeVar("K", str, int)
Reader = Callable[[Tree], Any]
Rule = Callable[[Any], Iterable[tuple[str, str, str]]]
Readers = Mapping[Any, Reader]
Rules = Mapping[type, Rule]

NEVER_ZERO = ("B/s", "FLOP/s")
"""Units in which zero has no meaning: a transfer over it would last for ever."""

UNKNOWN_FIELD = "unknown field"


def check(
    kind: type[T],
    tree: Tree,
    file: str,
    *,
    error: type[InputError] = InputError,
    readers: Readers | None = None,
    rules: Rules | None = None,
    also: Sequence[Fault] = (),
    only_known: bool = True,
) -> T:
    """Turn a plain tree into a record, or raise with all that is wrong with it.

    Parameters
    ----------
    kind : type
        A dataclass; its annotations say what is expected.
    tree : Tree
        Mappings, lists, text and numbers, as read from a file.
    file : str
        How messages name the file.
    error : type of InputError
        What to raise.
    readers : mapping from type, or (dataclass, field), to function, optional
        Fields of that type, or that field, are read by the function, which raises `InputError` for what it refuses.
    rules : mapping from dataclass to function, optional
        Faults of a record as (field, problem, remedy), looked for once its own fields are right.
    also : sequence of Fault
        Faults already found in the same file; raised together with those found here.
    only_known : bool
        Whether a field that the record does not have is a fault.

    Raises
    ------
    InputError
        With every fault found.
    """
    reading = _Reading(file=file, readers=readers or {}, rules=rules or {})
    try:
        made = _adapter(cast(Hashable, kind), frozenset(reading.readers), only_known).validate_python(
            tree, context=reading
        )
    except ValidationError as flaw:
        found = [fault for detail in flaw.errors() for fault in _faults(detail, kind)]
        unknown = {fault.path for fault in found if fault.problem == UNKNOWN_FIELD}
        raise error(file, [*(fault for fault in also if fault.path not in unknown), *found]) from None
    if also:
        raise error(file, also)
    return cast(T, made)


def refuse(file: str, problem: str, remedy: str = "", path: str = "") -> InputError:
    """Make the error of a single fault; a reader raises it."""
    return InputError(file, [Fault(path=path, problem=problem, remedy=remedy)])


def count(value: Tree, file: str, *, least: int = 1) -> int:
    """Read a whole number that may not be below a least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise refuse(file, f"{shown(value)} is not a whole number of at least {least}", "write a count, such as 8")
    return value


def by_name(file: str, name: str, load: Callable[[], T]) -> T:
    """Load something by name; that there is no such name is the fault of the file that names it."""
    try:
        return load()
    except InputError as flaw:
        if flaw.file == name:
            raise InputError(file, flaw.faults) from None
        raise


def not_positive(record: object, *names: str) -> Iterator[tuple[str, str, str]]:
    """Find the fields of a record that are zero and must not be."""
    for name in names:
        if getattr(record, name) <= 0:
            yield name, "is zero", "give more than zero"


def below(path: str, faults: Iterable[Fault]) -> list[Fault]:
    """Move faults below a path."""
    return [
        Fault(path=".".join(filter(None, (path, fault.path))), problem=fault.problem, remedy=fault.remedy)
        for fault in faults
    ]


def gather(file: str, items: Iterable[tuple[K, Tree]], read: Callable[[K, Tree], T]) -> dict[K, T]:
    """Read items one after another, and raise the faults of all of them together, each below its item's key."""
    found: dict[K, T] = {}
    faults: list[Fault] = []
    for key, value in items:
        try:
            found[key] = read(key, value)
        except InputError as flaw:
            faults += below(str(key), flaw.faults)
    if faults:
        raise InputError(file, faults)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What one file is read with; pydantic hands it to every reader and rule."""

    file: str
    readers: Readers
    rules: Rules


@lru_cache(maxsize=256)
def _adapter(kind: Hashable, read_apart: frozenset[Any], only_known: bool) -> Any:
    """Translate a type once for all files in which the same types and fields have readers of their own."""
    return TypeAdapter(_Edge(read_apart, only_known).of(kind))


class _Edge:
    """Translates annotations into what pydantic checks."""

    def __init__(self, read_apart: frozenset[Any], only_known: bool) -> None:
        self.read_apart = read_apart
        self.config = ConfigDict(extra="forbid" if only_known else "ignore", arbitrary_types_allowed=True)

    def of(self, hint: Any) -> Any:
        if hint in self.read_apart:
            return _apart(hint)
        if hint in _LEAVES:
            return _leaf(_LEAVES[hint])
        if is_dataclass(hint):
            return self.record(cast(type, hint))
        arguments = get_args(hint)
        match get_origin(hint):
            case origin if origin is Annotated:
                unit = next(mark for mark in arguments[1:] if isinstance(mark, Unit))
                return _leaf(_quantity(unit.symbol))
            case origin if origin is Literal:
                return _leaf(_choice(arguments))
            case origin if origin is tuple:
                items = [item if item is Ellipsis else self.of(item) for item in arguments]
                return tuple.__class_getitem__(tuple(items))
            case origin if origin is Mapping:
                return Annotated[dict[str, self.of(arguments[1])], AfterValidator(MappingProxyType)]  # type: ignore[misc]
            case origin if origin in (Union, UnionType):
                return Union[tuple(NoneType if kind is NoneType else self.of(kind) for kind in arguments)]  # noqa: UP007
        raise TypeError(f"no reader for {hint}")

    def record(self, kind: type) -> Any:
        hints = get_type_hints(kind, include_extras=True)
        wanted: dict[str, Any] = {}
        for field in fields(kind):
            needed = field.default is MISSING and field.default_factory is MISSING
            apart = (kind, field.name) in self.read_apart
            edge = _apart((kind, field.name)) if apart else self.of(hints[field.name])
            wanted[field.name] = (edge, ... if needed else None)
        shape = create_model(kind.__name__, __config__=self.config, **wanted)
        return Annotated[shape, AfterValidator(self.making(kind))]

    def making(self, kind: type) -> Callable[[BaseModel, ValidationInfo], Any]:
        def make(given: BaseModel, info: Any) -> Any:
            made = kind(**{name: getattr(given, name) for name in given.model_fields_set})
            rule = _given(info).rules.get(kind)
            if rule and (broken := list(rule(made))):
                raise _custom(Fault(path=field, problem=problem, remedy=remedy) for field, problem, remedy in broken)
            return made

        return make


def _custom(faults: Iterable[Fault]) -> PydanticCustomError:
    return PydanticCustomError("faults", "faults", {"faults": list(faults)})


def _leaf(read: Reader) -> Any:
    return Annotated[Any, PlainValidator(read)]


def _given(info: Any) -> _Reading:
    return cast(_Reading, info.context)


def _apart(key: Any) -> Any:
    """Read with the file's own reader, whose refusal appears at its place; other files keep their faults and name."""

    def read(value: Tree, info: Any) -> Any:
        if value is None:
            raise _no_value()
        try:
            return _given(info).readers[key](value)
        except InputError as refusal:
            if refusal.file == _given(info).file:
                raise _custom(refusal.faults) from None
            raise _custom(Fault(path="", problem=f"in {refusal.file}: {fault}") for fault in refusal.faults) from None

    return Annotated[Any, PlainValidator(read)]


def _no_value() -> PydanticCustomError:
    return _custom([Fault(path="", problem="has no value", remedy="give one")])


def _wrong(value: Tree, what: str, remedy: str) -> PydanticCustomError:
    if value is None:
        return _no_value()
    kind = "text, " if isinstance(value, str) and what.startswith("not a ") else ""
    return _custom([Fault(path="", problem=f"{shown(value)} is {kind}{what}", remedy=remedy)])


def shown(value: Tree) -> str:
    """Write a value of a file in a message, shortened where it is a whole section."""
    if isinstance(value, Mapping):
        return f"a section with {', '.join(map(str, value)) or 'nothing in it'}"
    if isinstance(value, list):
        return "a list"
    return repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _quantity(symbol: str) -> Reader:
    def read(value: Tree) -> float:
        if value is None:
            raise _no_value()
        try:
            number = parse(value if isinstance(value, str | int | float) else shown(value), symbol)
        except UnitError as flaw:
            problem, _, remedy = str(flaw).partition("; ")
            raise _custom([Fault(path="", problem=problem, remedy=remedy)]) from None
        if number < 0:
            raise _wrong(value, "negative", f"write it as `{EXAMPLES[symbol]}`")
        if number == 0 and symbol in NEVER_ZERO:
            raise _wrong(value, "zero", f"write it as `{EXAMPLES[symbol]}`")
        if not math.isfinite(number):
            raise _wrong(value, "not finite", f"write it as `{EXAMPLES[symbol]}`")
        return number

    return read


def _number(value: Tree) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(value, "not a number", "write a plain number without a unit, such as 0.25")
    if not math.isfinite(value):
        raise _wrong(value, "not finite", "write a plain number, such as 0.25")
    return float(value)


def _count(value: Tree) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(value, "not a whole number", "write a plain count without a unit, such as 8")
    if value < 0:
        raise _wrong(value, "negative", "write a count, such as 8")
    return value


def _word(value: Tree) -> str:
    if not isinstance(value, str):
        raise _wrong(value, "not text", "put it in quotes")
    return value


def _flag(value: Tree) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, "neither true nor false", "write true or false")
    return value


def _choice(choices: tuple[Any, ...]) -> Reader:
    def read(value: Tree) -> Any:
        if value not in choices:
            raise _wrong(value, "not one of the choices", nearest(str(value), map(str, choices)))
        return value

    return read


_LEAVES: Mapping[Any, Reader] = {
    float: _number,
    int: _count,
    str: _word,
    bool: _flag,
    Any: lambda value: value,
    object: lambda value: value,
}


def _faults(detail: ErrorDetails, kind: type) -> Iterable[Fault]:
    """Say in plain words what pydantic found."""
    place = tuple(step for step in detail["loc"] if step != "[key]")
    path = ".".join(map(str, place))
    match detail["type"]:
        case "faults":
            yield from below(path, detail["ctx"]["faults"])
        case "missing":
            yield Fault(path=path, problem="is missing", remedy=_how_to_give(str(place[-1]), _at(kind, place)))
        case "extra_forbidden":
            known = [field.name for field in fields(_at(kind, place[:-1]))]
            yield Fault(path=path, problem=UNKNOWN_FIELD, remedy=nearest(str(place[-1]), known))
        case "invalid_key":
            yield Fault(path=path, problem="a field's name must be text", remedy="put it in quotes")
        case "too_long":
            yield Fault(path=path, problem=f"has {len(detail['input'])} items", remedy="leave out those too many")
        case "tuple_type":
            yield Fault(path=path, problem=f"{shown(detail['input'])} is not a list", remedy="write it as [a, b]")
        case "model_type" | "dict_type" if detail["input"] is None:
            yield Fault(path=path, problem="has no value", remedy="give its fields")
        case _:
            remedy = "write its fields below it as `name: value` lines"
            yield Fault(path=path, problem=f"{shown(detail['input'])} is not a section", remedy=remedy)


def _how_to_give(name: str, hint: Any) -> str:
    unit = next((mark for mark in get_args(hint)[1:] if isinstance(mark, Unit)), None)
    return f"give it, as in `{name}: {EXAMPLES[unit.symbol]}`" if unit else "give it"


def _at(hint: Any, place: Sequence[str | int]) -> Any:
    """Return the annotation found by following a path into a record."""
    for step in place:
        if get_origin(hint) in (Union, UnionType):
            hint = next(kind for kind in get_args(hint) if kind is not NoneType)
        if is_dataclass(hint):
            hint = get_type_hints(hint, include_extras=True)[str(step)]
        else:
            hint = get_args(hint)[-1] if get_origin(hint) is Mapping else get_args(hint)[0]
    return hint
