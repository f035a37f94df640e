"""The mathematics of affine quantisation: grids, rounding, ranges and scales."""
