"""What tests of programs that use tinkex need: time moved by hand, a scripted HTTP peer."""

from tinkex.testing.clock import VirtualClock

__all__ = ["VirtualClock"]
