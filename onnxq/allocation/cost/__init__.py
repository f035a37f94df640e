"""What layers spend at each candidate: bytes, bit operations, energy, time."""
