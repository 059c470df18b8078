"""The product of a gated MLP: activation(gate) * up (Shazeer 2020, arXiv 2002.05202)."""
