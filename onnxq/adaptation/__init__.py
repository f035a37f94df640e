"""A finished quantization adapted to samples of another kind."""
