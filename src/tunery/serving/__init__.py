"""Serving: bases and any number of their versions behind an OpenAI-compatible API."""

from tunery.serving.catalog import Engine
from tunery.serving.service import EnginePlan, Plan, Service, serve

__all__ = ["Engine", "EnginePlan", "Plan", "Service", "serve"]
