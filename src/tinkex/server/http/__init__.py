"""What HTTP asks before a handler runs: keys and limits, bodies, the reading of a message."""
