"""Sweeps: W&B's sweep files, run here without an account: reading, sampling, trials in folders, the frontier."""
