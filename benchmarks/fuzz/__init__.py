"""Malformed input: cases by kind, the forked children that read them, and what is expected."""
