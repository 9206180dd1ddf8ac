"""Extract, then check: a Ray Serve application beside the service's engines, behind the same port and keys.

tunery serve examples/orders/tunery.yaml
curl http://127.0.0.1:8000/orders -d '{"text": "The Sorrel C42 in 56 cm isn't electric, is it?"}'
"""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse


@serve.deployment
class Stock:
    """The validator: what of a message cannot be ordered here. A real one would ask a database."""

    def __init__(self, models: list[str]) -> None:
        self._models = set(models)

    def faults(self, value: dict[str, Any]) -> list[str]:
        asked = value.get("model") or []
        names = [asked] if isinstance(asked, str) else asked  # a list where there are several
        return [f"there is no {name}" for name in names if name not in self._models]


@serve.deployment
class Orders:
    """The ingress: asks the gateway for values and the validator for what is wrong with them."""

    def __init__(self, model: str, stock: Any) -> None:
        self._model, self._stock = model, stock
        self._gateway = serve.get_app_handle("gateway")

    async def __call__(self, request: Request) -> JSONResponse:
        text = (await request.json())["text"]
        found = await self._gateway.extract.remote({"model": self._model, "text": text})
        if "error" in found:
            return JSONResponse(found, 422)
        faults = await self._stock.faults.remote(found["value"] or {})
        return JSONResponse({"value": found["value"], "confidence": found["confidence"], "faults": faults})


def app(args: dict[str, Any]) -> Any:
    """What `import_path` names; `args` are those of the application in tunery.yaml."""
    return Orders.bind(args["model"], Stock.bind(args["models"]))
