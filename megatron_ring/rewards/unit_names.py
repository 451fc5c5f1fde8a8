"""Units spelled out, as in `metres per second`, put into symbols."""

from __future__ import annotations

import re

# fmt: off
PREFIXES = ("", *"YZEPTGMkhdcmunpfa", "da")
_PREFIX_NAMES = {
    "kilo": "k", "mega": "M", "giga": "G", "tera": "T", "hecto": "h", "deci": "d", "centi": "c", "milli": "m", "micro": "u",
    "nano": "n", "pico": "p", "femto": "f",
}
_UNIT_NAMES = {
    "meter": "m", "metre": "m", "gram": "g", "gramme": "g", "second": "s", "ampere": "A", "amp": "A", "kelvin": "K",
    "mole": "mol", "candela": "cd", "hertz": "Hz", "newton": "N", "pascal": "Pa", "joule": "J", "watt": "W",
    "coulomb": "C", "volt": "V", "farad": "F", "siemens": "S", "weber": "Wb", "tesla": "T", "henry": "H",
    "henries": "H", "lumen": "lm", "lux": "lx", "becquerel": "Bq", "gray": "Gy", "sievert": "Sv", "liter": "L",
    "litre": "L", "electronvolt": "eV", "calorie": "cal", "ohm": "Ohm",
}
_PLAIN_NAMES = {
    "minute": "min", "hour": "h", "hr": "h", "sec": "s", "day": "d", "year": "yr", "radian": "rad", "atmosphere": "atm",
    "angstrom": "Ang", "degree": "deg", "foot": "ft", "feet": "ft", "inch": "in", "inches": "in", "mile": "mi", "yard": "yd",
    "pound": "lb", "lbs": "lb", "ounce": "oz", "dollar": "USD", "gm": "g", "mole": "mol", "mins": "min",
    "Celsius": "degC", "Fahrenheit": "degF",
}
# fmt: on
_WORD = re.compile(r"[A-Za-z]{2,}")


def spelled(word: str) -> str:
    """The symbol for a unit's name, singular or plural, with or without a prefix; another word as it is."""
    for name in (word, word.removesuffix("s"), word.removesuffix("es")):
        for candidate in (name, name.lower() if len(name) > 3 else name):
            if candidate in _PLAIN_NAMES:
                return _PLAIN_NAMES[candidate]
            if candidate in _UNIT_NAMES:
                return _UNIT_NAMES[candidate]
            for prefix, symbol in _PREFIX_NAMES.items():
                if candidate.startswith(prefix) and candidate[len(prefix) :] in _UNIT_NAMES:
                    return symbol + _UNIT_NAMES[candidate[len(prefix) :]]
    return word


def spell_out(text: str) -> str:
    """`square metres per second` as `m^2 /s`."""
    text = re.sub(r"\bper\b", "/", text)
    text = _WORD.sub(lambda match: spelled(match[0]), text)
    text = re.sub(r"\b(?:square|sq\.?) ([A-Za-z]+)", r"\1^2", text)
    text = re.sub(r"\bcubic ([A-Za-z]+)", r"\1^3", text)
    return re.sub(r" squared\b", "^2", re.sub(r" cubed\b", "^3", text))


# fmt: off
_CHINESE = {
    "千克": "kg", "公斤": "kg", "毫克": "mg", "克": "g", "吨": "Mg", "千米": "km", "公里": "km", "分米": "dm", "厘米": "cm",
    "毫米": "mm", "微米": "um", "纳米": "nm", "米": "m", "分钟": "min", "小时": "h", "毫秒": "ms", "秒": "s", "天": "d",
    "毫升": "mL", "升": "L", "牛顿": "N", "牛": "N", "千焦": "kJ", "焦耳": "J", "焦": "J", "千瓦": "kW",
    "瓦特": "W", "瓦": "W", "伏特": "V", "伏": "V", "安培": "A", "安": "A",
    "欧姆": "Ohm", "欧": "Ohm", "千帕": "kPa", "帕斯卡": "Pa", "帕": "Pa", "赫兹": "Hz", "摩尔": "mol", "开尔文": "K",
}
# fmt: on
_UNIT = "(平方|立方)?(" + "|".join(sorted(_CHINESE, key=len, reverse=True)) + ")"
_CHINESE_UNIT = re.compile(
    rf"(?<=[\d}} ])\s{{0,4}}(?:\\text\s{{0,4}}\{{)?\s{{0,4}}{_UNIT}(?:\s{{0,4}}(?:/|每)\s{{0,4}}{_UNIT})?\s{{0,4}}\}}?$"
)
_POWERS = {"平方": "^2", "立方": "^3"}


def with_symbols(text: str) -> str:
    r"""`5 米/秒` as `5 \text{m/s}`; another text as it is."""
    found = _CHINESE_UNIT.search(text)
    if found is None:
        return text
    top, bottom = (
        _CHINESE[unit] + _POWERS.get(power or "", "") if unit else ""
        for power, unit in (found.group(1, 2), found.group(3, 4))
    )
    return f"{text[: found.start()]} \\text{{{top}{'/' if bottom else ''}{bottom}}}"
