"""The one exception of the engine: a mistake of its caller. What a client does wrong is a reply, never an exception."""


class LocalError(RuntimeError):
    """The engine was used against its interface: a bug on our side."""
