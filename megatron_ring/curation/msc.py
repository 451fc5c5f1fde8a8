"""The top-level classes of the Mathematics Subject Classification (MSC 2020, msc2020.org). Long names are shortened, and
some classes have the name that schools use."""

from __future__ import annotations

_LINES = """
00 General
01 History and biography
03 Logic
05 Combinatorics
06 Order and lattices
08 General algebraic systems
11 Number theory
12 Polynomials and equations
13 Commutative algebra
14 Algebraic geometry
15 Linear algebra
16 Associative rings and algebras
17 Nonassociative rings and algebras
18 Category theory
19 K-theory
20 Group theory
22 Topological groups
26 Calculus
28 Measure and integration
30 Functions of a complex variable
31 Potential theory
32 Several complex variables
33 Special functions
34 Differential equations
35 Partial differential equations
37 Dynamical systems
39 Difference and functional equations
40 Sequences and series
41 Approximations and expansions
42 Harmonic analysis
43 Abstract harmonic analysis
44 Integral transforms
45 Integral equations
46 Functional analysis
47 Operator theory
49 Calculus of variations and optimal control
51 Geometry
52 Convex and discrete geometry
53 Differential geometry
54 General topology
55 Algebraic topology
57 Manifolds and cell complexes
58 Global analysis
60 Probability
62 Statistics
65 Numerical analysis
68 Computer science
70 Mechanics of particles and systems
74 Mechanics of deformable solids
76 Fluid mechanics
78 Optics and electromagnetic theory
80 Thermodynamics and heat transfer
81 Quantum theory
82 Statistical mechanics
83 Relativity and gravitational theory
85 Astronomy and astrophysics
86 Geophysics
90 Operations research
91 Game theory and economics
92 Biology and other natural sciences
93 Systems theory and control
94 Information and communication theory
97 Elementary arithmetic
"""
CLASSES = tuple(_LINES.strip().splitlines())
"""As metadata has them: `11 Number theory`."""
_MEANT = {form.lower(): name for name in CLASSES for form in (name, name[:2], name[3:])}
FORMS = tuple(form for name in CLASSES for form in (name, name[:2], name[3:]))
"""What a verdict may say: a class, its two digits, or its name."""


def class_of(form: str) -> str:
    """The class that one of `FORMS` means."""
    return _MEANT[form.lower()]
