"""What can go wrong at the client, apart from what the server says."""


class ClientError(Exception):
    """No answer came, or the server cannot be reached; the text says why and what to do."""


class RecordingError(ClientError):
    """A file cannot be used as a recording."""


class NotConnectedError(ClientError):
    """There is no connection to the server at the moment, so that a request was not sent."""


class NothingSaidError(ClientError):
    """There was no speech to answer, or no words in it."""
