"""All services on one machine: start, supervise, stop."""

from minmo.stack.config import StackConfig
from minmo.stack.errors import StackError
from minmo.stack.stack import Stack

__all__ = ["Stack", "StackConfig", "StackError"]
