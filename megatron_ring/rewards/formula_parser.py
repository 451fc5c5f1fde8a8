r"""Read a formula in LaTeX or plain text. What is not understood as a whole is not read at all.

Nothing is skipped, guessed or lower-cased: a letter is a variable of its own, `e` is Euler's number and `i` the imaginary
unit. One form has two readings: `1/2x` is `x/2` by order and `1/(2x)` to the eye; `parse` says so.
"""

from __future__ import annotations

from functools import lru_cache

from megatron_ring.rewards.formula import UNKNOWN, Node, Reading, number
from megatron_ring.rewards.formula_arithmetic import BARS, LARGE, OPEN, Arithmetic
from megatron_ring.rewards.formula_tokens import FUNCTIONS, LISTED_FUNCTIONS, NotUnderstood, is_number, tokens_of

_MAX_HEIGHT = 120  # of a tree, so that walking it never exhausts the stack
_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})


@lru_cache(maxsize=4096)
def parse(text: str) -> Reading | None:
    """Read a normalised text; None where any of it is not understood."""
    try:
        tokens = tokens_of(text)
        parser = _Parser(tokens, tight=False)
        loose = parser.whole()
        tight = _Parser(tokens, tight=True).whole() if parser.ambiguous else loose
    except (NotUnderstood, RecursionError):
        return None
    if max(_height(loose), _height(tight)) > _MAX_HEIGHT:
        return None
    return Reading(loose, tight, any("." in token for token in tokens if is_number(token)))


def _height(node: Node) -> int:
    height, level = 0, [node]
    while level and height <= _MAX_HEIGHT:
        level = [part for inner in level for part in inner.parts]
        height += 1
    return height


def _is_unknown(node: Node) -> bool:
    return node.kind == "symbol" and node.name[0] in "fgFG" and node.name[1:2] in ("", "'", "_")


class _Parser(Arithmetic):
    """Arithmetic with functions and large operators."""

    def special(self, depth: int) -> Node | None:
        if self.next in LARGE:
            return self.large(depth)
        name = self.next.removeprefix("\\")
        return self.function(depth) if name in FUNCTIONS or name in LISTED_FUNCTIONS else None

    def symbol(self, depth: int) -> Node:
        """A variable; or f, g, F or G of something, a function of which nothing is known."""
        node = super().symbol(depth)
        if not _is_unknown(node) or self.next != "(":
            return node
        return Node("call", self.arguments(depth), UNKNOWN + node.name)

    def power(self, depth: int) -> Node:
        node = super().power(depth)
        if node.kind == "power" and _is_unknown(node.parts[0]) and self.next == "(":
            raise NotUnderstood  # f^{-1}(x)
        return node

    def function(self, depth: int) -> Node:
        name = self.next.removeprefix("\\")
        self.at += 1
        if name in LISTED_FUNCTIONS:
            return self.listed(name, depth)
        base = self.argument(depth) if name == "log" and self.take("_") else None
        exponent = None
        if self.take("^"):
            exponent = self.exponent(depth)
            if exponent.kind == "negate" and exponent.parts[0].value == 1:
                if name not in FUNCTIONS or "arc" + name not in FUNCTIONS:
                    raise NotUnderstood
                name, exponent = "arc" + name, None
        argument = self.function_argument(name, depth)
        node = Node("call", (argument,) if base is None else (argument, base), FUNCTIONS[name])
        if exponent is not None:
            if self.next == "^":
                raise NotUnderstood
            return Node("power", (node, exponent))
        return node

    def listed(self, name: str, depth: int) -> Node:
        if self.next not in ("(", "\\{"):
            raise NotUnderstood
        return Node("call", self.arguments(depth), name)

    def arguments(self, depth: int) -> tuple[Node, ...]:
        """What stands between brackets and commas."""
        closing = OPEN[self.next]
        self.at += 1
        items = [self.sum(depth + 1)]
        while self.take(","):
            items.append(self.sum(depth + 1))
        self.expect(closing)
        return tuple(items)

    def function_argument(self, name: str, depth: int) -> Node:
        """What is in brackets; or the product up to the next function, bracket or sign of an operation."""
        if self.next in ("(", "[") or (self.next in BARS and self.bars == 0):
            return self.atom(depth)
        negative = self.take("-")
        if self.next.removeprefix("\\") in FUNCTIONS:
            argument = self.power(depth)  # \ln \sin x
            return Node("negate", (argument,)) if negative else argument
        argument = self.power(depth)
        simple, has_pi = argument.kind != "number", argument == Node("constant", name="pi")
        while self.starts_factor() and not self.ends_argument():
            factor = self.power(depth)
            argument, simple = Node("multiply", (argument, factor)), True
            has_pi = has_pi or factor == Node("constant", name="pi")
        if self.next in ("(", "[") and not simple:
            raise NotUnderstood  # \sin 2(x+y)
        if self.next == "/" and has_pi and name in _TRIGONOMETRIC:
            self.at += 1
            argument = Node("divide", (argument, self.power(depth)))
        return Node("negate", (argument,)) if negative else argument

    def ends_argument(self) -> bool:
        token = self.next.removeprefix("\\")
        return self.next in ("(", "[") or self.next in BARS or self.next in LARGE or token in FUNCTIONS

    def large(self, depth: int) -> Node:
        r"""`\sum_{k=1}^{n} …`, `\prod`, `\int_a^b … dx`, `\lim_{x \to a} …`; the body is a product."""
        operator = self.next
        self.at += 1
        self.expect("_")
        if operator == "\\int":
            low = self.argument(depth)
            self.expect("^")
            high = self.argument(depth)
            self.integrals += 1
            body = number(1) if self.next == "d" else self.sum(depth + 1)
            self.integrals -= 1
            self.expect("d")
            return Node("integral", (self.symbol(depth), low, high, body))
        self.expect("{")
        variable = self.symbol(depth)
        if operator == "\\lim":
            if self.next not in ("\\to", "\\rightarrow"):
                raise NotUnderstood
            self.at += 1
            low = self.sum(depth + 1)
            self.expect("}")
            return Node("limit", (variable, low, self.product(depth + 1)))
        self.expect("=")
        low = self.sum(depth + 1)
        self.expect("}")
        self.expect("^")
        high = self.exponent(depth)
        return Node("sum" if operator == "\\sum" else "product", (variable, low, high, self.product(depth + 1)))
