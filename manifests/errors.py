"""The error that a user can mend."""


class UserError(Exception):
    """A user's mistake or an unusable surrounding: one line that names the file or option, what is wrong and what to do.

    The command prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split("\n")))
        self.exit_code = exit_code
