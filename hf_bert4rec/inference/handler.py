"""Answers of a Hugging Face Inference Endpoint. The `handler.py` of pushed repositories imports `EndpointHandler`."""

from pathlib import Path
from typing import Any

from .arguments import check_options
from .export import OPTIONS, checkpoint_revision
from .pipeline import pipeline


class EndpointHandler:
    """Handler that answers as `POST /recommend` of `hf-bert4rec serve`; `path` is the folder of the checkpoint."""

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
            example = '{"inputs": [["260", "1196"]], "parameters": {"top_k": 10}}'
            raise ValueError(f"Expected histories, and options as an object, such as {example}.")
        return {**self.source, "recommendations": self.recommender(inputs, **check_options(options or {}, OPTIONS, ()))}
