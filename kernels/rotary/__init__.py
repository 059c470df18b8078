"""Rotary position embedding of queries and keys (Su et al. 2021, arXiv 2104.09864), in Llama's arrangement of the halves."""
