"""How long tests wait for what must come."""

PATIENCE_S = 240.0
"""For a program or an answer: a machine that does much else takes a while; only a fault takes so
long. Less than a whole test may take, so that what did not come is told."""
