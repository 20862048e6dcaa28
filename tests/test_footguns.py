"""A compiled function is never silently wrong: it gives what the function itself gives, or it says why it cannot.

In: short programs, each a function of `c`, which is `ndl.compile` or leaves a function as it is. Out: a failure where
the two give different values, or where a `TraceError` was expected and did not come.
Invariant: a row is written as a person would write it; EQUAL rows return everything that could differ.
Next: test_fuzz.py.
"""

import concurrent.futures
import contextlib
import contextvars
import copy
import cProfile
import dataclasses
import datetime
import email.utils
import functools
import gc
import importlib
import io
import itertools
import logging
import operator
import os
import pathlib
import platform
import pprint
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import weakref
from array import array
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, namedtuple
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.compile import KEPT, MANY
from needle.errors import IndexRangeError, TraceError

EQUAL = "equal"
ROWS: list[tuple[str, Callable[[Any], Any], str]] = []
Tensor, Parameter = ndl.Tensor, nn.Parameter


def row(expected: str = EQUAL) -> Callable[[Any], Any]:
    """The next row of the table: a program, and what is expected of it when it is compiled."""

    def add(program: Any) -> Any:
        ROWS.append((program.__name__, program, expected))
        return program

    return add


def t(*values: float, grad: bool = False) -> Tensor:
    return Tensor(list(values), dtype="float32", requires_grad=grad)


def p(*values: float) -> Parameter:
    return Parameter(Tensor(list(values), dtype="float32"))


X, Y = t(1, 2), t(3, -4)


def plain(thing: Any) -> Any:
    """A result as numbers, lists and names, so that two can be compared."""
    if isinstance(thing, ndl.Tensor):
        return thing.dtype.name, thing.numpy().round(4).tolist(), thing.requires_grad
    if isinstance(thing, np.ndarray):
        return thing.dtype.name, thing.round(4).tolist()
    if isinstance(thing, dict):
        return {k: plain(v) for k, v in thing.items()}
    if isinstance(thing, tuple | list):
        return type(thing).__name__, [plain(v) for v in thing]
    if dataclasses.is_dataclass(thing):
        return type(thing).__name__, plain(vars(thing))
    return thing


def eager(function: Any = None, **_: Any) -> Any:
    """In place of `ndl.compile`: the function itself."""
    return eager if function is None else function


# ------------------------------------------------------------------------------------- 1, 2: values are not there yet

VALUES_INSIDE: dict[str, Callable[[Tensor], Any]] = {
    "float": lambda x: x * float(x.sum()),
    "int": lambda x: x * int(x.sum()),
    "bool": lambda x: x if x.sum() > 0 else -x,
    "item": lambda x: x * x.sum().item(),
    "numpy": lambda x: x.numpy() * 2,
    "tolist": lambda x: x * x.tolist()[0],
    "str": lambda x: [str(x), x][1],
    "format": lambda x: [f"{x.sum():.2f}", x][1],
    "repr": lambda x: [repr(x), x][1],
    "asarray": lambda x: x * np.asarray(x),
    "median": lambda x: x * np.median(x.detach()),
    "mask": lambda x: x[x > 0],
    "while": lambda x: next(x for _ in iter(int, 1) if x.sum() > 0),
    "cached_data": lambda x: x + x.cached_data[0],
    "sorted": lambda x: sorted(x, key=float)[0],
}
READ_BY = {name: f"{name}() reads it" for name in ("float", "int", "item", "numpy", "tolist", "str", "repr")}
READ_BY |= dict.fromkeys(("bool", "while"), "`if`, `while` or bool() reads it") | {"asarray": "NumPy reads it"}
"""What the error names: what the user wrote."""
W = p(2, 3)
VALUES_OUTSIDE: dict[str, Callable[[Tensor], Any]] = {
    "float": lambda x: x * float(W.sum()),
    "numpy": lambda x: x * W.numpy(),
    "cached_data": lambda x: x * W.cached_data[0],
    "realize": lambda x: x * W.realize_cached_data().max(),
    "asarray": lambda x: x * np.asarray(W),
    "if": lambda x: x if W.sum() > 0 else -x,
    "print": lambda x: [print(W), x][1],
    "list": lambda x: x * W.tolist()[1],
    "state_dict": lambda x: x * MODEL.state_dict()["modules.0.weight"][0, 0],
    "optimizer state_dict": lambda x: x * OPTIMIZER.state_dict()["step"],
    "optimizer state": lambda x: x * OPTIMIZER.state[0][0].sum(),
    "load_state_dict": lambda x: [OPTIMIZER.load_state_dict(SAVED), x][1],
}
MODEL = nn.Sequential(nn.Linear(2, 2))
OPTIMIZER = ndl.optim.Adam(MODEL.parameters())
SAVED = OPTIMIZER.state_dict()


@pytest.mark.parametrize("name", [*VALUES_INSIDE, *(f"outside {name}" for name in VALUES_OUTSIDE)])
def test_values_are_not_read(name: str) -> None:
    function = (VALUES_INSIDE | {f"outside {n}": f for n, f in VALUES_OUTSIDE.items()})[name]
    compiled = ndl.compile(function)
    for _ in range(2):
        with pytest.raises(TraceError, match=r"test_footguns\.py:\d+") as caught:
            compiled(t(1, 2))
        assert READ_BY.get(name, "") in str(caught.value)
    assert isinstance(W.numpy(), np.ndarray)  # everything is back


@row()
def shapes_are_known(c: Any) -> Any:
    f = c(lambda x: x * len(x) + x.shape[0] * W.shape[0] * x.ndim * sum(1 for _ in x))
    return f(X), f(t(1, 2, 3))


@row()
def shape_of_a_tensor_outside(c: Any) -> Any:
    w = t(1, 2, 3)
    f = c(lambda x: x * w.shape[0])
    first = f(X)
    w.data = t(1)
    return first, f(X)


@row()
def deepcopy_inside(c: Any) -> Any:
    w = p(1, 2)

    def f(x: Tensor) -> Tensor:
        old = copy.deepcopy(w)
        w.data = w + x
        return w - old

    f = c(f)
    return f(X), f(Y), w


# ------------------------------------------------------------------------------------------- 3: gradients at the entry


@row()
def optimizer_step_on_gradients_from_outside(c: Any) -> Any:
    w = p(1, 2)
    optimizer = ndl.optim.SGD([w], lr=0.1, momentum=0.5)
    step, found = c(lambda: optimizer.step()), []
    for scale in 1, 2, 3:
        (w * scale).sum().backward()
        step()
        found.append(w.numpy().copy())
    w.grad = None
    step()
    return found, w, w.grad


@row()
def gradients_accumulate_over_micro_batches(c: Any) -> Any:
    w = p(1, 2)

    def micro(x: Tensor) -> None:
        before = w.grad
        (w * x * w).sum().backward()
        if before is not None:
            w.grad = before + w.grad

    micro = c(micro)
    for x in X, Y, X:
        micro(x)
    return w.grad.numpy()


@row()
def gradients_that_are_reset_are_none(c: Any) -> Any:
    w, found = p(1, 2), []
    optimizer = ndl.optim.SGD([w])
    f = c(lambda x: [optimizer.reset_grad(), x * w][1])
    for _ in range(3):
        (w * 2).sum().backward()
        found += [f(X).numpy(), w.grad]
    return found


@row()
def gradients_stay_where_they_were(c: Any) -> Any:
    w, v = p(1, 2), p(3, 4)
    (w * v).sum().backward()
    kept = w.grad
    f = c(lambda x: [(v * x).sum().backward(), v * 1][1])
    f(X)
    return w.grad is kept, v.grad.numpy()


def test_an_entry_gradient_that_is_not_read_compiles_nothing() -> None:
    w = p(1, 2)
    f = ndl.compile(lambda x: w * x)
    for _ in range(3):
        f(X)
        (w * 2).sum().backward()
    assert len(compilations(f)) == 1


@row("keep_grads=True")
def a_gradient_that_is_used_up(c: Any) -> Any:
    w = p(1, 2)
    optimizer = ndl.optim.SGD([w])
    c(lambda x: [(w * x).sum().backward(), optimizer.step()])(X)
    return c(lambda: w.grad * 2)()


@row("backward reaches a gradient that was made outside")
def second_derivative_through_an_entry_gradient(c: Any) -> Any:
    w = p(1, 2)
    (w**3).sum().backward()
    c(lambda: w.grad.sum().backward())()


@row()
def gradient_assigned_by_hand(c: Any) -> Any:
    w = p(1, 2)

    def f(x: Tensor) -> None:
        w.grad = x

    c(f)(X)
    return w.grad is X, w.grad


# -------------------------------------------------------------------------------------- 4: what changes between calls


@row()
def freezing_a_layer(c: Any) -> Any:
    w, v = p(1, 2), p(3, 4)
    optimizer = ndl.optim.SGD([w, v], lr=0.1)
    step = c(lambda x: [optimizer.reset_grad(), (w * v * x).sum().backward(), optimizer.step(), None][3])
    step(X)
    w.requires_grad = False
    step(X)
    return w, v, w.grad


@row()
def requires_grad_of_an_argument(c: Any) -> Any:
    f = c(lambda x: (x * W).detach() if not x.requires_grad else x * 3)
    return f(t(1, 2)), f(t(1, 2, grad=True)).numpy()


@row()
def no_grad_around_the_call(c: Any) -> Any:
    f = c(lambda x: (x * W).requires_grad)
    with ndl.no_grad():
        first = f(X)
    return first, f(X)


@row()
def parameters_replaced(c: Any) -> Any:
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    optimizer = ndl.optim.SGD(model.parameters(), lr=1.0)
    f = c(lambda x: [optimizer.reset_grad(), model(x).sum().backward(), optimizer.step(), model(x)][3])
    x = Tensor([[1, 2]], dtype="float32")
    found = [f(x).numpy()]
    model.modules[0].weight = Parameter(Tensor([[1, 2], [3, 4]], dtype="float32"))
    found.append(f(x).numpy())
    optimizer.params[0] = model.modules[0].weight
    return found, f(x).numpy(), model.modules[0].weight


@row()
def data_of_another_shape(c: Any) -> Any:
    w = t(1, 2)
    f, found = c(lambda x: x * w), []
    for new in t(5), Tensor([[1], [2]], dtype="float32"):
        found.append(f(X))
        w.data = new
    return found, f(X)


@row()
def data_set_to_another_shape_inside(c: Any) -> Any:
    w = t(1, 2)

    def f(x: Tensor) -> None:
        w.data = (w * x).sum(keepdims=True)

    f = c(f)
    f(X), f(X)
    return w


@row()
def hyper_parameters_become_zero(c: Any) -> Any:
    w = p(1, 2)
    optimizer = ndl.optim.SGD([w], lr=0.1)
    step, found = c(lambda x: [optimizer.reset_grad(), (w * x).sum().backward(), optimizer.step(), None][3]), []
    for lr, momentum, decay in (0.1, 0.0, 0.0), (0.2, 0.9, 0.0), (0.0, 0.9, 0.1), (0.1, 0.0, 0.2):
        optimizer.lr, optimizer.momentum, optimizer.weight_decay = lr, momentum, decay
        step(X)
        found.append(w.numpy().copy())
    return found


@row()
def learning_rate_read_by_the_user(c: Any) -> Any:
    optimizer = ndl.optim.SGD([p(1, 2)], lr=0.5)
    f = c(lambda x: x * optimizer.lr)
    first = f(X)
    optimizer.lr = 0.25
    return first, f(X)


@row()
def number_of_steps_read_by_the_user(c: Any) -> Any:
    w = p(1, 2)
    optimizer = ndl.optim.SGD([w], lr=0.5)
    f = c(lambda x: [(w * x).sum().backward(), optimizer.step(), x * optimizer.t][2])
    return f(X), f(X), f(X)


@row()
def attributes_of_modules(c: Any) -> Any:
    norm, found = nn.LayerNorm1d(2), []
    f, x = c(lambda x: norm(x)), Tensor([[1, 5]], dtype="float32")
    for norm.eps in 1e-5, 1.0, 100:
        found.append(f(x).numpy())
    norm.note = "unused"
    return found, f(x).numpy()


class Scaled(nn.Module):
    factor = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.ReLU()]
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.grow(x * self.factor)

    def grow(self, x: Tensor) -> Tensor:
        return x + 1


class Wider(Scaled):
    pass


@row()
def class_attributes_and_methods(c: Any) -> Any:
    model = Wider()
    f, original, found = c(lambda x: model(x)), Scaled.grow, []
    try:
        found.append(f(Y))
        Scaled.factor = 3.0
        found.append(f(Y))
        Wider.factor = 4.0
        found.append(f(Y))
        Scaled.grow = lambda self, x: x - 1
        found.append(f(Y))
        model.grow = lambda x: x * 100
        found.append(f(Y))
    finally:
        Scaled.factor, Scaled.grow = 2.0, original
        del Wider.factor
    return found


@row()
def layers_appended_and_methods_of_needle_replaced(c: Any) -> Any:
    model = Scaled()
    f, original = c(lambda x: model(x)), nn.ReLU.forward
    found = [f(Y)]
    model.layers.append(lambda x: x * 10)
    found.append(f(Y))
    try:
        nn.ReLU.forward = lambda self, x: -x
        return found, f(Y)
    finally:
        nn.ReLU.forward = original


def with_defaults(x: Tensor, scale: float = 2.0, *, shift: float = 1.0) -> Tensor:
    return x * scale + shift


@row()
def defaults_of_functions(c: Any) -> Any:
    f, found = c(lambda x: with_defaults(x)), []
    try:
        found.append(f(X))
        with_defaults.__defaults__ = (5.0,)
        found.append(f(X))
        with_defaults.__kwdefaults__["shift"] = 7.0
        return found, f(X)
    finally:
        with_defaults.__defaults__, with_defaults.__kwdefaults__ = (2.0,), {"shift": 1.0}


SETTINGS = {"scale": 2.0, "nested": {"shift": [1.0]}}
CONFIG = types.SimpleNamespace(model=types.SimpleNamespace(scale=2.0, sizes=[1, 2]), unused=0)


@row()
def nested_settings(c: Any) -> Any:
    f = c(lambda x: x * SETTINGS["scale"] + SETTINGS["nested"]["shift"][0] * CONFIG.model.scale)
    found = [f(X)]
    for holder, key, value in (
        (SETTINGS, "scale", 3.0),
        (SETTINGS["nested"]["shift"], 0, 5.0),
        (SETTINGS["nested"], "shift", [7.0]),
        (vars(CONFIG.model), "scale", -1.0),
        (vars(CONFIG), "model", types.SimpleNamespace(scale=9.0)),
    ):
        before, holder[key] = holder[key], value
        found.append(f(X))
        holder[key] = before
    return found


@row()
def lists_grow_and_shrink(c: Any) -> Any:
    weights, found = [1.0, 2.0], []
    f = c(lambda x: sum((x * w for w in weights), start=x))
    for change in (lambda: None, lambda: weights.append(3.0), lambda: weights.pop(0), weights.clear):
        change()
        found.append(f(X))
    return found


@row()
def an_attribute_that_hides_that_of_the_class(c: Any) -> Any:
    class Settings:
        factor = 3.0

    class More(Settings):
        pass

    class Method(Settings):
        @c
        def scaled(self, x: Tensor) -> Tensor:
            return x * self.factor

    found = []
    for settings in Settings(), More():
        f = c(lambda x, settings=settings: x * settings.factor)
        inner = c(lambda x: x * settings.factor)  # noqa: B023  # called before the next one is made
        found += [f(X), inner(X)]
        settings.factor = 4.0
        found += [f(X), inner(X)]
        del settings.factor
        found += [f(X), inner(X)]
    method = Method()
    found.append(method.scaled(X))
    method.factor = 5.0
    return found, method.scaled(X)


@row()
def bytes_in_the_order_of_another_machine(c: Any) -> Any:
    found, w = [], t(1, 2)
    for kind in ">i2", ">i8", ">f4", ">f8":
        array = np.array([1, 2], kind)
        f = c(lambda x: x * w + 1)
        found += [f(array), f(Tensor.from_numpy(array)), f(array.astype(array.dtype.newbyteorder("<")))]
    return found


@row()
def a_closure_number_of_another_type(c: Any) -> Any:
    scale: Any = 1
    f, found = c(lambda x: x * scale), []
    for new in 1, 1.0, True, 0.0, -0.0:
        scale = new
        found += [f(Tensor([1, 2]))]
    return found, np.signbit(f(t(1)).numpy()).tolist()


def test_what_does_not_count_compiles_nothing() -> None:
    model, nan = Scaled(), float("nan")
    f = ndl.compile(lambda x, s: model(x) * s)
    for i in range(4):
        model.calls = [*model.calls, i]
        model.epochs = i
        f(X, float("nan") if i else nan)
        CONFIG.unused = i
    assert len(compilations(f)) == 1


helpers = types.ModuleType("helpers")
exec("SCALE = 2.0\ndef loss(x):\n    return (x * SCALE).sum()", vars(helpers))
helpers.__file__ = "helpers.py"


@row()
def functions_of_other_modules(c: Any) -> Any:
    f, original = c(lambda x: helpers.loss(x) * helpers.SCALE), helpers.loss
    found = [f(X)]
    helpers.SCALE = 3.0
    found.append(f(X))
    helpers.loss = lambda x: x.max()
    found.append(f(X))
    helpers.SCALE, helpers.loss = 2.0, original
    return found


class Callable_:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.scale

    def __mul__(self, x: Tensor) -> Tensor:
        return x + self.scale

    @property
    def double(self) -> float:
        return self.scale * OFFSET


OFFSET = 1.0


@row()
def partials_callable_objects_and_bound_methods(c: Any) -> Any:
    thing = Callable_(2.0)
    f = c(functools.partial(lambda g, h, x: g(x) + h(x) + (thing * x) * thing.double, thing, thing.__call__))
    g = c(thing)
    found = [f(X), g(X)]
    thing.scale = 5.0
    found += [f(X), g(X)]
    try:
        globals()["OFFSET"] = 3.0
        return found, f(X), g(X)
    finally:
        globals()["OFFSET"] = 1.0


@row()
def attributes_read_by_getattr(c: Any) -> Any:
    thing = Callable_(2.0)
    f = c(lambda x: x * getattr(thing, "sca" + "le"))
    first = f(X)
    thing.scale = 3.0
    return first, f(X)


@row()
def closures_of_closures_and_decorators(c: Any) -> Any:
    base = [1.0]

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapped(x: Tensor) -> Tensor:
            return function(x) + base[0]

        return wrapped

    power = 2

    @decorate
    def inner(x: Tensor) -> Tensor:
        return x**power

    f = c(lambda x: inner(x))
    found = [f(X)]
    power, base[0] = 3, 10.0
    return found, f(X)


def written(source: str) -> Callable[[Tensor], Any]:
    """A function whose body is this text: it may import."""
    space = {"__name__": __name__}
    exec(f"def f(x):\n    {source}", space)
    return cast("Any", space["f"])


MODULE = "".join(("help", "ers"))  # a name that no code has as a constant
READERS: dict[str, Callable[[Tensor], Any]] = {
    "import": written("import helpers; return x * helpers.SCALE"),
    "from import": written("from helpers import SCALE; return x * SCALE"),
    "import_module": lambda x: x * importlib.import_module(MODULE).SCALE,
    "__import__": lambda x: x * __import__("helpers").SCALE,
    "sys.modules": lambda x: x * sys.modules[MODULE].SCALE,
    "getattr": lambda x: x * getattr(helpers, "SCALE"),  # noqa: B009
    "getattr of a name that is made": lambda x: x * getattr(helpers, "".join(("SC", "ALE"))),
    "vars": lambda x: x * vars(helpers)["SCALE"],
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_read_from_a_module_is_read_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    f = ndl.compile(READERS[name])
    assert [f(X).numpy().tolist(), f(X).numpy().tolist()] == [[2, 4]] * 2
    assert len(compilations(f)) == 1
    monkeypatch.setattr(helpers, "SCALE", 3.0)
    assert f(X).numpy().tolist() == [3, 6]
    if "import" in name or "modules" in name:
        other = types.ModuleType("helpers")
        other.__dict__.update(SCALE=5.0, __file__="helpers.py")
        monkeypatch.setitem(sys.modules, "helpers", other)
        assert f(X).numpy().tolist() == [5, 10]


@row()
def a_module_that_is_imported_for_the_first_time(c: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "footguns_helper.py").write_text("import os\nSCALE = 2.0 * os.path.exists(os.curdir)\n")
        sys.path.insert(0, folder)
        try:
            f = c(written("import footguns_helper; return x * footguns_helper.SCALE"))
            first = f(X)
            sys.modules["footguns_helper"].SCALE = 3.0
            return first, f(X)
        finally:
            sys.path.remove(folder)
            del sys.modules["footguns_helper"]


def test_effects_are_refused_in_a_program_that_is_being_imported() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = "import needle as ndl\nndl.compile(lambda x: [print('once'), x][1])(ndl.ones(2))\n"
        pathlib.Path(folder, "footguns_program.py").write_text(source)
        sys.path.insert(0, folder)
        try:
            with pytest.raises(TraceError, match=r"footguns_program\.py:2: print\(\) prints"):
                importlib.import_module("footguns_program")
        finally:
            sys.path.remove(folder)


@row()
def a_global_that_comes_later(c: Any) -> Any:
    space: dict[str, Any] = {"__name__": __name__}
    exec("def f(x):\n  try:\n    return x * LATER\n  except NameError:\n    return x", space)
    f = c(cast("Any", space["f"]))
    found = [f(X), f(X)]
    space["LATER"] = 3.0
    return found, f(X)


ENVIRONMENT: dict[str, Callable[[Tensor], Any]] = {
    "member": lambda x: x * float(os.environ["FOOTGUN"]),
    "get": lambda x: x * float(os.environ.get("FOOTGUN", "7")),
    "getenv": lambda x: x * float(os.getenv("FOOTGUN") or 0),
    "in": lambda x: x * 2 if "FOOTGUN" in os.environ and os.environ["FOOTGUN"] == "2" else x * 3,
    "all": lambda x: x * float({**os.environ}["FOOTGUN"]),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_environment_is_read_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f = ndl.compile(ENVIRONMENT[name])
    for value in "2", "2", "3":
        monkeypatch.setenv("FOOTGUN", value)
        assert f(X).numpy().tolist() == ENVIRONMENT[name](X).numpy().tolist()
    assert [entry.reason[:10] for entry in compilations(f)] == ["first call", "os.environ"]


class Config(dict[str, float]):
    scale = 1.0


def holders() -> dict[str, tuple[Any, Callable[[Any], float], Callable[[Any], Any]]]:
    """Things that hold a number, how it is read, and how it is changed."""
    inner, number = {"a": 2.0}, Callable_(2.0)
    config, local = Config(), threading.local()
    config.scale = local.scale = 2.0
    variable = contextvars.ContextVar("variable", default=2.0)
    by_partial, frozen = functools.partial(getattr, number, "scale"), np.array([2.0, 1.0])
    frozen.flags.writeable = False
    loader = ndl.data.DataLoader([1, 2, 3, 4], batch_size=2)
    return {
        "UserDict": (UserDict(a=2.0), lambda h: h["a"], lambda h: h.update(a=3.0)),
        "other UserDict": (UserDict(a=2.0), lambda h: h["a"], lambda h: setattr(h, "data", {"a": 3.0})),
        "UserList": (UserList([2.0]), lambda h: h[0], lambda h: h.__setitem__(0, 3.0)),
        "ChainMap": (ChainMap({}, inner), lambda h: h["a"], lambda h: h.maps[0].update(a=3.0)),
        "proxy": (types.MappingProxyType(inner), lambda h: h["a"], lambda _: inner.update(a=3.0)),
        "weak": (weakref.ref(number), lambda h: h().scale, lambda _: setattr(number, "scale", 3.0)),
        "bytes": (bytearray(b"2"), lambda h: float(h[0]), lambda h: h.__setitem__(0, 3)),
        "array": (array("d", [2.0]), lambda h: h[0], lambda h: h.__setitem__(0, 3.0)),
        "dict with attributes": (config, lambda h: h.scale, lambda h: setattr(h, "scale", 3.0)),
        "method": ([2.0].__getitem__, lambda h: h(0), lambda h: h.__self__.append(3.0) or h.__self__.reverse()),
        "local": (local, lambda h: h.scale, lambda h: setattr(h, "scale", 3.0)),
        "context": (variable, lambda h: h.get(), lambda h: h.set(3.0)),
        "class": (Callable_(2.0), lambda h: h.double, lambda h: setattr(h, "__class__", Doubled)),
        "values": (inner.values(), sum, lambda _: inner.update(a=3.0)),
        "attribute by a getter": (number, operator.attrgetter("scale"), lambda _: setattr(number, "scale", 3.0)),
        "attribute by a partial": (by_partial, lambda h: h(), lambda _: setattr(number, "scale", 3.0)),
        "record": (Settings(2.0), lambda h: dataclasses.astuple(h)[0], lambda h: setattr(h, "scale", 3.0)),
        "event": (threading.Event(), lambda h: 3.0 if h.is_set() else 2.0, lambda h: h.set()),
        "bases": (type("Child", (Sevenfold,), {}), lambda h: h.double, lambda h: setattr(h, "__bases__", (Doubled,))),
        "class of a class": (Counted, lambda h: h.scale, lambda _: setattr(Counting, "scale", 3.0)),
        "array that is read-only": (frozen, lambda h: h[0], lambda _: thaw(frozen)),
        "batches": (loader, lambda h: h.batch_size, lambda h: setattr(h, "batch_size", 3)),
    }


def thaw(array: np.ndarray) -> None:
    array.flags.writeable = True
    array[0] = 3


@dataclasses.dataclass
class Settings:
    scale: float


class Sevenfold:
    double = 7.0


class Counting(type):
    scale = 2.0


class Counted(metaclass=Counting):
    pass


def test_what_names_attributes_by_strings_compiles_once() -> None:
    """Neither the place of a loader in its data nor an optimizer's state and rate are what the function depends on."""

    class Trainer:
        def __init__(self) -> None:
            self.loader = ndl.data.DataLoader([1, 2, 3, 4], batch_size=2)
            self.layer = nn.Linear(2, 1)
            self.optimizer = ndl.optim.Adam(self.layer.parameters())
            self.settings = Settings(2.0)

        def step(self, x: Tensor) -> Tensor:
            self.optimizer.reset_grad()
            loss = self.layer(x).sum() * getattr(self, "factor", 1.0) * dataclasses.astuple(self.settings)[0]
            loss.backward()
            self.optimizer.step()
            return loss / len(self.loader)

    trainer = Trainer()
    f = ndl.compile(trainer.step)
    for _ in range(3):
        for _ in trainer.loader:
            f(X)
            trainer.optimizer.lr /= 2
    assert len(compilations(f)) == 1
    trainer.loader.batch_size = 1
    f(X)
    assert len(compilations(f)) == 2


def test_a_name_of_its_own_comes_before_a_builtin_one(monkeypatch: pytest.MonkeyPatch) -> None:
    f = ndl.compile(lambda x: x * abs(-2))
    assert f(X).numpy().tolist() == (X * 2).numpy().tolist()
    monkeypatch.setitem(globals(), "abs", lambda _: 5)
    assert f(X).numpy().tolist() == (X * 5).numpy().tolist()


def test_a_function_of_needle_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    f = ndl.compile(lambda x: ndl.tanh(x))
    f(X)
    monkeypatch.setattr(ndl, "tanh", lambda x: x * 7)
    assert f(X).numpy().tolist() == (X * 7).numpy().tolist()


@pytest.mark.parametrize("name", holders())
def test_what_is_held_is_read_again(name: str) -> None:
    holder, read, change = holders()[name]
    f = ndl.compile(lambda x: x * read(holder))
    for expected in 1, 2:
        for _ in range(2):
            assert f(X).numpy().tolist() == (X * read(holder)).numpy().tolist()
        assert len(compilations(f)) == expected
        change(holder)


class Doubled:
    double = 5.0


# ------------------------------------------------------------------------------------------------- 5: NumPy arrays


@row()
def arrays_by_name(c: Any) -> Any:
    mask, holder = np.array([1.0, 0.0], "float32"), types.SimpleNamespace(table=np.ones(2, "float32"))
    f = c(lambda x: x * mask + Tensor(holder.table, requires_grad=False))
    found = [f(X)]
    mask[0] = 5
    found.append(f(X))
    holder.table = holder.table * 3
    found.append(f(X))
    holder.table[1] = np.nan
    return found, str(f(X)), str(f(X))


@row("too large to be compared before each call; pass it as an argument")
def a_large_array_by_name(c: Any) -> Any:
    table = np.zeros((1024, 300), "float32")
    return c(lambda x: x * table[0, :2])(X)


@row()
def a_large_array_that_nobody_can_change(c: Any) -> Any:
    table = np.ones((1024, 300), "float32")
    table.flags.writeable = False
    return c(lambda x: x * table[0, :2])(X)


def test_the_log_names_what_changed(caplog: Any) -> None:
    mask = np.array([1.0, 0.0], "float32")
    f = ndl.compile(lambda x: x * mask)
    f(X)
    mask[0] = 2
    with caplog.at_level("INFO", logger="needle"):
        f(X)
    assert "(mask)" in caplog.records[0].getMessage()


def test_the_log_tells_dtypes_from_shapes_and_gradients(caplog: Any) -> None:
    f = ndl.compile(lambda x: x * 2)
    with caplog.at_level("INFO", logger="needle"):
        f(X)
        f(X.astype("float64"))
        f(ndl.Tensor(X.numpy(), requires_grad=not X.requires_grad))
        with ndl.no_grad():
            f(X)
        f(t(1, 2, 3))
    gradients = "gradients are recorded or not"
    for reason, record in zip(("first", "new dtypes", gradients, gradients, "new shapes"), caplog.records, strict=True):
        assert reason in record.getMessage()


def test_the_log_names_numbers_and_warns_of_many(caplog: Any) -> None:
    f = ndl.compile(lambda x, k: x * k)
    with caplog.at_level("INFO", logger="needle"):
        for number in range(MANY + 1):
            f(X, float(number))
        f(t(1, 2, 3), 0.0)
    reasons = [r.getMessage() for r in caplog.records if r.levelname == "INFO"]
    assert ["first call" in reasons[0], "new shapes" in reasons[-1]] == [True, True]
    assert all("other Python arguments" in reason for reason in reasons[1:-1])
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"compiled {MANY} times" in warning


def test_compilations_that_are_not_used_any_more_are_forgotten() -> None:
    factor = 1.0
    by_argument, by_name = ndl.compile(lambda x, k: x * k), ndl.compile(lambda x: x * factor)
    by_argument(X, -1.0)
    first = weakref.ref(by_argument.last)
    for number in range(KEPT + 10):
        factor = float(number)
        assert by_argument(X, factor).numpy().tolist() == by_name(X).numpy().tolist() == [factor, 2 * factor]
        factor = 0.0
        assert by_argument(X, 0.0).numpy().tolist() == by_name(X).numpy().tolist() == [0, 0]
    gc.collect()
    assert first() is None
    assert len(compilations(by_argument)) == len(compilations(by_name)) == KEPT
    (seconds_argument, seconds_name), factor = (by_argument.seconds, by_name.seconds), 0.0
    for factor in (0.0, KEPT + 9.0, KEPT + 8.0):  # the oldest and the newest are there still
        assert by_argument(X, factor).numpy().tolist() == by_name(X).numpy().tolist() == [factor, 2 * factor]
    assert (by_argument.seconds, by_name.seconds) == (seconds_argument, seconds_name)


# ------------------------------------------------------------------------------------------------- 6: side effects

COUNT, LOG, SEEN, TABLE = 0, [], set(), {"a": {"b": 0}}
GENERATOR, RANDOM = np.random.default_rng(0), random.Random(0)
STREAM = io.StringIO()
LINES, LOADER = iter([1.0, 2.0]), ndl.DataLoader([(np.ones(2, "float32"),)])
STREAMS, RATE = [io.StringIO()], ndl.optim.SGD([p(1, 2)])


def counts_globally(x: Tensor) -> Tensor:
    globals_of_this["COUNT"] += 1
    return x


globals_of_this = globals()


def increments(x: Tensor) -> Tensor:
    global COUNT  # noqa: PLW0603
    COUNT += 1
    return x


def swallows(x: Tensor) -> Tensor:
    with contextlib.suppress(TraceError):
        print("once")
    return x


def remembers(x: Tensor) -> Tensor:
    MODEL.last = x
    return x


def schedules(x: Tensor) -> Tensor:
    RATE.lr = RATE.lr * 0.5
    return x


def counts_itself(x: Tensor) -> Tensor:
    counts_itself.calls = getattr(counts_itself, "calls", 0) + 1
    return x


def sets_a_member(x: Tensor) -> Tensor:
    y = x * 2
    TABLE["c"] = y
    return y


def deletes(x: Tensor) -> Tensor:
    y = x * 2
    del CONFIG.unused
    return y


class Other:
    def __init__(self, factor: float) -> None:
        self.factor = factor


class Another(Other):
    pass


def changes_a_class(x: Tensor) -> Tensor:
    OTHER.__class__ = Other if type(OTHER) is Another else Another
    return x


def catches(x: Tensor) -> Tensor:
    try:
        return x * float(x.sum())
    except Exception:
        return x


NEXT, LISTED = functools.partial(next, iter([1.0, 2.0])), [iter([1.0, 2.0])]
OTHER, VARIABLE = Other(2.0), contextvars.ContextVar("VARIABLE", default=1.0)
POOL = concurrent.futures.ThreadPoolExecutor(1)
POOL.submit(int).result()
LOGGER, READY = logging.getLogger("footguns"), threading.Event()

SIDE_EFFECTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "member": (sets_a_member, f":{sets_a_member.__code__.co_firstlineno + 2}: TABLE changed"),
    "deleted": (deletes, f":{deletes.__code__.co_firstlineno + 2}: CONFIG.unused changed"),
    "class": (changes_a_class, f":{changes_a_class.__code__.co_firstlineno + 1}: the class of OTHER changed"),
    "context variable": (lambda x: [VARIABLE.set(VARIABLE.get() + 1), x][1], "VARIABLE changed"),
    "result": (lambda x: {x.shape}, "not set"),
    "now": (lambda x: x * datetime.datetime.now().second, "now() reads the clock"),
    "utcnow": (lambda x: x * datetime.datetime.utcnow().second, "utcnow() reads the clock"),
    "today": (lambda x: x * datetime.date.today().day, "today() reads the clock"),
    "strftime": (lambda x: x * int(time.strftime("%H")), "strftime() reads the clock"),
    "clock of a library": (lambda x: x * len(email.utils.formatdate()), "formatdate() reads the clock"),
    "times": (lambda x: x * os.times().user, "times() asks or changes the system"),
    "getpid": (lambda x: x * os.getpid(), "getpid() asks or changes the system"),
    "thread number": (lambda x: x * threading.get_ident(), "which thread this is"),
    "exists": (lambda x: x * os.path.exists("/"), "exists() asks or changes the system"),
    "Path": (lambda x: x * len(pathlib.Path("/").stat()), "Path.stat() asks or changes the system"),
    "partial of an iterator": (lambda x: x * NEXT(), "is an iterator"),
    "iterator in a list": (lambda x: x * next(LISTED[0]), "is an iterator"),
    "caught": (catches, "float() reads it"),
    "power of integers": (lambda x: x.astype("int64") ** x.astype("int64"), "negative exponents are errors"),
    "read_text": (lambda x: x * len(pathlib.Path(__file__).read_text()), "Path.read_text() opens a file"),
    "makedirs": (lambda x: [os.makedirs("a/b"), x][1], "makedirs() asks or changes the system"),
    "remove": (lambda x: [os.remove("nothing"), x][1], "remove() asks or changes the system"),
    "system": (lambda x: [os.system("true"), x][1], "system() asks or changes the system"),
    "subprocess": (lambda x: [subprocess.run(["true"]), x][1], "run() asks or changes the system"),
    "setenv": (lambda x: [os.environ.update(A="1"), x][1], "update() asks or changes the system"),
    "thread": (lambda x: [threading.Thread(target=int).start(), x][1], "Thread.start() starts a thread"),
    "pool": (lambda x: [POOL.submit(int), x][1], "ThreadPoolExecutor.submit() hands something to another thread"),
    "event": (lambda x: [READY.set(), x][1], "Event.set() tells other threads"),
    "queue": (lambda x: [queue.Queue().put(1), x][1], "Queue.put() tells other threads"),
    "socket": (lambda x: [socket.getfqdn(), x][1], "getfqdn() uses the network"),
    "signal": (lambda x: [signal.getsignal(2), x][1], "getsignal() registers a function"),
    "log": (lambda x: [LOGGER.warning("hello"), x][1], "Logger.warning() prints"),
    "pprint": (lambda x: [pprint.pp("hello"), x][1], "pp() reads or writes a file"),
    "seterr": (lambda x: [np.seterr(all="warn"), x][1], "seterr() changes NumPy"),
    "tofile": (lambda x: [np.ones(2).tofile("nothing"), x][1], "tofile() reads or writes a file"),
    "id": (lambda x: x * id(x), "id() tells which object a Tensor is"),
    "frame": (lambda x: x * len(sys._getframe().f_locals), "by their names"),
    "global": (increments, "COUNT changed"),
    "globals dict": (counts_globally, "changed while"),
    "list": (lambda x: [LOG.append(1), x][1], "LOG changed"),
    "leak": (lambda x: [LOG.append(x * 2), x][1], "LOG changed"),
    "set": (lambda x: [SEEN.add(1), x][1], "SEEN changed"),
    "deep": (lambda x: [TABLE["a"].update(b=1), x][1], "changed while"),
    "module attribute": (remembers, "last changed"),
    "optimizer": (schedules, "lr changed"),
    "function attribute": (counts_itself, "calls changed"),
    "print": (lambda x: [print("hello"), x][1], "print() prints"),
    "print, caught": (swallows, "print() prints"),
    "write": (lambda x: [sys.stdout.write("hello"), x][1], "file"),
    "stream": (lambda x: [STREAM.write("hello"), x][1], "STREAM is an iterator"),
    "stream inside": (lambda x: [STREAMS[0].write("hello"), x][1], "file"),
    "open": (lambda x: [open(__file__), x][1], "opens a file"),  # noqa: SIM115
    "clock": (lambda x: x * time.perf_counter(), "reads the clock"),
    "random": (lambda x: x * random.random(), "draws from random"),
    "random object": (lambda x: x * RANDOM.randint(1, 3), "draws from random"),
    "np.random": (lambda x: x * np.random.rand(), "draws from np.random"),
    "generator": (lambda x: x * GENERATOR.random(), "draws from GENERATOR"),
    "new generator": (lambda x: x * np.random.default_rng().random(), "random numbers"),
    "iterator": (lambda x: x * next(LINES), "LINES is an iterator"),
    "loader": (lambda x: sum(b for (b,) in LOADER), "pass its items as arguments"),
    "eval": (lambda x: x * eval("COUNT"), "by their names"),
}


@pytest.mark.parametrize("name", SIDE_EFFECTS)
def test_side_effects_are_refused(name: str, capsys: Any) -> None:
    function, message = SIDE_EFFECTS[name]
    states = np.random.get_state()[1], random.getstate(), GENERATOR.bit_generator.state
    with pytest.raises(TraceError, match=rf"^{re.escape(__file__)}:\d+: ") as caught:
        ndl.compile(function)(X)
    assert message in str(caught.value)
    now = np.random.get_state()[1], random.getstate(), GENERATOR.bit_generator.state
    assert repr(now) == repr(states)
    assert sys.getprofile() is None
    capsys.readouterr()


def test_a_profiler_goes_on_after_a_trace() -> None:
    """cProfile's is in C: `sys.setprofile` cannot set it again."""
    profiler = cProfile.Profile()
    with profiler:
        ndl.compile(lambda x: x * 2)(X)
        here = sys.getprofile()
        sum((1, 2))
    assert here is profiler
    profiler.create_stats()
    assert any("built-in method builtins.sum" in name for _, _, name in profiler.stats)


@row("changed while")
def nonlocal_counter(c: Any) -> Any:
    calls = 0

    def f(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x

    c(f)(X)


@row("an argument changed")
def results_appended_to_an_argument(c: Any) -> Any:
    c(lambda x, out: out.append(x * 2))(X, [])


@row("changes a NumPy array that is an argument")
def array_argument_changed_in_place(c: Any) -> Any:
    def f(a: Any) -> Any:
        a += 1
        return a

    c(f)(np.ones(2, "float32"))


@row("changes a NumPy array that is an argument")
def array_argument_set(c: Any) -> Any:
    def f(a: Any) -> Any:
        a[0] = 1

    c(f)(np.ones(2, "float32"))


# ------------------------------------------------------------------------------------------------ 7: aliased arguments


@row()
def the_same_tensor_twice(c: Any) -> Any:
    x, z = t(1, 2, grad=True), t(1, 2, grad=True)
    f = c(lambda a, b: [(a * b * b).sum().backward(), a.grad][1].numpy.__self__ * 1)
    return f(x, z).numpy(), f(x, x).numpy(), x.grad.numpy(), z.grad.numpy(), f(x, z).numpy()


@row()
def written_arguments(c: Any) -> Any:
    def f(a: Tensor, b: Tensor) -> Tensor:
        a.data = a + 1
        b.data = b * 2
        return a + b

    f, x = c(f), t(1, 2)
    return f(x, x), x, f(x, t(5, 6)), x


@row()
def an_argument_that_is_captured_too(c: Any) -> Any:
    w, v = p(1, 2), p(5, 6)

    def f(a: Tensor) -> Tensor:
        a.data = a + w
        return (a * w).detach()

    f = c(f)
    return f(w), w, f(v), v, w, f(w), w


@row("pass x.detach()")
def backward_through_an_argument(c: Any) -> Any:
    c(lambda h: (h * h).sum().backward())(p(1, 2) * 3)


@row()
def an_argument_with_a_graph(c: Any) -> Any:
    return c(lambda h: (h * h).detach())(p(1, 2) * 3)


@row()
def backward_into_a_graph_outside(c: Any) -> Any:
    w = p(1, 2)
    h = w * w * 3
    f, found = c(lambda x: (h * x).sum().backward()), []
    for x in X, Y:
        f(x)
        found += [w.grad.numpy(), h.grad.numpy()]
    return found


# ----------------------------------------------------------------------------------------------------------- 8: results


@row("call backward() inside of the compiled function")
def loss_outside_of_a_compiled_forward(c: Any) -> Any:
    forward = c(lambda x: x * W)
    (forward(X) * 2).sum().backward()


@row("call backward() inside of the compiled function")
def backward_of_a_compiled_loss(c: Any) -> Any:
    c(lambda x: (x * W).sum())(X).backward()


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    loss: Any
    parts: list[Any]


@row()
def containers_come_back(c: Any) -> Any:
    f = c(lambda x: [Pair(x * 2, None), Output(x + 1, [x, 3, ("a", {"b": x * 3})]), np.float32(2), slice(1, 2)])
    return f(X), f(Y)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    loss: Any
    scale: float = 2.0


@row()
def other_containers_come_and_go(c: Any) -> Any:
    def f(ordered: Any, defaults: Any, frozen: Any) -> Any:
        loss = (ordered["a"] + defaults["a"]) * frozen.loss * frozen.scale
        return OrderedDict(b=loss, a=ordered), defaultdict(list, {"c": loss, "d": defaults}), Frozen(loss, 3.0), frozen

    f = c(f)
    found = [f(OrderedDict(a=x), defaultdict(list, a=x), Frozen(x)) for x in (X, Y)]
    assert c is eager or len(compilations(f)) == 1
    order = [type(part).__name__ for part in found[-1]], list(found[-1][0]), found[-1][1].default_factory
    return order, [[*a.values(), *b.values(), d.loss, e.loss] for a, b, d, e in found]


@row("changed while")
def an_ordered_dict_that_is_changed(c: Any) -> Any:
    c(lambda x, out: out.update(b=x * 2))(X, OrderedDict(a=X))


@row("not Counter")
def a_container_that_is_not_known(c: Any) -> Any:
    c(lambda x: Counter({x: 1}))(X)


@row()
def tensors_that_are_returned_as_they_are(c: Any) -> Any:
    def f(x: Tensor, a: Any) -> Any:
        y = x * 2
        return x, W, y, y, a

    a = np.ones(2)
    found = c(f)(X, a)
    return found[0] is X, found[1] is W, found[2] is found[3], found[4] is a


@row()
def dataclasses_as_arguments(c: Any) -> Any:
    f = c(lambda pair, output: pair.first * output.loss + output.parts[0])
    return f(Pair(X, 1), Output(Y, [1.5])), f(Pair(Y, 1), Output(Y, [2.5]))


def test_results_keep_nothing_alive() -> None:
    f = ndl.compile(lambda x: x * W)
    x = t(1, 2, grad=True)
    before = ndl.autograd.TENSOR_COUNTER
    for _ in range(5):
        result = f(x)
    assert ndl.autograd.TENSOR_COUNTER - before <= 1 + 2
    assert result.inputs == ()


# -------------------------------------------------------------------------------------------------------------- 9: keys


@row()
def arguments_of_every_kind(c: Any) -> Any:
    def f(x: Tensor, k: Any) -> Any:
        return [x * k if isinstance(k, int | float | np.generic) else x[k] if isinstance(k, slice) else k, str(type(k))]

    f, found = c(f), []
    for k in 1, True, 1.0, np.float32(1), np.int64(1), np.float64(1), slice(0, 1), slice(1, 2), np.dtype("int8"), None:
        found += f(Tensor([1, 2]), k)
    return found


def test_arguments_that_are_alike_compile_once() -> None:
    f = ndl.compile(lambda x, k, s: x * k)
    for _ in range(3):
        f(X, float("nan"), slice(0, 3)), f(X, np.float32("nan"), slice(0, 3)), f(X, np.float32(2), range(3))
    assert len(compilations(f)) == 3


@row()
def objects_as_arguments(c: Any) -> Any:
    f, found = c(lambda x, thing: thing(x)), []
    for scale in 2.0, 3.0, 4.0:
        found += [f(X, Callable_(scale))]  # each may get the address of the one before
    thing = Callable_(1.0)
    found.append(f(X, thing))
    thing.scale = 9.0
    return found, f(X, thing), f(X, lambda x: -x)


@row("is an iterator")
def an_iterator_as_argument(c: Any) -> Any:
    c(lambda x, lines: x * next(lines))(X, itertools.count())


# ---------------------------------------------------------------------------------------------------- 10: exceptions


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, TraceError])
@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
def test_an_exception_puts_everything_back(place: str, error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    w = p(1, 2)
    (w * 3).sum().backward()
    array, grad = w.cached_data, w.grad
    optimizer = ndl.optim.Adam([w], lr=0.1)
    kept = optimizer.state, np.random.get_state()[1].tolist()

    def fail(*_: Any) -> Any:
        raise error("in the middle")

    def step(x: Tensor) -> Tensor:
        w.requires_grad = True
        loss = (ndl.relu(w) * x * ndl.rand(2)).sum()
        loss.backward()
        optimizer.step()
        return loss

    f = ndl.compile(step)
    holder, name = {
        "forward": (ndl.ops.Multiply, "__call__"),
        "backward": (ndl.ops.ReLU, "gradient"),
        "optimizer": (ndl.optim.Adam, "update"),
    }[place]
    with monkeypatch.context() as broken:
        broken.setattr(holder, name, fail)
        with pytest.raises(error, match="in the middle"):
            f(X)
    assert (w.cached_data is array, w.grad is grad, w.requires_grad) == (True,) * 3
    assert (optimizer.t, optimizer.state) == (0, kept[0])
    assert np.random.get_state()[1].tolist() == kept[1]
    assert not {"cached_data", "grad", "requires_grad"} & vars(Tensor).keys()
    assert np.isfinite(float(f(X)))


@pytest.mark.parametrize("label", [4, -1, 1.5])
def test_a_wrong_label_changes_nothing(label: float) -> None:
    w = Parameter(np.zeros((2, 4), "float32"))
    optimizer = ndl.optim.Adam([w], lr=0.1)

    def step(x: Tensor, y: Tensor) -> None:
        nn.SoftmaxLoss()(x @ w, y * 1).backward()
        optimizer.step()

    f, x = ndl.compile(step), Tensor([[1, 2]], dtype="float32", requires_grad=False)
    f(x, Tensor([3.0 if label == 1.5 else 3], requires_grad=False))
    before, t_before = w.numpy().copy(), optimizer.t
    with pytest.raises((IndexRangeError, ndl.errors.DTypeError), match=r"test_footguns\.py:\d+: label .* class"):
        f(x, Tensor([label], requires_grad=False))
    assert (w.numpy().tolist(), optimizer.t) == (before.tolist(), t_before)


@pytest.mark.parametrize("label", [3, -1])
def test_a_wrong_label_beside_ignored_ones_is_found(label: int) -> None:
    f, logits = ndl.compile(lambda x, y: ndl.cross_entropy(x, y, ignore_index=-100)), t(*range(12)).reshape((4, 3))
    assert f(logits, Tensor([0, 1, 2, -100])).numpy() == ndl.cross_entropy(logits[:3], Tensor([0, 1, 2])).numpy()
    with pytest.raises(IndexRangeError, match=f"label {label} is not one of 3 classes"):
        f(logits, Tensor([0, 1, label, -100]))


# --------------------------------------------------------------------------------------- 11: nesting, threads, leaks


def test_a_tensor_that_leaked_says_where_it_was_made() -> None:
    kept: list[Any] = []
    with pytest.raises(TraceError, match="kept changed while"):
        ndl.compile(lambda x: [kept.append(x * 2), x][1])(X)
    for read in (Tensor.numpy, str, lambda leaked: leaked + 1):
        with pytest.raises(TraceError, match=r"test_footguns\.py:\d+: this Tensor was made inside"):
            read(kept[0])


def test_a_tensor_that_leaked_into_a_list_that_no_name_leads_to() -> None:
    box = functools.cache(list)  # its memory is in C
    box()
    ndl.compile(lambda x: [box().append(x * 2), x][1])(X)
    (leaked,) = box()
    for read in (Tensor.numpy, str, lambda leaked: leaked + 1):
        with pytest.raises(TraceError, match=r"test_footguns\.py:\d+: this Tensor was made inside"):
            read(leaked)


def test_a_result_that_was_given_another_shape_is_not_written_into() -> None:
    double = ndl.compile(lambda x: x * 2)
    for change in (lambda a: setattr(a.flags, "writeable", False), lambda a: a.resize((1, 4), refcheck=False)):
        change(double(X).numpy())
        for found in (double(X).numpy(), double(X).numpy()):
            assert (found.shape, found.tolist(), found.flags.writeable) == ((2,), (2 * X.numpy()).tolist(), True)


@row()
def recursion_and_nesting(c: Any) -> Any:
    inner = c(lambda x, s: x * s)

    @c
    def power(x: Tensor, n: int) -> Tensor:
        return inner(x, 2.0) if n == 0 else power(x, n - 1) * x

    return power(X, 3), power(X, 2), inner(X, 3.0)


@row()
def methods_share_state(c: Any) -> Any:
    class Model:
        def __init__(self, scale: float) -> None:
            self.w, self.scale = t(1, 2), scale

        @c
        def move(self, x: Tensor) -> None:
            self.w.data = self.w + x * self.scale

        @c
        def read(self, x: Tensor) -> Tensor:
            return self.w * x

    a, b = Model(1.0), Model(2.0)
    a.move(X), b.move(X), a.move(Y)
    b.scale = 10.0
    b.move(X)
    return a.read(X), b.read(X)


def test_other_threads_notice_nothing() -> None:
    w, stop, wrong = p(1, 2), threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            if (w * 2).numpy().tolist() != [2, 4]:
                wrong.append(1)
            (w * 3).sum().backward()

    worker = threading.Thread(target=work)
    worker.start()
    for i in range(8):
        f = ndl.compile(lambda x, i: [(w * x * i).sum().backward(), w * x][1].detach())
        assert f(X, i).numpy().tolist() == [1, 4]
    stop.set()
    worker.join()
    assert not wrong


# ------------------------------------------------------------------------------------------------------ 12: optimizers


def trained(c: Any, make: Callable[[Any], Any], steps: int = 3) -> Any:
    w, v = p(1, 2), p(3, 4)
    step = c(make((w, v)))
    return [step(x) for x in (X, Y, X)[:steps]] and [w.numpy(), v.numpy()]


@row()
def two_optimizers_share_a_parameter(c: Any) -> Any:
    def make(params: Any) -> Any:
        w, v = params
        a, b = ndl.optim.Adam([w, v], lr=0.1), ndl.optim.SGD([v], lr=0.2, momentum=0.9)

        def step(x: Tensor) -> None:
            (w * v * x).sum().backward()
            a.step()
            b.step()
            a.step()

        return step

    return trained(c, make)


@row()
def an_optimizer_made_inside(c: Any) -> Any:
    def make(params: Any) -> Any:
        def step(x: Tensor) -> None:
            optimizer = ndl.optim.Adam(params, lr=0.1)
            for _ in range(2):
                optimizer.reset_grad()
                (params[0] * params[1] * x).sum().backward()
                optimizer.step()

        return step

    return trained(c, make)


@row()
def state_loaded_between_calls(c: Any) -> Any:
    w = p(1, 2)
    optimizer = ndl.optim.Adam([w], lr=0.1)
    step = c(lambda x: [(w * x * w).sum().backward(), optimizer.step(), None][2])
    step(X)
    saved = optimizer.state_dict()
    step(Y)
    optimizer.load_state_dict(saved)
    step(X)
    return w, optimizer.state_dict()


@row()
def gradients_are_clipped(c: Any) -> Any:
    w = p(1, 2)
    optimizer, norms = ndl.optim.SGD([w], lr=0.1), []

    def step(x: Tensor) -> Any:
        optimizer.reset_grad()
        (w * x).sum().backward()
        norm = optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return norm

    step = c(step)
    for x in X, t(0.1, 0.2), Y:
        norms += [round(float(step(x)), 4)]
    return norms, w


@row()
def a_tensor_made_inside_and_written(c: Any) -> Any:
    def f(x: Tensor) -> Tensor:
        total = Tensor([0.0, 0.0], requires_grad=False)
        for _ in range(2):
            total.data = total + x.astype("float64")
        return total

    f = c(f)
    return f(X), f(Y), f(X)


# ----------------------------------------------------------------------------------------------------------- 13: check


def test_check_runs_both_and_takes_one_step() -> None:
    w, v = p(1, 2), p(1, 2)
    optimizers = [ndl.optim.Adam([q], lr=0.1) for q in (w, v)]

    def make(q: Any, optimizer: Any) -> Any:
        return lambda x: [optimizer.reset_grad(), (q * x).sum().backward(), optimizer.step(), q * x][3]

    checked = ndl.compile(check=True)(make(w, optimizers[0]))
    alone = make(v, optimizers[1])
    for x in X, Y:
        np.testing.assert_allclose(checked(x).numpy(), alone(x).numpy(), rtol=1e-5)
    np.testing.assert_allclose(w.numpy(), v.numpy(), rtol=1e-5)
    assert optimizers[0].t == 2


def test_check_of_a_parameter_without_a_gradient() -> None:
    """It has no state yet."""
    w, unused = p(1, 2), p(3, 4)
    optimizer = ndl.optim.Adam([w, unused], lr=0.1)

    @ndl.compile(check=True)
    def step(x: Tensor) -> None:
        optimizer.reset_grad()
        (w * x).sum().backward()
        optimizer.step()

    step(X)
    assert optimizer.t == 1
    assert unused.numpy().tolist() == [3, 4]


def test_check_tells_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    w = p(1, 2)

    def f(x: Tensor) -> Tensor:
        w.data = ndl.tanh(w) * x
        return x + 1

    monkeypatch.setattr(ndl.ops.Tanh, "__call__", lambda op, x: x * 2 if ndl.tracing.active.tracer else x)
    with pytest.raises(TraceError, match=r"differ in w, by up to 1 where"):
        ndl.compile(check=True)(f)(X)
    assert w.numpy().tolist() == [1, 2]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="small numbers stay what they are")
def test_check_takes_small_numbers_for_0() -> None:
    small = t(1e-40, 1)
    assert ndl.compile(lambda x: x * 2, check=True)(small).numpy().tolist() == [0, 2]
    with pytest.raises(TraceError, match=r"has nan at index \[0\] where the uncompiled one has 1; .* 1e-38"):
        ndl.compile(lambda x: x / x, check=True)(small)


def compilations(f: Any) -> list[Any]:
    return [entry for entries in f.compiled.values() for entry in entries]


@pytest.mark.parametrize(("program", "expected"), [pytest.param(f, e, id=n) for n, f, e in ROWS])
def test_compiled_is_the_same_or_refused(program: Any, expected: str) -> None:
    if expected == EQUAL:
        np.random.seed(0)
        wanted = plain(program(eager))
        np.random.seed(0)
        assert plain(program(ndl.compile)) == wanted
    else:
        with pytest.raises(TraceError) as caught:
            program(ndl.compile)
        assert expected in str(caught.value)


def test_a_variable_that_is_assigned_later() -> None:
    def build() -> tuple[Any, Any]:
        def assign(value: float) -> None:
            nonlocal factor
            factor = value

        def scaled(x: Tensor) -> Tensor:
            try:
                return x * factor
            except NameError:
                return x

        if X is None:
            factor = 1.0
        return scaled, assign

    (eager, assign), (function, also) = build(), build()
    compiled = ndl.compile(function)
    assert compiled(X).numpy().tolist() == compiled(X).numpy().tolist() == eager(X).numpy().tolist()
    assign(3.0)
    also(3.0)
    assert compiled(X).numpy().tolist() == eager(X).numpy().tolist()


class Matched:
    """What a `match` statement takes apart."""

    __match_args__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale


@pytest.mark.parametrize("named", [False, True])
def test_attributes_that_a_match_statement_reads(named: bool) -> None:
    holder = Matched(2.0)

    def by_name(x: ndl.Tensor) -> ndl.Tensor:
        match holder:
            case Matched(scale=s):
                return x * s

    def by_place(x: ndl.Tensor) -> ndl.Tensor:
        match holder:
            case Matched(s):
                return x * s

    compiled = ndl.compile(by_name if named else by_place)
    for scale in (2.0, 5.0):
        holder.scale = scale
        np.testing.assert_array_equal(compiled(ndl.ones(2)).numpy(), [scale, scale])


ARRAYS = {
    "equal": lambda x, y: ndl.where(ndl.Tensor(y == 2), x, x * 0),
    "not equal": lambda x, y: ndl.Tensor(x) * (y != 2),
    "turned": lambda x, y: ndl.Tensor(np.ones((2, 3, 4)) * x.reshape((1, 3, 1))).sum(0) * y.T[0],
    "all axes reversed": lambda x, y: ndl.Tensor(x.reshape((1, 3, 1)).T) + ndl.Tensor(y.reshape((3, 1, 1)).transpose()),
    "axes by name": lambda x, y: ndl.Tensor(x.reshape((1, 3, 1)).transpose(1, 0, 2)) * 2,
    "an array": lambda x, y: ndl.Tensor(x / 255.0) if isinstance(x, np.ndarray) else x,
    "a scalar of NumPy": lambda x, y: ndl.Tensor(x * np.float64(0.5)) + ndl.Tensor(np.float64(3) * x),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_arguments_do_what_arrays_do(name: str) -> None:
    x, y = np.array([1.0, 2.0, 3.0], "float32"), np.array([1, 2, 2])
    wanted, found = ARRAYS[name](x, y), ndl.compile(ARRAYS[name])(x, y)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [lambda y: y & 1, lambda y: y // 2, lambda y: y.clip(0, 1), lambda y: y.std(), lambda y: ~y, lambda y: 3 in y],
)
def test_what_only_arrays_do_is_refused(function: Any) -> None:
    with pytest.raises(TraceError, match=r"test_footguns\.py:\d+"):
        ndl.compile(lambda y: ndl.Tensor(function(y)))(np.array([1, 2, 2]))


def test_arrays_that_no_tensor_holds() -> None:
    with pytest.raises(ndl.errors.DTypeError, match="complex64"):
        ndl.compile(lambda x: ndl.Tensor(x))(np.ones(2, "complex64"))


@pytest.mark.parametrize("betas", [(0, 0.9), (0.0, 0.0), (0.5, 0)])
def test_decays_that_are_zero(betas: tuple[float, float]) -> None:
    def trained(run: bool) -> Any:
        w = ndl.nn.Parameter(np.ones(3, "float32"))
        optimizer = ndl.optim.Adam([w], lr=0.1, beta1=betas[0], beta2=betas[1])

        def step(x: ndl.Tensor) -> None:
            optimizer.reset_grad()
            ((w * x) ** 2).sum().backward()
            optimizer.step()

        for _ in range(3):
            (ndl.compile(step) if run else step)(ndl.Tensor([1.0, 2.0, 3.0], dtype="float32"))
        return w.numpy()

    np.testing.assert_allclose(trained(True), trained(False), rtol=1e-5)
