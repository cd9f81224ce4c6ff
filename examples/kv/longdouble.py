"""Decimal texts added as x87 extended-precision numbers, as Redis on x86-64 adds them: 64 bits of mantissa.

INCRBYFLOAT keeps its number as text, so what is stored depends on how numbers are read, rounded and written. Here all
of it is done in whole numbers, so that every replica comes to the same bytes, whatever its processor.

    read      the nearest number with 64 bits of mantissa, half to even
    add       the exact sum, rounded in the same way
    write     17 digits behind the point, half to even, without zeros at the end

Rules of this file: no floating point; what a text makes this compute is bounded by its length.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

TEXT_LIMIT: Final = 255
_MANTISSA: Final = 64
_EXPONENT_MAX: Final = 16_384
"""Numbers from 2 to this power on are infinite."""
_SMALLEST: Final = -16_445
"""The power of two that is the smallest number above zero."""
_FAR: Final = 18_000
_DECIMALS: Final = 17
_HALF: Final = 3_000
_NUMBER: Final = re.compile(rb"([+-]?)(?:([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(?:[eE]([+-]?[0-9]+))?")
_HEX: Final = re.compile(rb"([+-]?)0[xX](?:([0-9a-fA-F]+)(?:\.([0-9a-fA-F]*))?|\.([0-9a-fA-F]+))(?:[pP]([+-]?[0-9]+))?")
_INFINITE: Final = re.compile(rb"[+-]?inf(?:inity)?", re.IGNORECASE)


class BadNumber(ValueError):
    """The text is no number, or one that is out of range."""


def add_texts(left: bytes, right: bytes) -> bytes | None:
    """Return the sum as text; None where it would be infinite. Raises BadNumber."""
    one, other = read(left), read(right)
    if one is None or other is None:
        return None
    total = _rounded(one + other)
    return None if total is None else write(total)


def read(text: bytes) -> Fraction | None:
    """Return the number nearest to `text`; None for infinity. Raises BadNumber."""
    if len(text) > TEXT_LIMIT:
        raise BadNumber
    if _INFINITE.fullmatch(text):
        return None
    base, step = 10, 1  # the exponent counts tens, or twos of which a digit is four
    found = _NUMBER.fullmatch(text)
    if found is None:
        base, step = 2, 4
        found = _HEX.fullmatch(text)
        if found is None:
            raise BadNumber
    sign, whole, behind, alone, power = found.groups()
    behind = alone if alone is not None else behind or b""
    digits = int((whole or b"") + behind, 10 if base == 10 else 16)
    if digits == 0:
        return Fraction(0)
    exponent = int(power or b"0") - step * len(behind)
    # Far outside the range of such numbers nothing need be computed.
    if not -_FAR < exponent < _FAR:
        raise BadNumber
    exact = Fraction(digits * base**exponent) if exponent >= 0 else Fraction(digits, base**-exponent)
    value = _rounded(exact)
    if value is None or value == 0:
        raise BadNumber
    return -value if sign == b"-" else value


def write(value: Fraction) -> bytes:
    """Return `value` as text."""
    scaled = round(value * 10**_DECIMALS)  # half to even
    # In two halves, for Python refuses to write a number of very many digits at once.
    high, low = divmod(abs(scaled), 10**_HALF)
    digits = (b"%d%0*d" % (high, _HALF, low)).lstrip(b"0").rjust(_DECIMALS + 1, b"0")
    text = (digits[:-_DECIMALS] + b"." + digits[-_DECIMALS:]).rstrip(b"0").rstrip(b".")
    return b"-" + text if scaled < 0 else text


def _rounded(value: Fraction) -> Fraction | None:
    """Return the nearest number of 64 bits of mantissa; None where that is infinite."""
    if value == 0:
        return value
    size = abs(value)
    power = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** power:
        power -= 1  # now 2**power <= size < 2**(power + 1)
    unit = Fraction(2) ** max(power - _MANTISSA + 1, _SMALLEST)
    nearest = round(size / unit) * unit
    if nearest >= Fraction(2) ** _EXPONENT_MAX:
        return None
    return nearest if value > 0 else -nearest
