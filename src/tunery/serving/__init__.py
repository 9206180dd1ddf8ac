"""Serving: one base and its adapters behind an OpenAI-compatible API on this machine."""

from tunery.serving.service import Service, serve

__all__ = ["Service", "serve"]
