"""Answers of a Hugging Face Inference Endpoint. Pushed repositories have a `handler.py` that imports this class."""

from pathlib import Path
from typing import Any

from .arguments import check_options
from .export import OPTIONS, checkpoint_revision
from .pipeline import pipeline


class EndpointHandler:
    """Handler of an Inference Endpoint, which answers as `POST /recommend` of the server; `path` is the checkpoint."""

    def __init__(self, path: str = "") -> None:
        self.recommender = pipeline(path)
        self.recommender.catalog.report = False  # histories are not logged
        self.source = {"checkpoint": Path(path).name, "revision": checkpoint_revision(Path(path))}

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return `recommendations`, `checkpoint` and `revision` for a request; ValueError for other forms of data.

        The `inputs` of a request have the fields of `POST /recommend`: `histories`, optionally `top_k`, `allow`, `deny`
        and `exclude_history`. `inputs` may also be the histories alone, with the options in `parameters`.
        """
        inputs, options = (data.get(name) for name in ("inputs", "parameters")) if isinstance(data, dict) else (0, 0)
        if isinstance(inputs, dict):
            options = {name: value for name, value in inputs.items() if name != "histories"}
            inputs = inputs.get("histories")
        if not isinstance(inputs, list) or not isinstance(options, dict | None):
            raise ValueError('Expected histories, as in {"inputs": {"histories": [["260", "1196"]], "top_k": 10}}.')
        return {**self.source, "recommendations": self.recommender(inputs, **check_options(options or {}, OPTIONS, ()))}
