"""A pickle read as data: a machine that knows every instruction which describes something, and none that does anything.

A pickle is a program, and Python's own reader runs it: it imports modules, calls what it finds there and sets attributes. This
one imports and calls nothing. A name becomes a :class:`Name`, a call a :class:`Built` that says what would have been called
with what, and bytes stay where they are in the file. Only names of a given list are taken, so that a file which wants
something else is refused with that name. What a file claims is not believed: lengths are held against the file, numbers of
instructions against a bound, and nothing recurses.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dnnlib.errors import shown

MOST_INSTRUCTIONS = 2_000_000
"""A published file has some hundred thousand."""
LONGEST_TEXT = 1 << 24
"""Bytes; the longest published text is a module of some ten thousand."""

LONGEST_NAME = 1000
"""Bytes of a module's or a class's name in the older protocols."""


class PickleError(ValueError):
    """Why these bytes are refused; the end of a sentence that begins with the file's name."""


@dataclass(frozen=True)
class Name:
    """Something of a module, named and nothing else."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Built:
    """What a call would have made."""

    name: Name
    """Of what would have been called."""
    arguments: tuple[Any, ...]
    state: Any = None
    """What it would have been given by ``__setstate__``."""
    items: dict[Any, Any] = field(default_factory=dict)
    """What it would have been given as a mapping."""


Plain: TypeAlias = Any
"""None, bool, int, float, str, memoryview (bytes), tuple, list (also for sets), dict, Name or Built."""

_MARK = object()


def read_pickle(data: memoryview, names: Collection[str]) -> Plain:
    """What a pickle of protocol 3 to 5 describes.

    Args:
        data: The file; bytes in the result are parts of it.
        names: ``module.name`` of what it may name.

    Raises:
        PickleError: it is truncated, damaged or of another kind, asks for a name that is not in ``names``, or is too large.
    """
    try:
        return _Machine(data, names).run()
    except (IndexError, struct.error) as error:
        raise PickleError("is not a whole pickle: it may be truncated; get it again") from error


class _Machine:
    def __init__(self, data: memoryview, names: Collection[str]) -> None:
        self.data, self.names = data, names
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Plain:
        if bytes(self.data[:1]) != pickle.PROTO or not 3 <= self.data[1] <= 5:
            raise PickleError("is not a pickle of protocol 3 to 5")
        for _ in range(MOST_INSTRUCTIONS):
            opcode = bytes((self.data[self.at],))
            self.at += 1
            if opcode == pickle.STOP:
                return self.pop()
            self.step(opcode)
        raise PickleError(f"has more than {MOST_INSTRUCTIONS:,} instructions")

    def step(self, opcode: bytes) -> None:
        """Follow one instruction."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _NUMBERS:
            self.stack.append(self.number(_NUMBERS[opcode]))
        elif opcode in _LENGTHS:
            layout, is_text = _LENGTHS[opcode]
            part = self.take(self.number(layout))
            self.stack.append(self.text(part) if is_text else part)
        elif opcode in _TUPLES:
            first = len(self.stack) - _TUPLES[opcode]
            if first < 0:
                raise IndexError
            self.stack[first:] = [self.checked(self.stack[first:])]
        elif opcode in _PUTS:
            self.memo[self.number(_PUTS[opcode])] = self.top()
        elif opcode in _GETS:
            self.stack.append(self.remembered(self.number(_GETS[opcode])))
        elif (follow := _OTHERS.get(opcode)) is not None:
            follow(self)
        else:
            raise PickleError(f"holds the instruction {shown(opcode)}, which a published network does not need")

    def take(self, count: int) -> memoryview:
        if count < 0 or count > len(self.data) - self.at:
            raise IndexError
        part = self.data[self.at : self.at + count]
        self.at += count
        return part

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def text(self, part: memoryview) -> str:
        if len(part) > LONGEST_TEXT:
            raise PickleError(f"holds a text of {len(part):,} bytes; {LONGEST_TEXT:,} are allowed")
        try:
            return str(part, "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise PickleError("is damaged: it holds text that is not UTF-8") from error

    def line(self) -> str:
        """The text up to the next end of line."""
        end = self.at
        while self.data[end] != 0x0A:
            end += 1
            if end - self.at > LONGEST_NAME:
                raise PickleError("is damaged: it holds a name without end")
        text = self.text(self.take(end - self.at))
        self.at += 1
        return text

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise IndexError
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def above_mark(self) -> list[Any]:
        """Take what is above the topmost mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def checked(self, values: Iterable[Any]) -> tuple[Any, ...]:
        values = tuple(values)
        if any(value is _MARK for value in values):
            raise IndexError
        return values

    def remembered(self, index: int) -> Any:
        if index not in self.memo:
            raise IndexError
        return self.memo[index]

    def skip(self) -> None:
        self.number(_U8)  # the protocol again

    def frame(self) -> None:
        self.number(_U64)  # only a hint for reading

    def mark(self) -> None:
        self.stack.append(_MARK)

    def drop(self) -> None:
        self.stack.pop()

    def memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def tuple_above_mark(self) -> None:
        self.stack.append(tuple(self.above_mark()))

    def long(self) -> None:
        """An integer of up to 255 bytes."""
        self.stack.append(int.from_bytes(self.take(self.number(_U8)), "little", signed=True))

    def append(self) -> None:
        value = self.pop()
        self.extend([value])

    def appends(self) -> None:
        self.extend(self.above_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise PickleError("is damaged: it adds to something that is not a list")
        target.extend(values)

    def setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.update([key, value])

    def setitems(self) -> None:
        self.update(self.above_mark())

    def update(self, pairs: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Built):
            target = target.items
        if not isinstance(target, dict) or len(pairs) % 2:
            raise PickleError("is damaged: it adds to something that is not a mapping")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str | int):  # others could be made costly, or deep, to compare
                raise PickleError("holds a mapping whose keys are not texts or numbers")
            target[key] = value

    def frozenset_above_mark(self) -> None:
        self.stack.append(self.above_mark())

    def named(self) -> None:
        module = self.line()
        self.name(module, self.line())

    def named_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("is damaged: it asks for a name that is not text")
        if f"{module}.{name}" not in self.names:
            wanted = shown(f"{module}.{name}")
            raise PickleError(f"asks for {wanted}, which a published network does not need; nothing of it was run")
        self.stack.append(Name(module, name))

    def call(self) -> None:
        arguments, name = self.pop(), self.pop()
        if not isinstance(name, Name) or not isinstance(arguments, tuple):
            raise PickleError("is damaged: it calls something that has no name")
        self.stack.append(Built(name, arguments))

    def call_with_keywords(self) -> None:
        if self.pop() != {}:
            raise PickleError("calls something with keywords, which a published network does not need")
        self.call()

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Built):
            raise PickleError("is damaged: it gives a state to something that has none")
        target.state = state


_U8, _U16, _I32, _U32, _U64 = (struct.Struct(layout) for layout in ("<B", "<H", "<i", "<I", "<Q"))
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_EMPTY: dict[bytes, Any] = {
    pickle.EMPTY_TUPLE: tuple,
    pickle.EMPTY_LIST: list,
    pickle.EMPTY_DICT: dict,
    pickle.EMPTY_SET: list,
}
_NUMBERS = {pickle.BININT: _I32, pickle.BININT1: _U8, pickle.BININT2: _U16, pickle.BINFLOAT: struct.Struct(">d")}
_LENGTHS = {
    pickle.SHORT_BINUNICODE: (_U8, True),
    pickle.BINUNICODE: (_U32, True),
    pickle.BINUNICODE8: (_U64, True),
    pickle.SHORT_BINBYTES: (_U8, False),
    pickle.BINBYTES: (_U32, False),
    pickle.BINBYTES8: (_U64, False),
    pickle.BYTEARRAY8: (_U64, False),
}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_PUTS = {pickle.BINPUT: _U8, pickle.LONG_BINPUT: _U32}
_GETS = {pickle.BINGET: _U8, pickle.LONG_BINGET: _U32}
_OTHERS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: _Machine.skip,
    pickle.FRAME: _Machine.frame,
    pickle.MARK: _Machine.mark,
    pickle.POP: _Machine.drop,
    pickle.POP_MARK: _Machine.above_mark,
    pickle.MEMOIZE: _Machine.memoize,
    pickle.TUPLE: _Machine.tuple_above_mark,
    pickle.LONG1: _Machine.long,
    pickle.APPEND: _Machine.append,
    pickle.APPENDS: _Machine.appends,
    pickle.ADDITEMS: _Machine.appends,
    pickle.FROZENSET: _Machine.frozenset_above_mark,
    pickle.SETITEM: _Machine.setitem,
    pickle.SETITEMS: _Machine.setitems,
    pickle.GLOBAL: _Machine.named,
    pickle.STACK_GLOBAL: _Machine.named_on_stack,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.NEWOBJ_EX: _Machine.call_with_keywords,
    pickle.BUILD: _Machine.build,
}
