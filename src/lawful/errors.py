"""The errors a user can cause; the command line prints each in one line and exits with code 2."""


class LawfulError(Exception):
    """Base of every error that a user of lawful can cause and mend."""


class SettingError(LawfulError, ValueError):
    """A setting, argument or option has a value that is not allowed."""


class CoverageError(LawfulError):
    """An error signal would travel through a weight that the rule does not replace."""


class AttachmentError(LawfulError):
    """A model is attached twice, not attached, or changed behind the attachment's back."""


class DoubleBackwardError(LawfulError, RuntimeError):
    """The gradient of a feedback gradient was asked for; it is the derivative of no function."""


class ChangedInPlaceError(LawfulError, RuntimeError):
    """A tensor that a backward pass needs was changed after its forward pass."""


class UnfollowedRuleError(LawfulError, RuntimeError):
    """A rule whose feedback learns was trained without ``attachment.follow(optimizer)``."""


class NoLawError(LawfulError):
    """A law was asked for where the theory has none; the message says why."""


class DivergenceError(LawfulError, ArithmeticError):
    """A trajectory left the finite numbers: the step size is too large."""
