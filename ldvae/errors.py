"""The one exception that means: the input is at fault, not the program."""


class InputError(ValueError):
    """The user's data, config or arguments cannot be used as they are.

    The message says what is wrong, what was found, what was expected and what to do. The command line prints
    it without a traceback and exits with code 2.
    """
