"""HR@k, NDCG@k and MRR@k from one rank per user, as a module of `evaluate`; `hf_bert4rec` computes them."""

from collections.abc import Sequence

import datasets
import evaluate

from hf_bert4rec.evaluation.ranking import ranking_metrics

DESCRIPTION = "Hit rate, NDCG and MRR of next-item recommendation, from the rank of one held-out item per user."
INPUTS = """
Args:
    predictions: rank of each user's held-out item, from 1. A tie with one other item adds half a rank.
    k: one or several cut-offs; default: 1, 5 and 10.
Returns:
    A dict with the values of hr@k, ndcg@k and mrr@k, from 0 to 1, for each k.
Examples:
    >>> import evaluate
    >>> from hf_bert4rec import NEXT_ITEM_METRIC
    >>> evaluate.load(NEXT_ITEM_METRIC).compute(predictions=[1, 3], k=[2])
    {'hr@2': 0.5, 'ndcg@2': 0.5, 'mrr@2': 0.5}
"""
CITATION = """@inproceedings{sun2019bert4rec,
  title = {{BERT4Rec}: Sequential Recommendation with Bidirectional Encoder Representations from Transformer},
  author = {Sun, Fei and Liu, Jun and Wu, Jian and Pei, Changhua and Lin, Xiao and Ou, Wenwu and Jiang, Peng},
  booktitle = {CIKM}, year = {2019}}"""


@evaluate.utils.file_utils.add_start_docstrings(DESCRIPTION, INPUTS)
class NextItem(evaluate.Metric):
    """HR@k, NDCG@k and MRR@k from ranks."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64")}),
        )

    def _compute(self, predictions: Sequence[float], k: int | Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        return ranking_metrics(predictions, k)
