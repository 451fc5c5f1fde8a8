"""The solution's half of the conversation with unit tests, see `guest_remote`: it calls, reads and iterates what it is
asked to. Its functions and classes never leave its process.

Only the standard library, no package imports.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import IO, Any

import guest_values

MAX_LINE = 8 << 20


class Server:
    """Answers requests about the solution's namespace.

    Args:
        namespace: where its functions and classes are.
        requests, replies: lines from and to the tests.
    """

    def __init__(self, namespace: dict[str, Any], requests: IO[bytes], replies: IO[bytes]) -> None:
        self._namespace, self._requests, self._replies = namespace, requests, replies
        self._kept: list[Any] = []
        self._seen: dict[int, int] = {}

    def answer(self, line: bytes, problem: BaseException | None = None) -> None:
        """Answer one line; with what went wrong while the solution was loaded, where it did.

        A request without an operation comes from outside the sandbox and wants plain data back.
        """
        if b'["operation", ' in line:
            self._answer(line, problem)
            return
        try:
            call = guest_values.loads(line)
            if problem is not None:
                raise problem
            reply = guest_values.dumps({"value": self._resolve(call["name"])(*call["args"], **call["kwargs"])})
        except BaseException as error:
            if not isinstance(error, Exception) and error is not problem:
                raise
            reply = guest_values.dumps({"error": type(error).__name__, "message": message_of(error)})
        self._replies.write(reply)
        self._replies.flush()

    def _answer(self, line: bytes, problem: BaseException | None = None) -> None:
        operation = ""
        try:
            if problem is not None:
                raise problem
            request = guest_values.loads(line, self._incoming)
            operation, args = request["operation"], request["args"]
            before = [guest_values.dumps(value, self._outgoing) for value in args]
            value = self._perform(operation, request, args)
            changed = {}
            for place, argument in enumerate(args):
                mutable = isinstance(argument, (list, dict, set))
                if mutable and guest_values.dumps(argument, self._outgoing) != before[place]:
                    changed[place] = argument
            reply = guest_values.dumps({"value": value, "changed": changed}, self._outgoing)
        except BaseException as error:
            if not isinstance(error, Exception) and error is not problem:
                raise
            kinds = [kind.__name__ for kind in type(error).__mro__]
            stopped = operation == "next" and isinstance(error, StopIteration)
            reply = guest_values.dumps({"error": kinds, "message": message_of(error), "stopped": stopped})
        self._replies.write(reply)
        self._replies.flush()

    def _perform(self, operation: str, request: dict[str, Any], args: list[Any]) -> Any:
        name, kwargs = request["name"], request["kwargs"]
        if operation == "call":
            function = self._resolve(name)
            value = function(*args, **kwargs)
            return _Whole(value) if isinstance(function, type) else value
        if operation == "describe":
            value = self._namespace.get(name)
            if isinstance(value, type):
                return [kind.__name__ for kind in value.__mro__]
            return None if callable(value) or name not in self._namespace else ["value", value]
        if operation == "call_on":
            return getattr(self._resolve(args[0]), args[1])(*args[2:], **kwargs)
        target = self._resolve(name) if request["target"] is None else self._kept[request["target"]]
        if operation == "method":
            return getattr(target, name)(*args, **kwargs)
        if operation == "invoke":
            return target(*args, **kwargs)
        if operation == "get":
            value = getattr(target, args[0])
            return {"callable": True} if callable(value) and not isinstance(value, type) else {"value": value}
        if operation == "set":
            return setattr(target, args[0], args[1])
        if operation == "next":
            return next(target)
        if operation == "is":
            return isinstance(args[0], target)
        raise ValueError("an unknown request")

    def _resolve(self, name: str) -> Any:
        return resolve(self._namespace, name)

    def _outgoing(self, value: Any) -> Any:
        if isinstance(value, _Whole):
            value = value.value
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self._kept)
            self._kept.append(value)  # kept, so that its id stays its own
        kind = "iterator" if hasattr(type(value), "__next__") else "function" if callable(value) else "object"
        return {"$": "theirs", "v": [self._seen[id(value)], kind, type(value).__name__]}

    def _incoming(self, value: dict[str, Any]) -> Any:
        kind: str = value["$"]
        content: Any = value["v"]
        if kind == "mine":
            return self._kept[content]
        if kind == "named":
            return self._resolve(str(content))
        if kind == "iterator":
            return iter(guest_values.decode(content, self._incoming))
        if kind == "range":
            return range(*content)
        if kind == "callback":
            return self._callback(content)
        raise ValueError("not an encoded value")

    def _callback(self, number: Any) -> Callable[..., Any]:
        def callback(*args: Any, **kwargs: Any) -> Any:
            request = {"callback": number, "args": list(args), "kwargs": kwargs}
            self._replies.write(guest_values.dumps(request, self._outgoing))
            self._replies.flush()
            while True:  # what it calls may ask for more meanwhile
                line = self._requests.readline(MAX_LINE)
                answer = guest_values.loads(line, self._incoming)
                if "operation" in answer:
                    self._answer(line)
                elif "raised" in answer:
                    raise exception_of([answer["raised"]], answer["message"], {})
                else:
                    return answer["returned"]

        return callback


class _Whole:
    """An object of a class of the solution's, which is kept whole even where it is a list or another plain type as well."""

    def __init__(self, value: Any) -> None:
        self.value = value


def resolve(namespace: dict[str, Any], name: str) -> Any:
    """A function of that name, or the method of a class `Solution`."""
    solution = namespace.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return getattr(solution(), name)
    if name not in namespace:
        raise NameError(f"name {name!r} is not defined")
    return namespace[name]


def message_of(error: BaseException) -> str:
    """An exception's text, cut."""
    try:
        return str(error)[:200]
    except BaseException:
        return ""


def exception_of(kinds: list[str], message: str, known: dict[str, type[Exception]]) -> Exception:
    """The exception of the first name that is known or Python's own, for tests that expect one; else RuntimeError.

    Never StopIteration: it would end a `zip` or `all` of the tests as if all was well.
    """
    for name in kinds:
        kind = known.get(name) or getattr(builtins, name, None)
        ends = ("StopIteration", "StopAsyncIteration", "Exception", "BaseException")
        if (
            isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, UnicodeError)
            and name not in ends
        ):
            return kind(message if name in known else f"{kinds[0]}: {message}")
    return RuntimeError(f"{kinds[0] if kinds else 'an error'}: {message}")
