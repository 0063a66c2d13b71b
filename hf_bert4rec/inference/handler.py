"""Answers of a Hugging Face Inference Endpoint. The `handler.py` of pushed repositories imports `EndpointHandler`."""

from itertools import chain
from pathlib import Path
from typing import Any

from .arguments import ITEM_LISTS, check_options, read_item_lists
from .export import OPTIONS, checkpoint_revision
from .pipeline import pipeline


class EndpointHandler:
    """Handler that answers as `POST /recommend` of `hf-bert4rec serve`; `path` is the folder of the checkpoint."""

    def __init__(self, path: str = "") -> None:
        self.recommender = pipeline(path)
        self.recommender.catalog.report = False  # histories are not logged
        self.source = {"checkpoint": Path(path).name, "revision": checkpoint_revision(Path(path))}

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request as a dict that `json.dumps` accepts.

        The `inputs` have the fields of `POST /recommend`: `histories`, optionally `top_k`, `allow`, `deny` and
        `exclude_history`. `inputs` may also be the histories alone. Options may be in `parameters` instead, which
        take precedence. ValueError for other forms and unknown fields.
        """
        fields = data if isinstance(data, dict) else {}
        inputs, parameters = fields.get("inputs"), fields.get("parameters")
        options = dict(inputs) if isinstance(inputs, dict) else {"histories": inputs}
        histories = options.pop("histories", None)
        if not isinstance(histories, list) or not isinstance(parameters, dict | None):
            example = '{"inputs": [["260", "1196"]], "parameters": {"top_k": 10}}'
            found = f"{type(histories).__name__} and {type(parameters).__name__}"
            expected = "Histories must be a list, and parameters an object or null"
            raise ValueError(f"{expected}, found {found}. Example: {example}")
        if unknown := sorted(fields.keys() - {"inputs", "parameters"}):
            raise ValueError(f"Unknown field {unknown[0]!r:.100}. The fields are inputs and parameters.")
        options = check_options(options | (parameters or {}), OPTIONS, ())
        answers = self.recommender(histories, **options)
        lists = [read_item_lists(options[name], name, len(histories)) for name in ITEM_LISTS & options.keys()]
        unknown_ids = self.recommender.catalog.unknown_ids(chain(histories, *lists))
        return {**self.source, "recommendations": answers, "unknown_ids": unknown_ids}
