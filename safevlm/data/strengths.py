"""`NAME:STRENGTH`, as changes of images and attacks are named: how strong, within what their table allows."""

from __future__ import annotations


def strength_of(
    text: str,
    usual: float,
    limits: tuple[float, float],
    meaning: str,
    where: str,
    error: type[ValueError] = ValueError,
) -> float:
    """The strength of `NAME` or `NAME:STRENGTH`; `usual`: where none is given; `meaning`: what it is.

    `error`, beginning with `where`, names the limits.
    """
    name, colon, strength = text.partition(":")
    try:
        given = float(strength) if colon else usual
    except ValueError:
        given = float("nan")
    least, most = limits
    if not least <= given <= most:
        raise error(f"{where}: the strength ({meaning}) must lie in {least:g}-{most:g}, as in {name}:{usual:g}")
    return given
