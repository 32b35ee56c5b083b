"""Filters against the golden taps, and the properties that make them low-pass."""

import numpy as np
import pytest
import torch

from multiscale.networks.filters import design_lowpass_filter


def test_taps_agree_with_golden(golden):
    g = golden("filters")
    for i, arguments in enumerate(g.meta):
        taps = design_lowpass_filter(**arguments)
        if arguments["numtaps"] == 1:
            assert taps is None
        else:
            assert taps.dtype == torch.float32
            torch.testing.assert_close(taps, g[f"f{i}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("numtaps", [6, 7, 12, 13])
def test_radial_filter_is_symmetric_with_unit_sum(numtaps):
    taps = design_lowpass_filter(numtaps, 8.0, 16.0, 64, radial=True)
    torch.testing.assert_close(taps, taps.T)
    torch.testing.assert_close(taps, taps.flip(0))
    assert taps.sum().item() == pytest.approx(1, abs=1e-6)
    assert taps.max() == taps[numtaps // 2, numtaps // 2]


def test_stopband_is_attenuated():
    taps = design_lowpass_filter(48, 8.0, 8.0, 64).double().numpy()
    response = np.abs(np.fft.rfft(taps, 4096))
    frequency = np.fft.rfftfreq(4096, 1 / 64)
    assert response[frequency > 12].max() < 1e-2
    assert abs(response[frequency < 4] - 1).max() < 1e-2


def test_no_taps_is_an_error():
    with pytest.raises(ValueError, match="1 tap or more"):
        design_lowpass_filter(0, 1.0, 1.0, 4)
