"""A user's mistake, as an exception tree; the command prints the one line and exits 2.

LatentLoomError
├── ConfigError       a setting: unknown key, wrong type, value out of range
├── PromptError       a prompt that cannot be encoded
├── ShapeError        tensors that do not fit together
└── FileError         a path that is missing, unreadable or of another kind
    ├── CorruptFileError  the file is damaged or unsafe to read
    └── CheckpointError   weights that are not the model they should be
"""


class LatentLoomError(Exception):
    """Says in one line what was given, what is allowed and what to do."""


class ConfigError(LatentLoomError):
    """A setting is unknown, of the wrong type or out of range."""


class PromptError(LatentLoomError):
    """A prompt cannot be encoded."""


class ShapeError(LatentLoomError, ValueError):
    """Tensors do not fit together."""


class FileError(LatentLoomError):
    """A path is missing, unreadable or of another kind than the command takes."""


class CorruptFileError(FileError):
    """A file is damaged, truncated or not safe to read."""


class CheckpointError(FileError):
    """Weights do not belong to the model they are loaded into."""
