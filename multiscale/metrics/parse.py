"""Measures as users write them: ``msfid10k`` is the measure ``msfid`` with 10,000 patches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dnnlib.errors import UserError, nearest_name
from dnnlib.reading import each_once
from multiscale.metrics.measure import KINDS, Metric

MAX_COUNT = 1_000_000
FEATURES = ("random", "inception", "dinov2")
"""Names of the networks that features come from (``multiscale/metrics/features.py``)."""
DEFAULT = "msfid1k,mskid1k,swd,spectrum,consistency"


def parse_metric(text: str) -> Metric:
    """``"msfid10k"``, ``"mskid_octave500"``, ``"swd"`` -> a measure and its number of samples.

    Raises:
        UserError: an unknown name (with the nearest), or a number that is not allowed.
    """
    match = re.fullmatch(r"([a-z_]+?)(?:(\d{1,7})(k?))?", text.strip())
    if match is None or match[1] not in KINDS:
        stem = re.sub(r"\d.*", "", text.strip())
        raise UserError(f"There is no measure {text.strip()!r}{nearest_name(stem, KINDS)}")
    kind = KINDS[match[1]]
    count = kind.count if match[2] is None else int(match[2]) * (1000 if match[3] else 1)
    if not kind.least <= count <= MAX_COUNT:
        raise UserError(f"Measure {text.strip()!r} asks for {count} samples; give {kind.least} to {MAX_COUNT}.")
    return Metric(text.strip(), match[1], count)


def parse_metrics(text: str | Sequence[str]) -> tuple[Metric, ...]:
    """A list such as ``"msfid10k,swd"``, in its order, each measure of the same number of samples once.

    Raises:
        UserError: as :func:`parse_metric`; or the list is empty.
    """
    names = text.split(",") if isinstance(text, str) else list(text)
    found = [parse_metric(name) for name in names if name.strip()]
    if not found:
        raise UserError(f"No measure was named; give one or more of {', '.join(KINDS)}.")
    return tuple(each_once(found, lambda metric: (metric.kind_name, metric.count)))
