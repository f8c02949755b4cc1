"""Errors that a user can cause and mend: one line that names the value, the rule and the remedy."""


class EdgepruneError(ValueError):
    """A user's mistake. The command line prints it on one line and leaves with status 2."""


class UnsupportedFamilyError(EdgepruneError):
    """The model's architecture, or one of its flags, has no adapter. Never guessed around."""


class NoTokenizerError(EdgepruneError):
    """A task gives text, and there is nothing that makes tokens of it."""
