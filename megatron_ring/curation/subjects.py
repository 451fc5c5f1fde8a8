"""The subject of a mathematical problem, as a top-level class of the Mathematics Subject Classification (MSC 2020)."""

from __future__ import annotations

import re

# Class → what columns of public files call it, and words that decide it where no column does. The first with most words wins.  # noqa: E501
_CLASSES: dict[str, tuple[tuple[str, ...], str]] = {
    "60 Probability": (("counting & probability", "probability"),
                       r"probabilit\w*|expected (?:value|number)|random(?:ly)?|\bdice?\b|fair coin|at random|概率"),
    "05 Combinatorics": (("combinatorics", "counting", "discrete mathematics", "graph theory"),
                         r"how many (?:ways|different|distinct|such|subsets|arrangements)|permutations?|combinations?|arrange(?:d|ments?)"  # noqa: E501
                         r"|subsets?|tournament|graph with|vertices of a graph|chessboard|colou?rings?|排列|组合"),
    "11 Number theory": (("number theory", "number_theory"),
                         r"divisible|divisors?|primes?\b|remainder|modulo|\\(?:p|b)?mod\b|\bmod\b|\bgcd\b|\blcm\b|integers?\b|digits?\b"
                         r"|perfect squares?|factorial|coprime|congruen\w+ to|整除|质数|素数|余数"),
    "51 Geometry": (("geometry", "plane geometry", "solid geometry", "analytic geometry", "metric geometry"),
                    r"triangles?|circles?|angles?|\\angle|\\triangle|squares? with|rectangles?|polygons?|perimeter|area of|volume|radius"  # noqa: E501
                    r"|diameter|parallel|perpendicular|tangent to|cubes?\b|spheres?|hexagon|pentagon|trapezoid|circumscribed|三角形|圆"),  # noqa: E501
    "26 Calculus": (("calculus", "precalculus", "real analysis", "analysis"),
                    r"derivatives?|integrals?|\\int\b|\\lim\b|limit of|differentiable|continuous|f'\(|maximum value of the function|积分|导数"),  # noqa: E501
    "34 Differential equations": (("differential equations",), r"differential equations?|y''|\\frac\{dy\}\{dx\}"),
    "15 Linear algebra": (("linear algebra",), r"matri(?:x|ces)|determinants?|eigenvalues?|vectors?|linear (?:map|transformation)|矩阵"),  # noqa: E501
    "20 Group theory": (("group theory", "abstract algebra"), r"\bgroups? of order|subgroups?|homomorphism|abelian|isomorphi\w+"),  # noqa: E501
    "40 Sequences and series": (("sequences and series", "sequences"),
                                r"sequences?|arithmetic progression|geometric (?:progression|series)|\\sum\b|infinite series|数列"),  # noqa: E501
    "62 Statistics": (("statistics", "applied mathematics -> statistics"),
                      r"\bmedian\b|standard deviation|\bvariance\b|regression|sample mean"),
    "03 Logic": (("logic", "logic and puzzles"), r"knights? and (?:knaves?|liars?)|liars?\b|truth[- ]tellers?"),
    "12 Polynomials and equations": (("algebra", "intermediate algebra", "inequalities", "equations", "functions"),
                                     r"polynomials?|roots? of|equations?|solve for|quadratic|expand|simplify|factor\b|inequalit\w+|\bf\(x\)"  # noqa: E501
                                     r"|real numbers?|\\sqrt|\\log|方程|不等式"),
    "97 Elementary arithmetic": (("prealgebra", "arithmetic", "word problems", "math word problems"),
                                 r"how (?:many|much)|\$\d|cost|dollars?|cents|pounds?|miles|hours?|minutes|each|total|per (?:day|week|hour)"),  # noqa: E501
}  # fmt: skip
_WORDS = {name: re.compile(rf"(?:{pattern})", re.IGNORECASE) for name, (_, pattern) in _CLASSES.items()}
_COLUMNS = {called: name for name, (columns, _) in _CLASSES.items() for called in columns}


def subject_of(text: str, given: object = None) -> str | None:
    """The class that a column names, or the one that most words speak for; None where none does.

    Args:
        given: what a column of the file says, such as `Intermediate Algebra` or `Mathematics -> Geometry -> Plane Geometry`.
    """
    if isinstance(given, str):
        if given in _CLASSES:
            return given
        for part in reversed(given.lower().split("->")):
            found = _COLUMNS.get(part.strip().replace("_", " "))
            if found is not None:
                return found
    counts = {name: len({match.lower() for match in pattern.findall(text)}) for name, pattern in _WORDS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None
