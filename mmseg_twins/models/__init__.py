"""Backbones, decode heads, segmentors and layers."""
