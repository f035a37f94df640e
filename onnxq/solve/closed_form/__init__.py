"""Solutions of a layer that need no gradient."""
