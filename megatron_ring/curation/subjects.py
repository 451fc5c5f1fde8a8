"""The subject of a mathematical problem, as a top-level class of the Mathematics Subject Classification (MSC 2020)."""

from __future__ import annotations

from megatron_ring.curation.guarded import Guarded

# Class → what columns of public files call it, words that decide it where no column does, and of what those must hold one
# (`Guarded`). The first with most words wins.
_CLASSES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "60 Probability": (
        ("counting & probability", "probability"),
        r"probabilit\w*|expected (?:value|number)|random(?:ly)?|\b(?:die|dice)\b|fair coin|at random|概率",
        "probabilit expected random die dice coin 概率"),
    "05 Combinatorics": (
        ("combinatorics", "counting", "discrete mathematics", "graph theory"),
        r"how many (?:ways|different|distinct|such|subsets|arrangements)|permutations?|combinations?|arrange(?:d|ments?)"
        r"|subsets?|tournament|graph with|vertices of a graph|chessboard|colou?rings?|排列|组合",
        "ways different distinct such subset arrange permutation combination tournament graph chessboard oring ouring 排列 "
        "组合"),
    "11 Number theory": (
        ("number theory", "number_theory"),
        r"divisible|divisors?|primes?\b|remainder|modulo|\\(?:p|b)?mod\b|\bmod\b|\bgcd\b|\blcm\b|integers?\b|digits?\b"
        r"|perfect squares?|factorial|coprime|congruen\w+ to|整除|质数|素数|余数",
        "divis prime remainder mod gcd lcm integer digit perfect factorial congruen 整除 质数 素数 余数"),
    "51 Geometry": (
        ("geometry", "plane geometry", "solid geometry", "analytic geometry", "metric geometry"),
        r"triangles?|circles?|angles?|\\angle|\\triangle|squares? with|rectangles?|polygons?|perimeter|area of|volume|radius"
        r"|diameter|parallel|perpendicular|tangent to|cubes?\b|spheres?|hexagon|pentagon|trapezoid|circumscribed|三角形|圆",
        "angle circle square polygon perimeter area volume radius diameter parallel perpendicular tangent cube sphere "
        "hexagon pentagon trapezoid circumscribed 三角形 圆"),
    "26 Calculus": (
        ("calculus", "precalculus", "real analysis", "analysis"),
        r"derivatives?|integrals?|\\int\b|\\lim\b|limit of|differentiable|continuous|f'\(|maximum value of the function"
        r"|积分|导数",
        "derivative integral \\int \\lim limit differentiable continuous f'( maximum 积分 导数"),
    "34 Differential equations": (
        ("differential equations",),
        r"differential equations?|y''|\\frac\{dy\}\{dx\}",
        "differential y'' \\frac{dy"),
    "15 Linear algebra": (
        ("linear algebra",),
        r"matri(?:x|ces)|determinants?|eigenvalues?|vectors?|linear (?:map|transformation)|矩阵",
        "matri determinant eigenvalue vector linear 矩阵"),
    "20 Group theory": (
        ("group theory", "abstract algebra"),
        r"\bgroups? of order|subgroups?|homomorphism|abelian|isomorphi\w+",
        "group homomorphism abelian isomorphi"),
    "40 Sequences and series": (
        ("sequences and series", "sequences"),
        r"sequences?|arithmetic progression|geometric (?:progression|series)|\\sum\b|infinite series|数列",
        "sequence progression series \\sum 数列"),
    "62 Statistics": (
        ("statistics", "applied mathematics -> statistics"),
        r"\bmedian\b|standard deviation|\bvariance\b|regression|sample mean",
        "median deviation variance regression sample"),
    "03 Logic": (
        ("logic", "logic and puzzles"),
        r"knights? and (?:knaves?|liars?)|liars?\b|truth[- ]tellers?",
        "knight liar truth"),
    "12 Polynomials and equations": (
        ("algebra", "intermediate algebra", "inequalities", "equations", "functions"),
        r"polynomials?|roots? of|equations?|solve for|quadratic|expand|simplify|factor\b|inequalit\w+|\bf\(x\)"
        r"|real numbers?|\\sqrt|\\log|方程|不等式",
        "polynomial root equation solve quadratic expand simplify factor inequalit f(x real \\sqrt \\log 方程 不等式"),
    "97 Elementary arithmetic": (
        ("prealgebra", "arithmetic", "word problems", "math word problems"),
        r"how (?:many|much)|\$\d|cost|dollars?|cents|pounds?|miles|hours?|minutes|each|total|per (?:day|week|hour)",
        "how $ cost dollar cents pound miles hour minutes each total per"),
}  # fmt: skip
_WORDS = {name: Guarded(pattern, *needles.split()) for name, (_, pattern, needles) in _CLASSES.items()}
_COLUMNS = {called: name for name, (columns, _, _) in _CLASSES.items() for called in columns}


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
    counts = {name: len({match[0].lower() for match in pattern.finditer(text)}) for name, pattern in _WORDS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None
