"""Room 1: the client of the Tinker API. Imports neither torch nor transformers.

`service`, `training` and `sampling` are what users hold; everything else is what those three are
made of, one concept a file. Nothing here knows the server.
"""
