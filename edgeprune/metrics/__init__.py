"""Measures of a circuit: faithfulness to the full model, overlap with another circuit."""
