"""Writing a quantised model down."""
