"""The arithmetic of formulas: sums, products, powers, fractions, roots, brackets. `formula_parser` adds functions."""

from __future__ import annotations

from fractions import Fraction

from megatron_ring.rewards.formula import Node, number
from megatron_ring.rewards.formula_tokens import (
    DECORATIONS,
    FUNCTIONS,
    LISTED_FUNCTIONS,
    SYMBOLS,
    NotUnderstood,
    is_letter,
    is_number,
)

_MAX_DEPTH = 60
OPEN = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
BARS = {"|": "|", "\\vert": "\\vert", "\\lvert": "\\rvert"}
_TIMES = frozenset({"\\cdot", "\\times", "\\ast", "*"})
_OVER = frozenset({"/", "\\div"})
LARGE = frozenset({"\\sum", "\\prod", "\\int", "\\lim"})
_FORMS = frozenset({"\\frac", "\\sqrt", "\\binom", "\\pi", "\\text"})


class Arithmetic:
    """Recursive descent. Each method reads from `at` on and returns what it read."""

    def __init__(self, tokens: list[str], tight: bool) -> None:
        self.tokens = [*tokens, ""]
        self.at = 0
        self.tight = tight
        self.ambiguous = False
        self.bars = 0
        self.integrals = 0

    @property
    def next(self) -> str:
        return self.tokens[self.at]

    def take(self, token: str) -> bool:
        if self.tokens[self.at] != token or not token:
            return False
        self.at += 1
        return True

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise NotUnderstood

    def whole(self) -> Node:
        node = self.sum(0)
        if self.next:
            raise NotUnderstood
        return node

    def sum(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise NotUnderstood
        terms: list[Node] = []
        while True:
            negative = self.next == "-"
            if self.next in ("+", "-"):
                self.at += 1
            elif terms:
                break
            term = self.product(depth)
            terms.append(Node("negate", (term,)) if negative else term)
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def product(self, depth: int) -> Node:
        value = self.power(depth)
        while True:
            if self.next in _TIMES:
                self.at += 1
                value = Node("multiply", (value, self.signed(depth)))
            elif self.next in _OVER:
                self.at += 1
                value = self.quotient(value, depth)
            elif self.starts_factor():
                value = Node("multiply", (value, self.power(depth)))
            else:
                return value

    def quotient(self, value: Node, depth: int) -> Node:
        below, after = self.signed(depth), []
        while self.starts_factor():
            after.append(self.power(depth))
        self.ambiguous |= bool(after)
        if self.tight:
            for factor in after:
                below = Node("multiply", (below, factor))
            return Node("divide", (value, below))
        value = Node("divide", (value, below))
        for factor in after:
            value = Node("multiply", (value, factor))
        return value

    def starts_factor(self) -> bool:
        """Whether what follows multiplies what was read, without a sign of multiplication. A number does after `!` alone."""
        token = self.next
        if is_number(token):
            return self.tokens[self.at - 1 : self.at] == ["!"]
        if self.integrals and token == "d" and is_letter(self.tokens[self.at + 1]):
            return False
        if token in BARS:
            return self.bars == 0
        if token == "{":  # a brace is not seen: 4{2} is shown as 42
            following = next((token for token in self.tokens[self.at :] if token != "{"), "")
            return not is_number(following)
        return token in OPEN or token in _FORMS or token in LARGE or token in DECORATIONS or _names(token)

    def signed(self, depth: int) -> Node:
        if self.take("-"):
            return Node("negate", (self.power(depth),))
        self.take("+")
        return self.power(depth)

    def power(self, depth: int) -> Node:
        base = self.atom(depth)
        while True:
            if self.take("!"):
                if self.next == "!" or base.kind == "power":
                    raise NotUnderstood
                base = Node("factorial", (base,))
            elif self.next == "^":
                base = self.raised(base, depth)
                if self.next in ("^", "_"):
                    raise NotUnderstood
            else:
                return base

    def raised(self, base: Node, depth: int) -> Node:
        self.expect("^")
        if self.tokens[self.at : self.at + 3] == ["{", "\\circ", "}"]:
            self.at += 3
            return Node("multiply", (base, Node("divide", (Node("constant", name="pi"), number(180)))))
        return Node("power", (base, self.exponent(depth)))

    def exponent(self, depth: int) -> Node:
        """TeX would take one digit or sign for an exponent, but nobody means that by 2^10 or x^-1."""
        if self.take("-"):
            if depth > _MAX_DEPTH:
                raise NotUnderstood
            return Node("negate", (self.exponent(depth + 1),))
        if is_number(self.next):
            return self.literal()
        return self.argument(depth)

    def argument(self, depth: int) -> Node:
        """What TeX takes for an argument: a group, one digit, one letter, a command."""
        token = self.next
        if is_number(token):
            if not token[0].isdigit():
                raise NotUnderstood
            if len(token) == 1:
                self.at += 1
            else:
                self.tokens[self.at] = token[1:]
            return number(int(token[0]))
        if depth > _MAX_DEPTH or token in ("+", "-", "", "!"):
            raise NotUnderstood
        return self.atom(depth + 1)

    def literal(self) -> Node:
        token = self.next
        self.at += 1
        value = Fraction(token.replace(",", "").removesuffix("."))
        return Node("number", value=value, rounded="." in token)

    def group(self, depth: int) -> Node:
        closing = OPEN[self.next]
        self.at += 1
        outside, self.bars = self.bars, 0
        integrals, self.integrals = self.integrals, 0
        node = self.sum(depth + 1)
        self.bars, self.integrals = outside, integrals
        self.expect(closing)
        return node

    def absolute(self, depth: int) -> Node:
        closing = BARS[self.next]
        self.at += 1
        self.bars += 1
        node = self.sum(depth + 1)
        self.bars -= 1
        self.expect(closing)
        return Node("call", (node,), "abs")

    def atom(self, depth: int) -> Node:
        token = self.next
        if is_number(token):
            return self.mixed(self.literal(), depth)
        if token in ("\\lfloor", "\\lceil"):
            return Node("call", (self.group(depth),), "floor" if token == "\\lfloor" else "ceil")
        if token in OPEN:
            return self.group(depth)
        if token in BARS:
            return self.absolute(depth)
        special = self.special(depth)
        if special is not None:
            return special
        if token == "\\pi" or token == "pi":
            self.at += 1
            return Node("constant", name="pi")
        if token in ("\\frac", "\\binom"):
            self.at += 1
            parts = (self.argument(depth), self.argument(depth))
            return Node("divide" if token == "\\frac" else "binomial", parts)
        if token in ("\\sqrt", "sqrt"):
            self.at += 1
            index = self.group(depth) if token == "\\sqrt" and self.next == "[" else number(2)
            return Node("root", (self.argument(depth), index))
        return self.symbol(depth)

    def special(self, depth: int) -> Node | None:
        """A function or large operator that begins here; None where none does."""
        return None

    def mixed(self, whole: Node, depth: int) -> Node:
        r"""`2\frac{1}{2}` and `2 1/2` are sums; `2\frac{3}{2}` is neither that nor, surely, a product."""
        if whole.value.denominator != 1 or whole.rounded:
            return whole
        if self.next == "\\frac":
            before = self.at, self.tokens.copy()
            fraction = self.atom(depth)
            top, bottom = fraction.parts
            if top.kind != "number" or bottom.kind != "number":
                self.at, self.tokens = before
                return whole
        elif is_number(self.next) and self.tokens[self.at + 1] == "/" and is_number(self.tokens[self.at + 2]):
            top = self.literal()
            self.at += 1
            bottom = self.literal()
            fraction = Node("divide", (top, bottom))
        else:
            return whole
        if not 0 < top.value < bottom.value:
            raise NotUnderstood
        return Node("add", (whole, fraction))

    def symbol(self, depth: int) -> Node:
        """A variable or constant. `depth` is for functions that look like one."""
        token = self.next
        self.at += 1
        if token in DECORATIONS:
            name = token + self.name_in_braces()
        elif token == "\\text":
            name = self.name_in_braces()
        elif is_letter(token) or token in SYMBOLS:
            name = token
        else:
            raise NotUnderstood
        while self.take("'"):
            name += "'"
        if self.take("_"):
            name += "_" + self.name_in_braces()
        if name in ("e", "i", "\\infty"):
            return Node("constant", name=name)
        return Node("symbol", name=name)

    def name_in_braces(self) -> str:
        """Letters and digits of an index, or of what is set as a word: one token, or all between two braces."""
        if not self.take("{"):
            token = self.next
            self.at += 1
            if token == "\\text":
                return self.name_in_braces()
            if is_number(token) or is_letter(token) or token in SYMBOLS:
                return token
            raise NotUnderstood
        start, depth = self.at, 1
        while depth:
            token = self.next
            self.at += 1
            depth += {"{": 1, "}": -1}.get(token, 0)
            if not (token in ("{", "}", "+", "-", ",", "\\text", "\\max", "\\min") or is_number(token) or _names(token)):
                raise NotUnderstood
        return "".join(token for token in self.tokens[start : self.at] if token not in ("{", "}", "\\text"))


def _names(token: str) -> bool:
    bare = token.removeprefix("\\")
    return is_letter(token) or token in SYMBOLS or bare in FUNCTIONS or bare in LISTED_FUNCTIONS or bare in ("pi", "sqrt")
