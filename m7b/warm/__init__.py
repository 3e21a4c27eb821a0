"""Models that are kept loaded by servers on this machine, and what commands need to use them.

Knows the run folder, identities and what goes over a socket; nothing about tensors or how a server answers.
"""
