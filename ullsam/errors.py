"""The one error that tells a user what to change."""


class InputError(ValueError):
    """A file or argument cannot be used; the message says what is wrong and what to do."""


def reason(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
