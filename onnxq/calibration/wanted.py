"""What is asked of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.calibration.hold_out import KeepBack


@dataclass(frozen=True)
class Wanted:
    """What is gathered of a calibration set on its way through a network.

    Attributes:
        sequential: keep a second copy for the network whose earlier layers are quantized.
        rows: rows of the layers' inputs and outputs.
        float_rows: the float network's inputs of the rows too.
        moments: moments of the float layers' outputs.
        mask: name of the input that is 0 for padding, which is left out of rows and ranges.
        keep_back: what some of the observed samples are kept back for; by their number when None.
    """

    sequential: bool
    rows: bool = True
    float_rows: bool = False
    moments: bool = False
    mask: str | None = None
    keep_back: KeepBack | None = None
