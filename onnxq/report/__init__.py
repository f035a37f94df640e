"""What onnxq did and found, as values, as text and as a page."""
