"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in Llama's layout of halves."""
