"""Bits of every layer, chosen: what layers lose and cost at each candidate, and the integer programme over it."""
