"""What a benchmark is asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings of one call of ``python -m benchmarks``.

    Attributes:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        small: whether to measure a small case of everything, in a minute; the numbers then say nothing.
    """

    device: str = "auto"
    small: bool = False
