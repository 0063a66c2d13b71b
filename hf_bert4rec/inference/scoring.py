"""From histories of token IDs to the scores of all items: batches, padding and the evaluation mode of the model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from ..data.data_collator import pad_rows
from .answers import check_scores

LENGTH_MULTIPLE = 16
MIN_ROWS = 4


class ScoringPipeline(Pipeline):
    """The part of a pipeline that makes batches and scores them. It keeps no state between calls."""

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def preprocess(self, histories: list[np.ndarray], places: Sequence[int]) -> dict[str, torch.Tensor]:
        """Make a batch from histories of token IDs, with a [MASK] at the given place of each history.

        A history must get the same scores in any batch; otherwise the batch size would decide near ties. The results
        are the same to the bit if all sizes fill the SIMD registers of the processor. So the length is padded to a
        multiple of `LENGTH_MULTIPLE`, but not above `tokenizer.model_max_length`, and the batch to at least `MIN_ROWS`
        rows. Of a history longer than the input, the part around the [MASK] is kept; `query` is its position there.
        """
        limit, pad = self.tokenizer.model_max_length, self.tokenizer.pad_token_id
        asked = np.array(places)
        lengths = np.maximum(list(map(len, histories)), asked + 1)
        starts = np.minimum(asked - limit // 2, lengths - limit).clip(min=0)
        kept = [history[start : start + limit] for history, start in zip(histories, starts, strict=True)]
        kept += [np.empty(0, np.int64)] * (MIN_ROWS - len(histories))
        longest = min(limit, -(-lengths.max() // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)
        input_ids, real = pad_rows(kept, pad, longest)
        query = np.pad(asked - starts, (0, len(kept) - len(histories)))
        queries = np.arange(len(kept)), query
        input_ids[queries], real[queries] = self.tokenizer.mask_token_id, True
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(real.astype(np.int64)),
            "query": torch.from_numpy(query),
            "history": torch.from_numpy(pad_rows(histories, pad)[0]),
        }

    def forward(self, model_inputs: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Score a batch with the model in evaluation mode. Afterwards, each module has the mode that it had."""
        modules = [module for module in self.model.modules() if module.training] if self.model.training else []
        if modules:
            self.model.eval()
        try:
            return super().forward(model_inputs, **kwargs)
        finally:
            for module in modules:
                module.training = True

    def _forward(self, inputs: dict[str, torch.Tensor], scored: bool = True) -> dict[str, torch.Tensor]:
        # Two queries, because torch computes attention for a single query differently, split over threads.
        ids, mask, history = inputs["input_ids"], inputs["attention_mask"], inputs["history"]
        query = inputs["query"][:, None].expand(-1, 2)
        states = self.model.model(ids, mask, kept_positions=query)[0][:, :1]
        if scored:
            logits = self.model.score_items(states, ids, query[:, :1])[: len(history), 0]
            return {"logits": logits.float(), "history": history}
        states = self.model.query_vectors(states, ids)
        queries = states[: len(history), 0].float()
        found = {"queries": torch.cat([queries, torch.ones_like(queries[:, :1])], dim=1), "history": history}
        if self.model.transition_head is not None:
            rows, scores = self.model.transition_head(states, ids, query[:, :1])
            found |= {"followers": rows[: len(history), 0], "transitions": scores[: len(history), 0]}
        return found

    def _log_probabilities(
        self, histories: list[np.ndarray], places: list[int], targets: np.ndarray
    ) -> tuple[torch.Tensor, list[float]]:
        """Return the logits (histories, vocab_size) at one position per history, and the targets' log-probabilities."""
        logits = self.forward(self.preprocess(histories, places))["logits"]
        found = logits[np.arange(len(targets)), targets] - logits.logsumexp(dim=1)
        check_scores(found)
        return logits, found.tolist()
