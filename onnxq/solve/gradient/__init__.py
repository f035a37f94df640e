"""Layers, blocks and whole networks refined by gradient."""
