"""What makes two texts of the same words two problems: their numbers, signs, and the words that turn a question round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_SMALL = r"""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
"""
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_SMALL.split())}
NUMBER_WORDS |= {"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80",
                 "ninety": "90", "hundred": "100", "thousand": "1000", "million": "1000000", "half": "1/2",
                 "twice": "2", "double": "2", "doubles": "2", "doubled": "2", "triple": "3", "triples": "3", "tripled": "3",
                 "thrice": "3", "quarter": "1/4", "quarters": "1/4", "third": "1/3", "thirds": "1/3", "dozen": "12",
                 "dozens": "12", "pair": "2", "couple": "2"}  # fmt: skip
# A text that has one of these and a text that lacks it ask different things.
_TURNING = r"""
most least maximum minimum max min maximal minimal largest smallest greatest highest lowest biggest longest shortest
more less fewer larger smaller greater higher lower bigger longer shorter older younger faster slower taller odd even
not no never without positive negative square cube squared cubed prime composite \sin \cos \tan \cot \sec \csc \log
\ln \max \min \sum \prod \int \cup \cap \in \notin \exists \forall \sqrt \frac \pm \mp
"""
TURNING = frozenset(_TURNING.split())
# These ask different things where each text has one that the other lacks: hours here and minutes there, buys here and sells
# there. Where only one text has such a word the other says it in another way.
_ALTERNATIVES = r"""
increase increases increased decrease decreases decreased sum difference product quotient remainder ratio left right
inside outside area perimeter volume surface radius diameter circumference mean median mode range profit loss buy buys
bought sell sells sold earn earns spend spends spent save saves above below inscribed circumscribed add subtract
multiply divide union intersection rows columns second seconds minute minutes hour hours day days week weeks month
months year years before after first last next previous fourth fifth sixth seventh eighth ninth tenth eleventh twelfth
monday tuesday wednesday thursday friday saturday sunday weekday weekdays weekend weekends morning afternoon evening
night january february march april may june july august september october november december red orange yellow green
blue purple pink brown black white gray grey boy boys girl girls men women man woman inch inches foot feet yard yards
mile miles meter meters centimeter centimeters kilometer kilometers ounce ounces pound pounds gram grams kilogram
kilograms liter liters gallon gallons cent cents dollar dollars
"""
ALTERNATIVES = frozenset(_ALTERNATIVES.split())
_OPERATORS = frozenset("+-*/=<>^!%|") | {"<=", ">="}


@dataclass(frozen=True)
class Meaning:
    """Of one text.

    Attributes:
        strict: its numbers in order, and how often each sign of arithmetic and each word of `TURNING` comes. Number words
            count as numbers.
        alternatives: how often each word of `ALTERNATIVES` comes.
    """

    strict: str
    alternatives: Counter[str]

    def fits(self, other: Meaning) -> bool:
        """Whether two texts may ask the same."""
        if self.strict != other.strict:
            return False
        return self.alternatives <= other.alternatives or other.alternatives <= self.alternatives


def meaning(tokens: Sequence[str]) -> Meaning:
    """Of the tokens of a text (`text.words`)."""
    return Meaning(strict_meaning(tokens), Counter(token for token in tokens if token in ALTERNATIVES))


def strict_meaning(tokens: Sequence[str]) -> str:
    """`Meaning.strict`."""
    numbers, rest = [], []
    for token in tokens:
        if token in NUMBER_WORDS:
            numbers.append(NUMBER_WORDS[token])
        elif token[0] in _NUMERIC or token[0].isdigit():
            numbers.append(_number(token))
        elif token in TURNING or token in _OPERATORS:
            rest.append(token)
    rest.sort()
    return " ".join(numbers) + "|" + " ".join(rest)


_NUMERIC = frozenset("0123456789.")


def _number(token: str) -> str:
    """3.0 is 3 and 007 is 7."""
    if "." in token:
        token = token.rstrip("0").removesuffix(".")
    return token.lstrip("0") or "0"
