"""The typed view of a model: its layers, its stages, and the only doors to model files."""
