"""Evaluation with the Trainer: what is read of the outputs, and ranks in the order of the rows."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, ProgressCallback

from hf_bert4rec import ranking_metrics
from hf_bert4rec.evaluation.trainer_evaluation import metrics_of_ranks, rank_rows, ranks_of_logits
from tests.training.trainers import make_trainer

ROWS = 14  # of an item table of 11 items
LABELS = torch.tensor([[-100, -100, 5]])


def scores_of(*best: int) -> torch.Tensor:
    """Logits (1, 1, ROWS) that rank some rows first, in their order."""
    logits = torch.zeros(1, 1, ROWS)
    for place, row in enumerate(best):
        logits[0, 0, row] = len(best) - place
    return logits


def test_the_rank_is_that_at_the_mask_also_if_every_position_is_scored():
    logits = torch.zeros(1, 3, ROWS)
    logits[0, 2, 5] = 1
    ranking = {"history": torch.tensor([[3, 4]])}
    assert ranks_of_logits((logits, ranking), LABELS).tolist() == [1]
    assert ranks_of_logits((logits[:, 2:], ranking), LABELS).tolist() == [1]


def test_history_and_candidates_are_found_by_name_among_other_outputs():
    """Row 3 and 4 score higher than the target 5; 3 is in the history, 4 is a candidate."""
    ranking = {"candidates": torch.tensor([[4, *range(6, 14), 6]]), "history": torch.tensor([[3, -100]])}
    hidden_states = (torch.zeros(1, 3, 2), torch.zeros(1, 1, 2))
    assert ranks_of_logits((scores_of(3, 4, 5), hidden_states, ranking), LABELS).tolist() == [[2, 2]]
    ranking["history"] = ranking["history"][:, :0]  # nothing is excluded
    assert ranks_of_logits((scores_of(3, 4, 5), ranking), LABELS).tolist() == [[3, 2]]


@pytest.mark.parametrize(
    "outputs", [scores_of(5), (scores_of(5),), (scores_of(5), {"candidates": torch.tensor([[4, 6]])})]
)
def test_rows_without_a_history_raise(outputs):
    with pytest.raises(ValueError, match="no `history` to exclude from the ranking"):
        ranks_of_logits(outputs, LABELS)


def test_a_catalog_that_is_not_larger_than_the_cutoffs_raises():
    ranking = {"history": torch.tensor([[3]])}
    assert ranks_of_logits((scores_of(5), ranking), LABELS).tolist() == [1]
    with pytest.raises(ValueError, match="Metrics at 10 need a catalog of more than 10 items, found 10"):
        ranks_of_logits((scores_of(5)[..., :13], ranking), LABELS)


def test_several_targets_per_row_raise():
    with pytest.raises(ValueError, match="Expected one target per user, found 2"):
        ranks_of_logits((torch.zeros(1, 2, ROWS), {"history": torch.tensor([[3]])}), LABELS)
    with pytest.raises(ValueError, match="Expected one target per user, found 2"):  # a target at each position
        ranks_of_logits((torch.zeros(1, 2, ROWS), {"history": torch.tensor([[3]])}), torch.tensor([[5, 7]]))


def test_ranks_in_batches_give_the_metrics_of_all_ranks():
    assert metrics_of_ranks(EvalPrediction([np.array([1.0, 3.0]), np.array([12.0])], None)) == ranking_metrics(
        [1, 3, 12]
    )
    both = metrics_of_ranks(EvalPrediction([np.array([[1.0, 2.0]]), np.array([[12.0, 1.0]])], None))
    assert (both["hr@10"], both["mrr_popularity_sampled"]) == (0.5, 0.75)


@pytest.mark.parametrize("outputs", [np.zeros((2, 1, 5)), (np.zeros((2, 1, 5)), {"history": np.zeros((2, 3))})])
def test_logits_instead_of_ranks_raise(outputs):
    with pytest.raises(
        ValueError, match=r"one rank per user, found other outputs\. Pass `preprocess_logits_for_metrics="
    ):
        metrics_of_ranks(EvalPrediction(outputs, None))


def test_batches_that_are_not_concatenated_give_the_same_metrics(cyclic_histories, tmp_path):
    found = [
        make_trainer(
            cyclic_histories, tmp_path, per_device_eval_batch_size=size, eval_do_concat_batches=concatenated
        ).evaluate()
        for size, concatenated in ((20, True), (10, False), (8, False))
    ]
    metrics = [{name: value for name, value in metrics.items() if "@" in name} for metrics in found]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-12)
    assert metrics[0] == pytest.approx(metrics[2], abs=1e-12)


def test_hidden_states_among_the_outputs_change_no_metric(cyclic_histories, tmp_path):
    plain = make_trainer(cyclic_histories, tmp_path).evaluate()
    trainer = make_trainer(cyclic_histories, tmp_path)
    trainer.model.config.output_hidden_states = True
    assert trainer.evaluate()["eval_ndcg@10"] == plain["eval_ndcg@10"]


def test_without_exclusion_no_history_column_is_needed(cyclic_histories, tmp_path):
    splits, _ = cyclic_histories
    trainer = make_trainer(cyclic_histories, tmp_path, config={"exclude_history": False})
    assert np.array_equal(
        rank_rows(trainer, splits["test"].remove_columns("history")), rank_rows(trainer, splits["test"])
    )


@pytest.mark.parametrize("options", [{"eval_do_concat_batches": False}, {"dataloader_drop_last": True}])
def test_ranks_are_in_the_order_of_the_rows_and_the_trainer_is_unchanged(cyclic_histories, tmp_path, options):
    rows = cyclic_histories[0]["test"]
    expected = rank_rows(make_trainer(cyclic_histories, tmp_path), rows)
    trainer = make_trainer(cyclic_histories, tmp_path, per_device_eval_batch_size=3)
    for name, value in options.items():  # the arguments of the package refuse one of them
        setattr(trainer.args, name, value)
    before = trainer.args.to_dict()
    assert rank_rows(trainer, rows).tolist() == expected.tolist()
    assert rank_rows(trainer, rows.select(range(19, -1, -1))).tolist() == expected[::-1].tolist()
    assert trainer.args.to_dict() == before


def test_rows_that_cannot_be_evaluated_are_named(cyclic_histories, tmp_path):
    trainer, splits = make_trainer(cyclic_histories, tmp_path), cyclic_histories[0]
    with pytest.raises(ValueError, match=r"^Expected one or more rows to evaluate, found none\.$"):
        rank_rows(trainer, splits["test"].select([]))
    with pytest.raises(ValueError, match=r"a Dataset with input_ids, found DatasetDict\. Pass one of its splits"):
        rank_rows(trainer, splits)


def test_a_short_evaluation_shows_no_progress_bar_and_a_long_one_does(cyclic_histories, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(ProgressCallback, "on_prediction_step", lambda *args, **kwargs: shown.append(1))
    trainer = make_trainer(cyclic_histories, tmp_path, per_device_eval_batch_size=1, disable_tqdm=False)
    rank_rows(trainer, cyclic_histories[0]["test"])
    assert shown == []
    monkeypatch.setattr("hf_bert4rec.evaluation.trainer_evaluation.FEW_BATCHES", 10)
    rank_rows(trainer, cyclic_histories[0]["test"])
    assert len(shown) == 20
