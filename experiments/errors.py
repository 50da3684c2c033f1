"""What a user can mend: shown as one message, without a traceback."""


class UserError(Exception):
    """A mistake in a spec, a path or an option; its text says what was expected, what was got and the remedy."""
