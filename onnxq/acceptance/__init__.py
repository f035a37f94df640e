"""What a quantized model must pass, and safer forms of what fails."""
