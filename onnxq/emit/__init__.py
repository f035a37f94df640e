"""Writing a quantized model down."""
