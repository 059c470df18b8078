"""IFT-Scale: what instruction fine-tuning does to a model's knowledge, measured at cluster speed."""

__version__ = "0.1.0"
