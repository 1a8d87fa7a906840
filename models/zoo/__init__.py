"""Ready models with their data: ``digits`` (8x8 images of handwritten digits, a small MLP)."""
