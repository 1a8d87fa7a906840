"""Ready models: their networks and artifacts, and the data of ``digits`` (handwritten, 8x8 pixels)."""
