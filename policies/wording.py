"""How numbers are said in reasons."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``3.2 h``, ``12 min`` or ``45 s``."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s"


def energy(joules: float) -> str:
    """``52.0 kJ`` or ``640 J``."""
    return f"{joules / 1000:.1f} kJ" if abs(joules) >= 1000 else f"{joules:.0f} J"
