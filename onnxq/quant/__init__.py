"""The mathematics of affine quantization: grids, rounding, ranges and scales."""
