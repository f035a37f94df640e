"""Solving a layer: from its rows to the integers that will be stored."""
