from __future__ import annotations

import pytest

from megatron_ring.rewards import ScoreRequest
from megatron_ring.rewards.science import quick_score, verify
from megatron_ring.rewards.units import looks_like_unit, parse_unit

EQUAL = [
    ("5 cm", r"5\text{ cm}"),
    ("5cm", "5 cm"),
    (r"9.8\,\mathrm{m/s^2}", "9.8 m/s^2"),
    (r"9.8\ \text{m s}^{-2}", "9.8 m/s²"),
    (r"9.80\, m \cdot s^{-2}", "9.8 m/s^2"),
    (r"3\times10^8 \text{ m/s}", "3e8 m/s"),
    (r"\sqrt{4}\text{ m}", "2 m"),
    (r"\sqrt{2}\,\mathrm{m}", r"\sqrt{2}\text{ m}"),
    ("25 °C", r"25^\circ\text{C}"),
    (r"10\ \mu\text{m}", "10 µm"),
    (r"12\ k\Omega", "12 kΩ"),
    ("8.314 J/(mol K)", r"8.314\,\mathrm{J\,mol^{-1}\,K^{-1}}"),
    ("5 apples", "5 apples"),
    # without a unit: mathematics
    ("90", r"90^\circ"),
    (r"x \cdot 2", "2x"),
    (r"\pi \cdot 3", r"3\pi"),
    ("5 cm", "5 cm."),
    ("C", "C"),
]
DIFFERENT = [
    ("5", "5 cm"),
    ("5 m", "5 cm"),
    ("0.05 m^2", "5 cm"),
    ("0.06 m", "5 cm"),
    ("6 cm", "5 cm"),
    ("1 MW", "1 mW"),
    ("5 kg m", "5 kg"),
    ("5 pears", "5 apples"),
    ("5 V and 6 V", "5 V"),
    ("cm", "5 cm"),
    ("D", "C"),
    ("5" + " cm" * 2000, "5 cm"),
]


@pytest.mark.parametrize(("given", "reference"), EQUAL)
def test_equal_quantities(given: str, reference: str) -> None:
    assert verify(rf"\boxed{{{given}}}", reference).value == 1


@pytest.mark.parametrize(("given", "reference"), DIFFERENT)
def test_different_quantities(given: str, reference: str) -> None:
    assert verify(rf"\boxed{{{given}}}", reference).value == 0


def test_reasons_name_the_unit() -> None:
    assert "no unit" in verify(r"\boxed{5}", "5 cm").reason
    assert "another unit" in verify(r"\boxed{5 s}", "5 cm").reason
    assert verify("5 cm", "5 cm").reason == "no boxed answer"


def test_algebra_is_not_a_unit() -> None:
    for text in ["x", r" \pi", "m", r"\sqrt{2}", r"\%", r"^\circ", "(x+1)", "", "+1", "/2", " m/"]:
        assert not looks_like_unit(text)
    assert parse_unit("J/mol/K") == parse_unit(r"\mathrm{J\cdot mol^{-1}\cdot K^{-1}}")
    assert parse_unit("m/(s") is None and parse_unit("m))") is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "piece",
    ["1", "1,", r"\frac{", r"\text{", " ", "1 \\times 10^ ", "5 m ", "(A ", "^", r"\mu ", "\\circ", "deg ", "1e"],
)
def test_the_quick_path_is_bounded(piece: str) -> None:
    hostile = "5 " + piece * (4000 // len(piece))
    for reference in ["5", "5 cm", "B", r"5\text{ cm}"]:
        quick_score(ScoreRequest("science", None, rf"\boxed{{{hostile}}}", reference))
