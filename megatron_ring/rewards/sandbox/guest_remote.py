"""The solution's objects, used from the process of the unit tests: two halves of one conversation, a line each way.

`guest_server` is in the solution's process: it calls, reads and iterates what it is asked to. `Client` is in the tests':
what is no plain data becomes a stand-in there that asks for everything. Functions of the tests travel the other way as
callbacks, and an argument that the solution changed in place is changed here too.

A value is compared here, as plain data. A stand-in never equals plain data, whatever the solution's `__eq__` says, and
one that a function returned does not stand for a number, a text or a list: its operators and their methods are closed.
Only objects that the tests made themselves, from a class of the solution, have all of theirs.

Only the standard library, no package imports.
"""

from __future__ import annotations

import builtins
import collections.abc
import itertools
from collections.abc import Callable, Iterator
from typing import IO, Any

import guest_values
from guest_server import MAX_LINE, exception_of, message_of

MAX_ITEMS = 100_000

_PLAIN_METHODS = frozenset(
    name for kind in (str, list, dict, set, int, float, bytes) for name in dir(kind) if name[0] != "_"
)
_ARITHMETIC = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift", "radd",
    "rsub", "rmul", "rtruediv", "rfloordiv", "rmod", "rpow", "iadd", "isub", "imul", "neg", "pos", "abs", "invert", "round",
    "lt", "le", "gt", "ge", "contains",
)  # fmt: skip
_ALWAYS = (
    "len",
    "getitem",
    "setitem",
    "delitem",
    "iter",
    "enter",
    "exit",
    "str",
    "repr",
    "int",
    "float",
    "index",
    "hash",
    "bool",
)


class CandidateGone(BaseException):
    """The solution's process ended or broke the protocol; not an Exception, so no test can swallow it."""


class Client:
    """The tests' end. Attributes: `calls`, how often the solution was asked for something; `gone`, that it went away."""

    def __init__(self, replies: IO[bytes], calls: IO[bytes]) -> None:
        self._replies, self._calls = replies, calls
        self._callbacks: list[Callable[..., Any]] = []
        self._exceptions: dict[str, type[Exception]] = {}
        self.calls = 0
        self.gone = False

    def supplied(self, name: str) -> Any:
        """What stands for a name that the solution defines: a function, a class, an exception to catch, a plain value."""
        described = self.ask("describe", name)
        if isinstance(described, list) and described and described[0] == "value":
            return described[1]
        if isinstance(described, list) and "Exception" in described:
            base = next(
                (getattr(builtins, kind) for kind in described if isinstance(getattr(builtins, str(kind), None), type)),
                Exception,
            )
            if issubclass(base, Exception):
                self._exceptions[name] = type(name, (base,), {})
                return self._exceptions[name]
        return Named(self, name, isinstance(described, list))

    def ask(
        self, operation: str, name: str | None, target: int | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """One request and its reply. Raises what the solution raised, `CandidateGone` where it does not answer."""
        request = {"operation": operation, "name": name, "target": target, "args": list(args), "kwargs": kwargs or {}}
        line = guest_values.dumps(request, self._outgoing)
        self.calls += operation in ("call", "call_on", "invoke", "method", "get")
        try:
            reply = self._exchange(line)
            failed = "error" in reply
            value = None if failed else reply["value"]
            kinds, stopped = [str(kind) for kind in reply.get("error", ())], bool(reply.get("stopped"))
            changed = {} if failed else dict(reply["changed"])
            message = str(reply.get("message"))
        except Exception:
            self.gone = True
            raise CandidateGone("the solution's process ended or sent no valid reply") from None
        if failed and stopped:
            raise StopIteration
        if failed:
            raise exception_of(kinds, message, self._exceptions)
        for place, new in changed.items():
            assign(args[place], new)
        return value

    def _exchange(self, line: bytes) -> dict[str, Any]:
        while True:
            self._calls.write(line)
            self._calls.flush()
            reply = guest_values.loads(self._replies.readline(MAX_LINE), self._incoming)
            if "callback" not in reply:
                return dict(reply)
            try:
                value = self._callbacks[reply["callback"]](*reply["args"], **reply["kwargs"])
                line = guest_values.dumps({"returned": value}, self._outgoing)
            except Exception as error:
                line = guest_values.dumps({"raised": type(error).__name__, "message": message_of(error)})

    def _outgoing(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"$": "mine", "v": object.__getattribute__(value, "_number")}
        if isinstance(value, Named):
            return {"$": "named", "v": value._name}
        if isinstance(value, range):
            return {"$": "range", "v": [value.start, value.stop, value.step]}
        if hasattr(type(value), "__next__"):
            items = list(itertools.islice(value, MAX_ITEMS))
            return {"$": "iterator", "v": guest_values.encode(items, self._outgoing)}
        if callable(value):
            self._callbacks.append(value)
            return {"$": "callback", "v": len(self._callbacks) - 1}
        if isinstance(value, (collections.abc.KeysView, collections.abc.ValuesView, collections.abc.ItemsView)):
            return guest_values.encode(list(value), self._outgoing)
        raise TypeError(f"a value of type {type(value).__name__} cannot be handed to the solution")

    def _incoming(self, value: dict[str, Any]) -> Any:
        if value.get("$") != "theirs":
            raise ValueError("not an encoded value")
        number, kind, name = value["v"]
        return RemoteIterator(self, number, name) if kind == "iterator" else Remote(self, number, name)


def assign(old: Any, new: Any) -> None:
    """Give a list, dictionary or set of the tests the content that the solution left in its copy, inside too."""
    if isinstance(old, list) and isinstance(new, list):
        if len(old) == len(new):
            for place, other in enumerate(new):
                inner = old[place]
                if type(inner) is type(other) and isinstance(inner, (list, dict, set)):
                    assign(inner, other)
                else:
                    old[place] = other
        else:
            old[:] = new
    elif (isinstance(old, dict) and isinstance(new, dict)) or (isinstance(old, set) and isinstance(new, set)):
        old.clear()
        old.update(new)


class Named:
    """Stands for a function or class that the solution defines under a name."""

    def __init__(self, client: Client, name: str, is_class: bool) -> None:
        self._client, self._name, self._is_class = client, name, is_class

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        value = self._client.ask("call", self._name, None, args, kwargs)
        if self._is_class and isinstance(value, Remote):
            object.__setattr__(value, "_made_by_tests", True)
        return value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = self._client.ask("get", self._name, None, (name,))
        return _attribute(self._client, found, self._name, None, name, self._is_class)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and bool(self._client.ask("is", self._name, None, (value,)))


def _attribute(client: Client, found: Any, owner: str | None, number: int | None, name: str, made: bool) -> Any:
    if "callable" not in found:
        return found["value"]

    def method(*args: Any, **kwargs: Any) -> Any:
        if owner is not None:
            value = client.ask("call_on", None, None, (owner, name, *args), kwargs)
        else:
            value = client.ask("method", name, number, args, kwargs)
        if made and isinstance(value, Remote):
            object.__setattr__(value, "_made_by_tests", True)
        return value

    return method


class Remote:
    """Stands for an object of the solution's."""

    def __init__(self, client: Client, number: int, kind: str) -> None:
        for name, value in (("_client", client), ("_number", number), ("_kind", kind), ("_made_by_tests", False)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or (name in _PLAIN_METHODS and not self._made_by_tests):
            raise AttributeError(f"{self._kind!r} object has no attribute {name!r}")
        found = self._client.ask("get", None, self._number, (name,))
        return _attribute(self._client, found, None, self._number, name, self._made_by_tests)

    def __setattr__(self, name: str, value: Any) -> None:
        self._client.ask("set", None, self._number, (name, value))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._client.ask("invoke", None, self._number, args, kwargs)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Remote):
            return False
        return self._number == other._number or bool(self._special("__eq__", (other,)))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _special(self, name: str, args: tuple[Any, ...]) -> Any:
        value = self._client.ask("method", name, self._number, args)
        if self._made_by_tests and isinstance(value, Remote):
            object.__setattr__(value, "_made_by_tests", True)
        return value


class RemoteIterator(Remote):
    """Stands for a generator or another iterator of the solution's."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._client.ask("next", None, self._number)


def _forwarded(name: str, closed: bool) -> Callable[..., Any]:
    def forward(self: Remote, *args: Any) -> Any:
        if closed and not self._made_by_tests:
            raise TypeError(f"{self._kind!r} object is not plain data")
        if name == "__bool__":
            return _truth(self)
        try:
            return self._special(name, args)
        except AttributeError:
            if name == "__iter__":
                return _by_index(self)
            raise TypeError(f"{self._kind!r} object has no {name}") from None

    return forward


def _by_index(remote: Remote) -> Iterator[Any]:
    """What Python makes of an object that has items and no iterator."""
    for place in itertools.count():
        try:
            yield remote._special("__getitem__", (place,))
        except IndexError:
            return
        except AttributeError:
            raise TypeError(f"{remote._kind!r} object is not iterable") from None


def _truth(remote: Remote) -> bool:
    for name in ("__bool__", "__len__"):
        try:
            return bool(remote._special(name, ()))
        except AttributeError:
            continue
    return True


for _names, _closed in ((_ARITHMETIC, True), (_ALWAYS, False)):
    for _name in _names:
        setattr(Remote, f"__{_name}__", _forwarded(f"__{_name}__", _closed))
