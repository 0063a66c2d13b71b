"""Shared by the tests of recommendations: a small checkpoint, its pipeline, and what is read of the answers."""

import pytest

import hf_bert4rec
from hf_bert4rec import Bert4RecForMaskedLM, NextItemRecommendationPipeline
from tests.conftest import lively


@pytest.fixture
def model(model) -> Bert4RecForMaskedLM:
    """As in tests/conftest.py, but the history affects the scores."""
    return lively(model)


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> str:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def recommender(folder) -> NextItemRecommendationPipeline:
    return hf_bert4rec.pipeline(folder, device="cpu")


def items_of(answers: list[list[dict]]) -> list[list[str]]:
    return [[answer["item"] for answer in answered] for answered in answers]


def scores_of(answers: list[list[dict]]) -> list[float]:
    return [answer["score"] for answered in answers for answer in answered]
