"""Reads people's instruction files, of any format, as checked conversations."""
