"""The exceptions a user can meet, and the exit code of each.

SftError                    1   a failure of ours
+-- UserError               2   something the user can mend; shown as one message without a traceback
|   +-- ArgumentError           a flag, a YAML key, or two of them that do not go together
|   +-- DataError               a dataset, file, split, column, row or label
|   +-- ModelError              a model, tokenizer or processor that cannot be loaded or does not fit the task
|   +-- HubError                a repository, a token or a right on the Hub
|   +-- LaunchError             processes that were started but do not form one run
|   +-- ResourceError           memory or a process that the machine took away
|   |   +-- StorageError            a full disk
|   +-- DivergedError           a loss or a gradient that is not finite
+-- ReloadError             1   the saved model does not reproduce the trainer's predictions
+-- PushError               3   trained and saved, but not pushed
+-- Interrupted       130/143   SIGINT or SIGTERM; a checkpoint was written first
"""

import signal


class SftError(Exception):
    """A failure with a message that stands alone."""

    exit_code = 1


class UserError(SftError):
    """Something the user can mend: no traceback is shown."""

    exit_code = 2


class ArgumentError(UserError):
    """A flag or a configuration key, or a combination of them."""


class DataError(UserError):
    """A dataset, file, split, column, row or label."""


class ModelError(UserError):
    """A model, tokenizer or processor that cannot be loaded or does not fit the task."""


class HubError(UserError):
    """A repository, a token or a right on the Hub."""


class LaunchError(UserError):
    """Processes that were started but do not form one run."""


class ResourceError(UserError):
    """Memory that the machine does not have, or a process of the run that it ended."""


class StorageError(ResourceError):
    """A disk, a quota or a limit that a file does not fit into."""


class DivergedError(UserError):
    """A loss or a gradient that is not finite."""


class ReloadError(SftError):
    """The saved model, reloaded the way a user would, predicts something else than the trainer did."""


class PushError(SftError):
    """The run is trained, evaluated and saved, but could not be pushed."""

    exit_code = 3


class Interrupted(SftError):
    """The run was told to stop by a signal."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signal_number
        assert signal_number in (signal.SIGINT, signal.SIGTERM)
