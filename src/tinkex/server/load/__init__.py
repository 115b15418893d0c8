"""What keeps a server fair and bounded under load: turns, rates, queue states, slow clients."""
