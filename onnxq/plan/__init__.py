"""What will be quantized, at how many bits, and why the rest stays float."""
