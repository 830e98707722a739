"""Painters of the demo's streets: one file for each thing that is painted.

A street is laid out in metres, seen through a pinhole camera, and painted from
far to near on a canvas that holds the picture and its labels side by side.
"""
