"""Screens instruction data: what of it a base model knows, and what contradicts it."""
