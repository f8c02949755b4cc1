"""One adapter per architecture. A new file here, with a final subclass of `AbstractFamily`, is all a family needs."""
