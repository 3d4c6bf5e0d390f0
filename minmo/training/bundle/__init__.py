"""Everything that a machine without network needs to train, in parts that can be carried there.

`unpack`, `start` and `run` do their work on that machine and use the standard library alone.
"""
