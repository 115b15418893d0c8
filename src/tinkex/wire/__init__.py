"""How the wire types become bytes. Used by client and server alike."""
