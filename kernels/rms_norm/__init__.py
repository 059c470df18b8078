"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467), optionally fused with a residual."""
