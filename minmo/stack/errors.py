"""What can go wrong with the processes of one machine, in words that say how to go on."""


class StackError(Exception):
    """A process does not start or does not stay, or a stack is in the way; the text says which."""
