"""Toolcrib: a self-hosted control plane for AI agents and their tools."""

__version__ = "0.1.0"
