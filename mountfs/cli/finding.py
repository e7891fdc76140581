"""What a check of ``mountfs doctor`` saw."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check saw; ``cure`` says what to do unless it is ``ok``."""

    check: str
    outcome: Literal["ok", "warning", "failed"]
    detail: str
    cure: str = ""
