"""Masked models: own residual wiring over borrowed Hugging Face leaves."""
