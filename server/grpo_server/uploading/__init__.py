"""Models that arrive over HTTP: each in a directory of its own, in pieces, hashed before anything can load them.

receiving > area > upload > manifest       imports go this way only
"""
