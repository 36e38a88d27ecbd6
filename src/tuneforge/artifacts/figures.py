"""How the report writes numbers."""

import json
import math
from collections.abc import Sequence
from typing import Any


def number(value: Any) -> str:
    """A value for reading: four significant digits, thousands apart."""
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        return scientific(value)
    return f"{value:.4g}"


def plain(value: Any) -> str:
    """A value as one would type it in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def scientific(value: float) -> str:
    """Such as 2e-4: a mantissa of at most four digits."""
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def mean(values: Sequence[Any]) -> float | None:
    """Mean of the finite numbers among `values`; None where there are none."""
    finite = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None
