"""The tiny golden run is what it was: to the bit on the machine that recorded it, to rounding elsewhere."""

import json

import pytest
from golden_run import GOLDEN, LOGGED, PARTS, golden_run


@pytest.mark.parametrize("parts", PARTS)
def test_the_golden_run_has_the_losses_and_weights_that_were_recorded(tmp_path, parts):
    kept, found = json.loads(GOLDEN.read_text(encoding="utf-8"))[f"{parts} parts"], golden_run(tmp_path, parts)
    for name in ("loss/D", "loss/G", "loss/consistency"):
        assert len(found[name]) == LOGGED
        assert found[name] == pytest.approx(kept[name], rel=2e-3)
    assert [v is None for v in found["loss/r1"]] == [v is None for v in kept["loss/r1"]]
    assert found["mean square"] == pytest.approx(kept["mean square"], rel=1e-3)
