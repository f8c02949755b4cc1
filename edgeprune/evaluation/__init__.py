"""How good is a circuit, and how sure are we: everything that runs a model to judge circuits that are there already."""
