"""`tinkex mesh ...`: make a network, run its workers, use it."""
