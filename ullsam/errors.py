"""The one error that tells a user what to change."""


class InputError(ValueError):
    """A file or argument cannot be used; the message says what is wrong and what to do."""
