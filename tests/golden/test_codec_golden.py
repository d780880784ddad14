"""KV codecs against vectors from the authors' code: codes, scales, and what stays in full precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foveate.memory import _bits
from foveate.memory.calibquant import CalibQuant, calibrated
from foveate.memory.kivi import Kivi
from tests.golden.golden_cases import TOLERANCE, cases

KIVI = cases("kivi")
CALIB = cases("calibquant")


def _codes(coded: Any, rows: Any, bits: int, width: int) -> np.ndarray:
    return np.asarray(_bits.unpack(rows, bits, width))


@pytest.mark.parametrize("case", [c for c in KIVI if c.inputs], ids=str)
def test_kivi(case: Any) -> None:
    s, x, y = case.settings, case.inputs, case.outputs
    codec = Kivi(bits=s["bits"], group=s["group"], residual=s["group"])
    for b in range(x["key"].shape[0]):
        keys, values = torch.tensor(x["key"][b]), torch.tensor(x["value"][b])
        packed, scale, low = codec._keys(keys)
        width = keys.shape[2]
        assert packed.shape[-1] == width * s["bits"] // 8
        assert np.array_equal(_codes(codec, packed, s["bits"], width), y["key_code"][b])
        np.testing.assert_allclose(scale, y["key_scale"][b][:, :, 0], **TOLERANCE)
        np.testing.assert_allclose(low, y["key_min"][b][:, :, 0], **TOLERANCE)
        packed, scale, low = codec._values(values)
        assert np.array_equal(_codes(codec, packed, s["bits"], width), y["value_code"][b])
        np.testing.assert_allclose(scale, y["value_scale"][b][..., 0], **TOLERANCE)
        np.testing.assert_allclose(low, y["value_min"][b][..., 0], **TOLERANCE)
        # All keys are coded, since the window divides the prompt; of the values all but the last.
        k, v = codec.decode(codec.encode(keys, values, None))
        np.testing.assert_allclose(k, y["key_dequant"][b], **TOLERANCE)
        kept = values.shape[1] - s["group"]
        np.testing.assert_allclose(v[:, :kept], y["value_dequant"][b][:, :kept], **TOLERANCE)
        assert torch.equal(v[:, kept:], values[:, kept:])


@pytest.mark.parametrize("case", [c for c in KIVI if not c.inputs], ids=str)
def test_kivi_window(case: Any) -> None:
    n, y = case.settings["tokens"], case.outputs
    codec = Kivi(residual=case.settings["residual"])
    x = torch.randn(1, n, 8, generator=torch.Generator().manual_seed(0))
    codes = codec.encode(x, x, None)
    assert codes.key.n == len(y["key_quantised"]) and codes.value.n == len(y["value_quantised"])
    assert torch.equal(codes.key_full[0], x[0, y["key_full"].astype(int)])
    assert torch.equal(codes.value_full[0], x[0, y["value_full"].astype(int)])


@pytest.mark.parametrize("case", [c for c in CALIB if "x" in c.inputs], ids=str)
def test_calibquant(case: Any) -> None:
    s, y = case.settings, case.outputs
    codec = CalibQuant(bits=s["bits"])
    for b in range(case.inputs["x"].shape[0]):
        x = torch.tensor(case.inputs["x"][b]).transpose(0, 1)
        coded = codec._coded(x, s["shrink"])
        width = x.shape[2]
        assert coded.codes.shape == (2, x.shape[1], width * s["bits"] // 8)
        found = _codes(codec, coded.codes, s["bits"], width).transpose(1, 0, 2)
        assert np.array_equal(found, y["code"][b])
        np.testing.assert_allclose(coded.scale.transpose(0, 1), y["scale"][b], **TOLERANCE)
        zero = -(coded.low / coded.scale).transpose(0, 1)
        np.testing.assert_allclose(zero, y["zero"][b], **TOLERANCE)
        read = codec._expanded(coded)[0].transpose(0, 1)
        np.testing.assert_allclose(read, y["dequant"][b], **TOLERANCE)


@pytest.mark.parametrize("case", [c for c in CALIB if "logits" in c.inputs], ids=str)
def test_calibquant_calibration(case: Any) -> None:
    """The authors take a head's bounds over all queries of a call; ours have one query each."""
    logits, want = torch.tensor(case.inputs["logits"][0]), case.outputs["calibrated"][0]
    heads = logits.shape[0]
    together = calibrated(logits.reshape(heads, 1, -1), case.settings["offset"])
    np.testing.assert_allclose(together.view(logits.shape), want, **TOLERANCE)
