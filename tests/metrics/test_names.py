"""Measures by name."""

import pytest

from dnnlib.errors import UserError
from multiscale.metrics.names import DEFAULT, KINDS, parse_metric, parse_metrics


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("msfid10k", "msfid", 10_000),
        ("msfid_octave1k", "msfid_octave", 1000),
        ("mskid50", "mskid", 50),
        ("swd", "swd", 256),
        (" truth7 ", "truth", 7),
    ],
)
def test_a_name_may_say_how_many(text, kind, count):
    metric = parse_metric(text)
    assert (metric.kind_name, metric.count, metric.name) == (kind, count, text.strip())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("msfdi10k", "did you mean 'msfid'"),
        ("fid", "allowed: |did you mean"),
        ("msfid-1", "There is no measure"),
        ("msfid1", "asks for 1 samples; give 2 to"),
        ("precision_recall5", "give 8 to"),
        ("msfid9999k", "asks for 9999000"),
        ("", "No measure was named"),
    ],
)
def test_what_is_no_measure_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_metrics(text)


def test_lists_keep_their_order_and_drop_repetitions():
    assert [m.name for m in parse_metrics("swd,msfid1k,swd, spectrum")] == ["swd", "msfid1k", "spectrum"]
    assert [m.name for m in parse_metrics(["swd", "msfid1k"])] == ["swd", "msfid1k"]
    assert {m.kind_name for m in parse_metrics(DEFAULT)} <= set(KINDS)
