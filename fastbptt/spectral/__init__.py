"""Norms of long products of Jacobians."""

from .stream import JacobianStream, StreamResult

__all__ = ["JacobianStream", "StreamResult"]
