"""Numbers as annotation tools write them: 1, 1.0, '1' and '1.0' are the same number.

What may mean two things is not read: a bool, NaN, infinity, '1,5', a float too large to be a whole number exactly.
"""

import re
import reprlib
from collections.abc import Sequence
from typing import Any

_WHOLE = re.compile(r'[+-]?[0-9]{1,19}(\.0*)?')
_NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?')
_LONGEST = 64  # characters of a number in text


def whole_number(value: Any) -> int | None:
    """Reads an integer of 64 bits; None if this is none. (Larger ones may share a hash in any number, which makes dicts slow.)"""
    if type(value) is str and len(value) <= _LONGEST and _WHOLE.fullmatch(value.strip()):
        value = int(value.strip().partition('.')[0])
    if type(value) is float and abs(value) < 2**53 and value.is_integer():
        value = int(value)
    return value if type(value) is int and -(2**63) <= value < 2**63 else None  # a bool is an int too


def number(value: Any) -> float | None:
    """Reads a finite number; None if this is none."""
    if type(value) is str and len(value) <= _LONGEST and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    return float(value) if type(value) in (int, float) and abs(value) < 1e300 else None


def numbers(values: Any) -> list[float] | None:
    """Reads a list of finite numbers; None if this is none."""
    if not isinstance(values, list):
        return None
    found = [value if type(value) is float and -1e300 < value < 1e300 else number(value) for value in values]
    return None if None in found else found


def whole_numbers(values: Any) -> list[int] | None:
    """Reads a list of integers of 64 bits; None if this is none."""
    if not isinstance(values, list):
        return None
    found = [whole_number(value) for value in values]
    return None if None in found else found


def is_flat(values: Sequence[Any]) -> bool:
    """Tells whether a list holds no lists or objects."""
    return not any(isinstance(value, (list, dict)) for value in values)


def shown(value: Any) -> str:
    """Writes a value of a file into a message: whole if it is short, else its beginning."""
    if isinstance(value, str) and value.isprintable() and len(value) <= 200:
        return repr(value)
    return reprlib.repr(value)
