"""Running models with onnxruntime, and keeping what passes through them in bounded memory."""
