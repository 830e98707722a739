"""Backbones, decode heads and layers, as mmsegmentation's ``models`` has them."""
