"""The one kind of error that a user sees as a sentence instead of a traceback."""


class UserError(Exception):
    """A user's mistake.

    The message is one clear sentence that says what is wrong and what to do about it. The command
    line prints the message alone and exits with status 2. Anything else that escapes is a bug of
    ours and keeps its traceback.
    """


class CheckpointError(UserError):
    """A model file or its description that cannot be loaded."""


class TokenizerError(UserError):
    """A vocabulary file that cannot be loaded, or text and tokens that do not belong to it."""
