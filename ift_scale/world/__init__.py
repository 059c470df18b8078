"""The built-in world: facts, questions about them, and a base model with some wrong beliefs.

It runs the paper's whole experiment with the real engines in minutes, without a GPU or a download.
"""
