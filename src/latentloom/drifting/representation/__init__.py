"""Pseudo-classes of clips, and how well an encoder or a quantizer keeps classes apart."""
