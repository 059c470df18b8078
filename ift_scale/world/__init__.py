"""The embedded world: facts, questions about them, and a base model that believes most of them, some wrongly.

It lets the paper's whole experiment run in minutes without a GPU or a download, with the real engines.
"""
