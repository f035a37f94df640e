"""What the solvers are shown: rows, ranges and moments of the calibration samples, in bounded memory."""
