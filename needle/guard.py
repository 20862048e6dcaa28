"""Guards: what a compiled function took for granted, and whether it still holds.

In: while a function is traced, each piece of code that runs, with its globals. Out: `holds()`, asked before each call.
Invariants: what code may read from outside (globals, closure, defaults, attributes and members reached from there) is
noted before that code runs; only attributes that the executed code names count later; a guard runs no user code.
Next: effects.py, which tells the guard what runs.

A note keeps the very objects that were there. As long as they are the same objects, which one pass in C finds out, all
holds. Where one is another object, plain values are compared.
"""

import dataclasses
import dis
import gc
import inspect
import operator
import os
import sys
import threading
import types
import weakref
from array import array as Packed
from collections import ChainMap, UserDict, UserList, UserString, deque
from collections.abc import Callable, Iterable, Iterator, MappingView
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import resolve_name
from itertools import chain
from typing import Any, cast

import numpy as np

from needle.averaging import MovingAverage
from needle.culprit import Culprit
from needle.dtype import Array
from needle.errors import TraceError
from needle.nn.module import Module
from needle.optim import Optimizer, ParamGroup
from needle.schedule import Schedule
from needle.tracing import LIBRARY, NEEDLE, USER, is_installed, owner_of, user_site
from needle.value import Value

LARGEST_COPY = 2**20
"""Bytes of a NumPy array up to which its values are compared before each call."""

_CHANGED = (
    "{site}: {what} changed while the function was being compiled (from {before} to {after}). A compiled function runs "
    "its Python code once, not on each call: return the value, or keep it in a Tensor and set its .data"
)
_LARGE = (
    "{site}: {what} is a NumPy array of {size:,} bytes from outside of the function, too large to be compared before "
    "each call; pass it as an argument, or wrap it once, outside, in ndl.Tensor(...), which is read afresh on each call"
)
_ITERATOR = (
    "{site}: {what} is an iterator ({kind}), which a compiled function would advance once and not on each call; "
    "pass its items as arguments"
)
_PLAIN = frozenset((int, float, bool, str, bytes, complex, type(None), type(Ellipsis), range))
_MATCH_CLASS = dis.opmap["MATCH_CLASS"]

_DYNAMIC = frozenset(
    ("getattr", "hasattr", "vars", "__dict__", "asdict", "astuple", "attrgetter", "methodcaller", "__getattribute__")
    + ("getmembers",)
)
"""Names by which code may read attributes that it does not name."""
_IMPORTING = frozenset(("import_module", "__import__", "modules"))
"""Names by which code may reach modules that it does not name."""
_ASKING = (getattr, hasattr)
_BUILT_IN = (list, tuple, dict, set, frozenset, deque)
_WRAPPERS = {UserDict: "data", UserList: "data", UserString: "data", ChainMap: "maps"}
"""Classes in Python whose objects are what they have in this attribute, which no user's code names."""
_CALLED = {"forward", "__call__", "update", "step"}
"""Methods that needle calls."""
_STANDARD = sys.stdlib_module_names | {"numpy"}
_INNER = (Module, MovingAverage, Schedule)
"""Classes of needle whose attributes decide what happens when the user's code calls them."""
_READ = (Optimizer, MovingAverage)
"""Classes of needle with numbers that are read on each call."""
_VALUES = cast("Callable[[Any], Iterable[Any]]", dict.values)
_END = object()
MISSING = object()


def same(a: Any, b: Any) -> bool:
    """Whether traced code would do the same with b as with a: one object, or equal plain values of one type."""
    if a is b:
        return True
    kind = cast("Any", type(a))
    if kind is not type(b):
        return False
    if kind is float or issubclass(kind, np.generic):
        return repr(a) == repr(b)  # 0.0 == -0.0, and nan != nan
    if kind in _PLAIN or isinstance(a, np.dtype):
        return bool(a == b)
    if kind in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if kind is dict:
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    if kind is types.MethodType:
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    return False


@dataclass
class Note:
    """The parts of one thing (a namespace, a list, an object, a cell), as they were when it was first reached."""

    what: str
    thing: Any
    read: Callable[[], Any]
    """The parts now: a dict or a list."""
    before: Any
    counts: Callable[[Any], bool] | None = None
    """Which keys of a dict the compiled function depends on; None for all."""

    def count(self, key: Any) -> bool:
        """Whether the compiled function depends on this part."""
        return self.counts is None or self.counts(key)

    def differences(self, everything: bool) -> Iterable[tuple[str, Any, Any]]:
        """(what, before, now) for each part that is not the same; with `everything`, also parts that do not count."""
        now, before = self.read(), self.before
        if not isinstance(before, dict):
            if not (len(now) == len(before) and all(map(same, before, now))):
                yield self.what, before[0] if len(before) == 1 else before, now[0] if len(now) == 1 else now
            return
        known = cast("dict[Any, Any]", before)
        for key in known | now if now.keys() != known.keys() else known:
            if everything or self.count(key):
                a, b = known.get(key, MISSING), now.get(key, MISSING)
                if not same(a, b):
                    yield f"{self.what}{'.' if self.what else ''}{key}", a, b


class Guard:
    """Everything outside that traced code may have read."""

    def __init__(self) -> None:
        self.cells: list[Note] = []
        self.spaces: dict[int, Note] = {}  # globals, attributes of classes and modules: only the names that are used
        self.objects: dict[int, Note] = {}  # attributes of objects: all
        self.members: list[Note] = []  # of lists, dicts, sets
        self.questions: list[Note] = []
        self.arrays: list[tuple[str, Array, Any]] = []
        self.generators: list[tuple[str, Any, Any]] = []
        self.seen: dict[Any, Any] = {}  # what was reached, kept so that its id stays its own
        self.tensors: dict[int, tuple[str, Any]] = {}
        self.entered: set[Any] = set()
        self.inside: set[Any] = set()  # code of functions that traced code makes
        self.functions: dict[Any, list[Any]] = {}
        self.classes: list[type] = []
        self.kinds: list[tuple[str, Any, type]] = []  # objects and their classes
        self.imports: set[str] = set()  # names of modules that are imported by the functions themselves
        self.dynamic = False  # whether all attributes of modules count
        self.modules: list[types.ModuleType] = []
        self.names: dict[str, set[str]] = {USER: set(), NEEDLE: set()}

    # ------------------------------------------------------------------------------------------------ during a trace

    def enter(self, code: types.CodeType, space: dict[str, Any]) -> None:
        """A piece of code is about to run for the first time: note what it may read."""
        owner = owner_of(code.co_filename, space.get("__name__") or "")
        if owner is LIBRARY or code in self.entered:
            return
        self.entered.add(code)
        called = {*code.co_names, *(["getattr"] if _MATCH_CLASS in code.co_code[::2] else [])}  # `case Kind(name=x)`
        new = called - self.names[owner]
        self.names[owner] |= new
        if owner is USER:
            self.inside.update(c for c in code.co_consts if isinstance(c, types.CodeType))
            for name in global_names(code):
                if name in space or code.co_flags & inspect.CO_OPTIMIZED:  # in a function it may come later
                    self._note_name("", space, space, name)
            for function in self._functions_of(code):
                self._outside_of(function)
            self._note_imports(code, space)
            if _DYNAMIC.intersection(called):  # of attributes that are named by strings
                self.dynamic = True
                new |= {c for c in _strings(code.co_consts) if c.isidentifier()} - self.names[owner]
                self.names[owner] |= new
        self._reach_further(new, owner)

    def _note_imports(self, code: types.CodeType, space: dict[str, Any]) -> None:
        """The modules that code imports when it runs: those that are there now, and the others at the end."""
        names = imported_names(code, space.get("__package__") or "")
        if _IMPORTING.intersection(code.co_names) and ("modules" not in code.co_names or "sys" in code.co_names):
            constants = [c for c in code.co_consts if isinstance(c, str)]
            names = [*names, *constants, *[name for name, module in list(sys.modules.items()) if _is_own(module)]]
        self.imports.update(names)
        self.reach_imports()

    def reach_imports(self) -> None:
        """Note the modules that code imports, as far as they are there."""
        for name in self.imports & sys.modules.keys():
            if _is_users(sys.modules[name]):
                self._note_name("sys.modules", sys.modules, sys.modules, name)
                self._module_names(sys.modules[name], self.names[USER])  # it may have been half done before

    def read_environment(self, key: Any) -> None:
        """Code reads a variable of the environment, or all of them (None)."""
        if self._first_time(("environment", key), os.environ) and isinstance(key, str | None):
            read = _steady(lambda: dict(os.environ) if key is None else os.environ.get(key))
            self.questions.append(
                Note("os.environ" if key is None else f"os.environ[{key!r}]", os.environ, read, read())
            )

    def read_variable(self, variable: ContextVar[Any]) -> None:
        """Code reads or sets a context variable."""
        if self._first_time(("variable", id(variable)), variable):
            read = lambda: [variable.get(MISSING)]  # noqa: E731
            self.questions.append(Note(variable.name, variable, read, read()))
            self.reach(variable.name, variable.get(MISSING))

    def _functions_of(self, code: types.CodeType) -> list[Any]:
        known = self.functions.get(code)
        if known is None and code.co_freevars and code not in self.inside:
            known = [f for f in gc.get_referrers(code) if isinstance(f, types.FunctionType)]
        return known or []

    def _outside_of(self, function: Any) -> None:
        """What a function that runs reads from its own surroundings: closure, defaults, and its code itself."""
        if not self._first_time(("outside", id(function)), function):
            return
        traits = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")
        name = function.__qualname__
        self.questions.append(Note(name, function, lambda: traits(function), traits(function)))
        self.reach(f"the default of {name}", function.__defaults__)
        self.reach(f"the default of {name}", function.__kwdefaults__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            content = _content(cell)
            self.cells.append(Note(name, cell, lambda cell=cell: [_content(cell)], [content]))
            self.reach(name, content, named=True)

    def _note_name(self, what: str, owner: Any, space: Any, name: str) -> None:
        """One name in the namespace of a class or module, and what it stands for."""
        note = self.spaces.get(id(owner))
        if note is None:
            known: dict[str, Any] = {}
            read = partial(_chosen, space, known)
            note = self.spaces[id(owner)] = Note(what, space, read, known)
            self.seen["space", id(owner)] = owner
        if name not in note.before:
            value = note.before[name] = space.get(name, MISSING)
            self.reach(f"{what}.{name}" if what else name, value, named=True)

    def _first_time(self, key: Any, thing: Any) -> bool:
        if key in self.seen:
            return False
        self.seen[key] = thing
        return True

    def _reach_further(self, names: set[str], owner: str) -> None:
        """More attributes count, now that code with these names runs."""
        everything = names & _DYNAMIC and owner is USER
        for note in list(self.objects.values()):
            if owner is USER or isinstance(note.thing, _INNER):
                all_of_it = everything and not isinstance(note.thing, Optimizer)
                for name in filter(note.count, list(note.before) if all_of_it else names & note.before.keys()):
                    self.reach(f"{note.what}.{name}", note.before[name], named=owner is USER)
        if owner is USER:
            for kind in list(self.classes):
                self._class_names(kind, names)
            for module in list(self.modules):
                self._module_names(module, names)

    def _module_names(self, module: types.ModuleType, names: set[str]) -> None:
        space = vars(module)
        every = [name for name in space if not name.startswith("__")] if self.dynamic and _is_own(module) else ()
        for name in (names & space.keys()).union(every):
            self._note_name(module.__name__, space, space, name)

    def watch(self, container: Any) -> None:
        """A container or record among the arguments: the function must not change it."""
        if isinstance(container, list | dict):
            self.members.append(Note("an argument", container, lambda: _listed(container), _listed(container)))
        elif not isinstance(container, tuple):
            names = [field.name for field in dataclasses.fields(container)]
            read = lambda: {name: getattr(container, name, MISSING) for name in names}  # noqa: E731
            self.members.append(Note("an argument", container, read, read()))

    def reach(self, what: str, value: Any, named: bool = False) -> None:
        """Code can get at `value`, by a name of its own where `named`: note what is in it."""
        kind = cast("Any", type(value))
        if kind in _PLAIN or value is MISSING or isinstance(value, np.generic | np.dtype):
            return
        if isinstance(value, Value):
            self.tensors.setdefault(id(value), (what, value))
            return
        if hasattr(kind, "__next__") and (named or "next" in self.names[USER]):
            raise TraceError(_ITERATOR.format(site=user_site(), what=what, kind=kind.__name__))
        if not self._first_time(id(value), value):
            return
        if isinstance(value, np.ndarray):
            self._reach_array(what, cast("Any", value))
        elif isinstance(value, list | tuple | dict | set | frozenset | deque):
            self._reach_members(what, value)
            if kind not in _BUILT_IN:
                self._reach_object(what, value)
        elif isinstance(value, ParamGroup):
            self.questions.append(Note(what, value, lambda: dict(value), dict(value)))
        elif isinstance(value, types.FunctionType):
            self._reach_function(value)
        elif isinstance(value, types.MethodType):
            self.reach(what, value.__self__)
            self.reach(what, value.__func__)
        elif isinstance(value, types.BuiltinMethodType):
            if not isinstance(value.__self__, types.ModuleType):
                self.reach(what, value.__self__)
        elif isinstance(value, partial):
            if value.func in _ASKING:
                self._name_by_strings(value.args)
            for part in (value.func, *value.args, *value.keywords.values()):
                self.reach(what, part, named)
        elif isinstance(value, type):
            self._reach_class(value)
        elif isinstance(value, types.ModuleType):
            if _is_users(value) or owner_of(_file(value), value.__name__) is NEEDLE:
                self.modules.append(value)
                self._module_names(value, self.names[USER])
        elif not self._reach_inside(what, value):
            self._reach_object(what, value)

    def _reach_inside(self, what: str, value: Any) -> bool:
        """Whether it is an object of the standard library in C that leads to others, or has bytes."""
        if isinstance(value, types.MappingProxyType):
            self.questions.append(Note(what, value, partial(_listed, value), _listed(value)))
            for key in list(cast("Any", value)):
                self.reach(f"{what}[{key!r}]", value[key])
        elif isinstance(value, MappingView):
            self.reach(what, getattr(value, "mapping", None))
        elif isinstance(value, operator.attrgetter | operator.methodcaller):
            self._name_by_strings(cast("Any", value).__reduce__()[1])
        elif isinstance(value, bytearray | Packed):
            read = _steady(lambda: bytes(cast("Any", value)))
            self.questions.append(Note(what, value, read, read()))
        elif isinstance(value, weakref.ref):
            self.questions.append(Note(what, value, lambda: [value() is None], [value() is None]))
            self.reach(f"{what}()", value())
        elif isinstance(value, threading.local):
            space = lambda: dict(vars(value))  # noqa: E731 - of the thread that asks
            self.questions.append(Note(what, value, space, space()))
            for name, part in space().items():
                self.reach(f"{what}.{name}", part)
        else:
            return False
        return True

    def _reach_array(self, what: str, array: Array) -> None:
        if array.nbytes > LARGEST_COPY:
            base: Any = array
            while isinstance(base, np.ndarray) and not base.flags.writeable:
                base = base.base
            if base is None:
                return  # nobody can change it, unless it is made writeable again
            raise TraceError(_LARGE.format(site=user_site(), what=what, size=array.nbytes))
        self.arrays.append((what, array, _content_of(array)))

    def _reach_members(self, what: str, container: Any) -> None:
        listed = list(container)
        if not isinstance(container, tuple | frozenset):
            self.members.append(Note(what, container, partial(_listed, container), _listed(container)))
        for i, member in enumerate(listed):
            key = repr(member) if isinstance(member, str | int) else i
            self.reach(f"{what}[{key}]", container[member] if isinstance(container, dict) else member)

    def _reach_function(self, function: Any) -> None:
        """Its surroundings are noted when it runs; a decorated function leads to the one inside."""
        if owner_of(function.__code__.co_filename, function.__module__ or "") is not USER:
            return
        self._reach_attributes(function.__qualname__, function)
        self._know(function)

    def _know(self, function: Any) -> None:
        self.functions.setdefault(function.__code__, []).append(function)
        if function.__code__ in self.entered:
            self._outside_of(function)

    def _reach_class(self, kind: type) -> None:
        if _owner_of_class(kind) is USER and self._first_time(("bases", id(kind)), kind):
            read = lambda: [kind.__mro__]  # noqa: E731
            self.questions.append(Note(f"{kind.__name__}.__bases__", kind, read, read()))
            if type(kind) is not type:
                self._reach_class(type(kind))
        for base in kind.__mro__:
            owner = _owner_of_class(base)
            if owner is LIBRARY or not self._first_time(("class", id(base)), base):
                continue
            self.classes.append(base)
            if owner is USER:
                for value in list(vars(base).values()):
                    for function in _functions_in(value):
                        self._know(function)
            self._class_names(base, self.names[USER] | {"forward"})

    def _class_names(self, kind: type, names: set[str]) -> None:
        """Attributes of a class, also where it only inherits them; of needle's own classes only `forward`."""
        mine = _owner_of_class(kind) is USER
        if mine and self.dynamic:
            names = names | {name for name in vars(kind) if not name.startswith("__")}
        for name in names | _CALLED if mine else names & {"forward"}:
            if hasattr(kind, name) if mine else name in vars(kind):
                self._note_name(kind.__name__, kind, vars(kind), name)

    def _reach_object(self, what: str, value: Any) -> None:
        """An object: its attributes, its class, and what it wraps."""
        if isinstance(value, np.random.Generator | np.random.RandomState):
            self.generators.append((what, value, state_of(value)))
            return
        kind = cast("Any", type(value))
        self._reach_class(kind)
        if isinstance(value, _INNER) or _owner_of_class(kind) is USER:
            self.kinds.append((f"the class of {what}", value, kind))
        for name in (_WRAPPERS[base] for base in kind.__mro__ if base in _WRAPPERS):
            read = lambda name=name: [getattr(value, name)]  # noqa: E731
            self.questions.append(Note(what, value, read, read()))
            self.reach(what, getattr(value, name))
        wrapped = getattr(value, "__dict__", {}).get("__wrapped__")
        if isinstance(wrapped, types.FunctionType):
            self._reach_function(wrapped)
        if isinstance(value, Optimizer):
            self._reach_attributes(kind.__name__, value, self._counts_in_optimizer(value))
            self.reach(f"{kind.__name__}.params", value.params)
        elif isinstance(value, MovingAverage):  # its decay is read on each call
            self._reach_attributes(kind.__name__, value, lambda name: self._named(name, inner=name != "decay"))
        elif isinstance(value, _INNER):
            self._reach_attributes(kind.__name__, value)
        elif _owner_of_class(kind) is LIBRARY:
            self._reach_attributes(what, value, self._counts_in_library(value))
        elif _owner_of_class(kind) is not NEEDLE:
            self._reach_attributes(what, value)
            self._reach_slots(what, value)
        elif kind.__module__.startswith("needle.data"):  # a loader's batch_size; not where it is in its data
            space = getattr(value, "__dict__", {})
            self._reach_attributes(
                what, value, lambda name: type(space.get(name)) in _PLAIN and not name.startswith("_")
            )

    def _name_by_strings(self, names: Iterable[Any]) -> None:
        """The user's code names attributes by strings, as in attrgetter("a.b")."""
        named = {part for name in names if isinstance(name, str) for part in name.split(".")}
        new = named - self.names[USER]
        self.names[USER] |= new
        self._reach_further(new, USER)

    def _counts_in_library(self, thing: Any) -> Callable[[Any], bool]:
        """What the user's code names; and the plain values that methods read which it names, as `Event.is_set` does."""
        kind, space = cast("Any", type(thing)), getattr(thing, "__dict__", {})
        return lambda name: (
            self._named(name, False)
            or (type(space.get(name)) in _PLAIN and name in _read_by(kind, frozenset(self.names[USER] & {*dir(kind)})))
        )

    def _counts_in_optimizer(self, optimizer: Optimizer) -> Callable[[Any], bool]:
        """Its numbers are read on each call, and its state is an input: they count where the user's code reads them."""
        numbers = [name for name in optimizer.numbers if name != "lr"]  # a rate may be 0, and come back
        if numbers:
            get, space = operator.itemgetter(*numbers, numbers[0]), vars(optimizer)
            read = lambda: [*map(bool, get(space)), *_own_numbers(optimizer)]  # noqa: E731
            self.questions.append(Note(f"a number of {type(optimizer).__name__}", optimizer, read, read()))
        inputs = {"t", "state"}
        return lambda name: name not in inputs and (name not in optimizer.numbers or name in self.names[USER])

    def _reach_attributes(self, what: str, thing: Any, counts: Callable[[Any], bool] | None = None) -> None:
        attributes = getattr(thing, "__dict__", None)
        if not isinstance(attributes, dict):
            return
        inner = isinstance(thing, _INNER)
        space = cast("dict[str, Any]", attributes)
        note = Note(what, thing, lambda: space, dict(space), counts or (lambda name: self._named(name, inner)))
        self.objects[id(thing)] = note
        for name, value in note.before.items():
            named = name in self.names[USER] if isinstance(thing, Optimizer) else self._named(name, inner)
            if named and note.count(name):
                self.reach(f"{what}.{name}", value, named=name in self.names[USER])

    def _reach_slots(self, what: str, thing: Any) -> None:
        names = {
            name: getattr(thing, name, MISSING)
            for kind in type(thing).__mro__
            for name, member in vars(kind).items()
            if isinstance(member, types.MemberDescriptorType) and _owner_of_class(kind) is USER
        }
        if names:
            read = lambda: {name: getattr(thing, name, MISSING) for name in names}  # noqa: E731
            self.questions.append(Note(what, thing, read, names))
            for name, value in names.items():
                self.reach(f"{what}.{name}", value)

    def _named(self, name: Any, inner: bool) -> bool:
        user = self.names[USER]
        return name in user or (inner and name in self.names[NEEDLE]) or bool(user & _DYNAMIC)

    # ---------------------------------------------------------------------------------------------- after a trace

    def _notes(self) -> list[Note]:
        return [*self.cells, *self.spaces.values(), *self.objects.values(), *self.members, *self.questions]

    def check_unchanged(self, culprit: Culprit) -> None:
        """Raise `TraceError` if the function itself changed what it depends on."""
        for note in self._notes():
            users = _owner_of_class(cast("Any", type(note.thing))) is USER
            whole = users or note.counts is None or isinstance(note.thing, _INNER)
            for what, before, after in note.differences(whole):
                site = culprit.changer_of(what, note.thing)
                raise TraceError(_CHANGED.format(site=site, what=what, before=_show(before), after=_show(after)))
        for what, array, content in self.arrays:
            if _content_of(array) != content:
                site = culprit.changer_of(what, array)
                raise TraceError(_CHANGED.format(site=site, what=what, before="one array", after="another"))
        for what, thing, kind in self.kinds:
            if type(thing) is not kind:
                site, after = culprit.changer_of("__class__", thing), type(thing).__name__
                raise TraceError(_CHANGED.format(site=site, what=what, before=kind.__name__, after=after))

    def freeze(self) -> None:
        """The trace is over: leave out what does not count, and prepare `holds`."""
        counting = [
            n for n in self.objects.values() if isinstance(n.thing, _INNER) or any(map(n.count, _attributes(n)))
        ]
        self.objects = {id(note.thing): note for note in counting}
        self.seen, self.functions, self.inside, self.classes, self.modules = {}, {}, set(), [], []
        self._things, self._kinds = [thing for _, thing, _ in self.kinds], [kind for *_, kind in self.kinds]
        self._cells = [note.thing for note in self.cells if note.before[0] is not MISSING]
        self._spaces: list[Any] = []  # for each name in a space that space, and the name
        self._names: list[Any] = []
        self._questions = [note.read for note in self.questions]
        self._questions += [note.read for note in self.cells if note.before[0] is MISSING]
        for note in self.objects.values():
            if isinstance(note.thing, _READ):  # an optimizer's t and its state change all the time
                note.before = {name: value for name, value in note.before.items() if note.count(name)}
        partly = [note for note in self.objects.values() if isinstance(note.thing, _READ)]
        for note in [*self.spaces.values(), *partly]:
            present = [name for name, value in note.before.items() if value is not MISSING]
            space = cast("Any", note.thing if note.counts is None else vars(note.thing))
            self._spaces += [space] * len(present)
            self._names += present
            if absent := note.before.keys() - set(present):
                self._questions.append(partial(_absent, space, absent))
        self._dicts = [note.thing.__dict__ for note in self.objects.values() if note not in partly]
        self._dicts += [cast("Any", note.thing) for note in self.members if isinstance(note.thing, dict)]
        self._members = [note.thing for note in self.members]
        self._expected = list(self._now())

    def _now(self) -> Iterable[Any]:
        """Every object that is noted, in a fixed order."""
        return chain(
            [cell.cell_contents for cell in self._cells],
            map(operator.getitem, self._spaces, self._names),
            chain.from_iterable(map(_VALUES, self._dicts)),
            chain.from_iterable(self._members),
            chain.from_iterable([_values(read()) for read in self._questions]),
            (_END,),
        )

    def holds(self) -> bool:
        """Whether everything is as it was during the trace."""
        if self._things and list(map(type, self._things)) != self._kinds:
            return False
        try:
            alike = all(map(operator.is_, self._now(), self._expected))
        except (ValueError, KeyError):  # a variable that was deleted
            return False
        if not alike:
            if self.names_differ() or self.changed():
                return False
            self._accept_equal_objects()
        return not self.arrays or all(_content_of(array) == content for _, array, content in self.arrays)

    def names_differ(self) -> bool:
        """Whether a variable that code names is not as it was: less than `holds` asks, and quicker to see."""
        try:
            now = [*[c.cell_contents for c in self._cells], *map(operator.getitem, self._spaces, self._names)]
        except (ValueError, KeyError):
            return True
        return not all(map(operator.is_, now, self._expected)) and not all(map(same, self._expected, now))

    def _accept_equal_objects(self) -> None:
        """Other objects with equal values: from now on these are expected. A list is not: it could change later."""
        now = list(self._now())
        if all(type(b) in _PLAIN for a, b in zip(self._expected, now, strict=False) if a is not b):
            self._expected = now

    def changed(self) -> str:
        """The name of the first thing that is not as it was, or nothing."""
        for note in self._notes():
            for what, _, _ in note.differences(everything=False):
                return what
        arrays = (what for what, array, content in self.arrays if _content_of(array) != content)
        return next(chain(arrays, (what for what, thing, kind in self.kinds if type(thing) is not kind)), "")


def _attributes(note: Note) -> Iterable[Any]:
    """The names of an object's attributes, and of those of its classes, which it may get itself."""
    kinds: tuple[type, ...] = type(note.thing).__mro__
    return chain(note.before, *(vars(kind) for kind in kinds if _owner_of_class(kind) is USER))


def _chosen(space: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: space.get(name, MISSING) for name in names}


def _absent(space: Any, names: set[str]) -> list[bool]:
    """Whether none of these is there."""
    return [space.keys().isdisjoint(names)]


@cache
def _read_by(kind: type, called: frozenset[str]) -> frozenset[str]:
    """The names that methods of these names use, and the methods that those call."""
    pending, found = [*called], {*called}
    while pending:
        for function in _functions_in(inspect.getattr_static(kind, pending.pop(), None)):
            new = {*function.__code__.co_names} - found
            found |= new
            pending += new
    return frozenset(found)


def _listed(container: Any) -> list[Any]:
    named = isinstance(container, dict | types.MappingProxyType)
    return [*container, *cast("Any", container).values()] if named else list(container)


def _steady(read: Callable[[], Any]) -> Callable[[], list[Any]]:
    """What is read, in a list, and the very object of last time where it is equal: so `holds` is quick."""
    last: list[Any] = [MISSING]

    def now() -> list[Any]:
        found = read()
        if not same(last[0], found):
            last[0] = found
        return [last[0]]

    return now


def _values(answer: Any) -> Iterable[Any]:
    return cast("dict[Any, Any]", answer).values() if isinstance(answer, dict) else answer


def _content_of(array: Array) -> Any:
    return array.shape, array.tobytes() if array.dtype != object else tuple(map(id, array.flat))


def _strings(constants: tuple[Any, ...]) -> Iterator[str]:
    """Those among constants, and in tuples of them."""
    for c in constants:
        if isinstance(c, str):
            yield c
        elif isinstance(c, tuple):
            yield from _strings(cast("Any", c))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return MISSING


def state_of(generator: Any) -> Any:
    """All that decides what a NumPy generator draws next."""
    old = isinstance(generator, np.random.RandomState)
    return generator.get_state(legacy=False) if old else generator.bit_generator.state


@cache
def global_names(code: types.CodeType) -> frozenset[str]:
    """The global variables that a piece of code reads or writes."""
    found = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")
    return frozenset(i.argval for i in dis.get_instructions(code) if i.opname in found)


@cache
def imported_names(code: types.CodeType, package: str) -> list[str]:
    """The modules that a piece of code imports, and those that they are in."""
    found: list[str] = []
    before: list[Any] = [0, 0]
    for i in (i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"):
        if i.opname == "IMPORT_NAME":
            level = before[-2] if isinstance(before[-2], int) else 0
            name = resolve_name("." * level + i.argval, package) if not level or package else i.argval
            parts = name.split(".")
            found += [".".join(parts[: n + 1]) for n in range(len(parts))]
        before = [before[-1], i.argval]
    return found


def _is_users(module: Any) -> bool:
    """Whether a module is no part of Python, NumPy or needle."""
    return isinstance(module, types.ModuleType) and owner_of(_file(module), module.__name__) is USER


def _is_own(module: Any) -> bool:
    """Whether it is the user's own: what is installed beside needle has too many names to note all."""
    return _is_users(module) and not is_installed(_file(module))


def _file(module: types.ModuleType) -> str:
    return getattr(module, "__file__", None) or "<frozen"


def _owner_of_class(kind: type) -> str:
    root = kind.__module__.partition(".")[0]
    return NEEDLE if root == "needle" else LIBRARY if root in _STANDARD and root != "__main__" else USER


def _functions_in(value: Any) -> list[Any]:
    """The functions of a class's attribute: a method, a property, a decorated method."""
    parts = (value, getattr(value, "__func__", None), getattr(value, "__wrapped__", None), getattr(value, "func", None))
    parts += tuple(getattr(value, name, None) for name in ("fget", "fset") if isinstance(value, property))
    return [part for part in parts if isinstance(part, types.FunctionType)]


def _show(part: Any) -> str:
    if part is MISSING:
        return "nothing"
    if isinstance(part, list | tuple):
        return "[" + ", ".join(map(_show, cast("list[Any]", part))) + "]"
    return repr(part) if type(part) in _PLAIN else f"a {type(part).__name__}"


def _own_numbers(optimizer: Optimizer) -> list[bool]:
    """Whether the numbers that groups of parameters have of their own are other than 0."""
    return [bool(value) for group in optimizer.param_groups for name, value in group.own.items() if name != "lr"]
