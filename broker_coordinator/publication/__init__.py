"""How a version goes out: its blobs, its manifest, its marker."""
