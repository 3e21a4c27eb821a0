"""The model for other programs: OpenAI's protocol over HTTP. One thread runs the model for all who ask.

Knows HTTP and requests; nothing about tensors. `serve` is the way in.
"""

from m7b.server.guard import Access
from m7b.server.listen import bind_socket, bind_unix_socket, describe_socket, serve

__all__ = ["Access", "bind_socket", "bind_unix_socket", "describe_socket", "serve"]
