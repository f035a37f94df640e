"""What a quantized network does to samples that were not used to make it, and what follows from that."""
