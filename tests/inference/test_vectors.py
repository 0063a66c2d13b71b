"""Vectors of histories and items, similar items, and candidates from an index, compared with brute force."""

import faiss
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from usearch.index import Index

from hf_bert4rec import Bert4RecForMaskedLM, NextItemRecommendationPipeline, item_tokenizer
from tests.conftest import small_config
from tests.inference.conftest import items_of, scores_of
from tests.inference.test_pipeline import FIRST_ITEM, HISTORIES, ITEMS


def usearch_index(vectors):
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return index


def faiss_index(vectors):
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def dataset_index(vectors):
    dataset = Dataset.from_dict({"vector": vectors})
    return dataset.add_faiss_index("vector", metric_type=faiss.METRIC_INNER_PRODUCT)


class LostIndex:
    """Finds the last items of the catalog first, whatever the query, and fewer than it is asked for."""

    ntotal = len(ITEMS)

    def search(self, queries, count):
        found = np.full((len(queries), count), -1)
        found[:, : count - 1] = np.arange(len(ITEMS))[::-1][: count - 1]
        return None, found


def test_inner_products_of_the_vectors_are_the_logits(recommender, model):
    users, items = recommender.encode(HISTORIES), recommender.item_vectors()
    equal = recommender.index_vectors()
    assert equal.shape == (len(ITEMS), 14)
    assert np.linalg.norm(equal, axis=1) == pytest.approx(np.linalg.norm(items, axis=1).max())
    assert (equal[:, :-1] == items).all()
    assert (users.dtype, items.dtype) == (np.float32, np.float32)
    assert users.shape == (len(HISTORIES), 13)
    assert items.shape == (len(ITEMS), 13)
    rows = torch.tensor([[FIRST_ITEM + ITEMS.index(item) for item in "cd"] + [1]])
    with torch.no_grad():
        expected = model(rows).logits[0, -1, FIRST_ITEM:].numpy()
    assert items @ recommender.encode([["c", "d"]])[0] == pytest.approx(expected, abs=1e-4)
    best = np.argsort(-(users @ items.T), axis=1)
    assert [[ITEMS[place] for place in row] for row in best] == items_of(
        recommender(HISTORIES, exclude_history=False, top_k=10)
    )


def test_no_histories_have_no_vectors(recommender):
    assert recommender.encode([]).shape == (0, 13)


def test_the_batch_size_does_not_change_vectors(recommender):
    assert recommender.encode(HISTORIES, batch_size=2) == pytest.approx(recommender.encode(HISTORIES), abs=1e-5)


def test_similar_items_have_the_largest_cosines(recommender, model):
    vectors = model.lm_head.weight[FIRST_ITEM:].detach()
    cosines = torch.cosine_similarity(vectors[2], vectors, dim=1)
    (found,) = recommender.similar(["c"], top_k=20)
    expected = sorted(set(ITEMS) - {"c"}, key=lambda item: -cosines[ITEMS.index(item)])
    assert items_of([found]) == [expected]
    assert scores_of([found]) == pytest.approx([float(cosines[ITEMS.index(item)]) for item in expected], abs=1e-5)
    assert items_of(recommender.similar(["c", "a"], top_k=2))[0] == expected[:2]
    assert [row["title"] for row in recommender.similar(["c"], top_k=20)[0] if row["item"] == "a"] == ["Alpha"]


def test_similar_items_are_filtered_as_recommendations_are(recommender, model, tokenizer):
    everything = items_of(recommender.similar(["c"], top_k=20))[0]
    stock = pd.DataFrame({"item": [*ITEMS], "in_stock": [item in "abcd" for item in ITEMS]})
    filters = {"where": {"in_stock": True}, "attributes": stock}
    for options, kept in (
        ({"allow": ["a", "d", "c"]}, "ad"),
        ({"deny": everything[:2]}, everything[2:]),
        (filters, "abd"),
        ({**filters, "deny": ["a"], "allow": ["a", "b", "h"]}, "b"),
    ):
        assert items_of(recommender.similar(["c"], top_k=20, **options))[0] == [it for it in everything if it in kept]
    filtered = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu", deny=everything[:1])
    assert items_of(filtered.similar(["c"], top_k=20))[0] == everything[1:]
    recommender.tokenizer.removed = everything[:1]
    assert items_of(recommender.similar(["c"], top_k=20))[0] == everything[1:]
    for option in ({"rerank": print}, {"batch_size": 2}):
        with pytest.raises(ValueError, match=r"Unknown option '.*'\. The options are top_k, .*, attributes\.$"):
            recommender.similar(["c"], **option)


def test_similar_items_need_known_items_and_leave_removed_ones_out(model, tokenizer):
    tokenizer.removed = ["b"]
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    assert len(recommender.similar(["c"], top_k=20)[0]) == 8
    assert "b" not in items_of(recommender.similar(["c"], top_k=20))[0]
    assert recommender.similar([]) == []
    with pytest.raises(ValueError, match="items: the model has no item 'x'"):
        recommender.similar(["a", "x"])
    with pytest.raises(ValueError, match="items: expected a list, found str 'a'"):
        recommender.similar("a")
    with pytest.raises(ValueError, match="`top_k` must be a whole number of at least 1, found 0"):
        recommender.similar(["a"], top_k=0)


@pytest.mark.parametrize("build", [usearch_index, faiss_index, dataset_index])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1}, {"top_k": 2}, {"top_k": 50}, {"top_k": 1, "exclude_history": False},
        {"top_k": 2, "deny": list("acdefgh")}, {"top_k": 3, "allow": ["j", "b", "b", "c", "x"]},
    ],
)  # fmt: skip
def test_an_index_gives_the_items_of_the_model(recommender, build, options):
    expected = recommender(HISTORIES, **options)
    for vectors in (recommender.item_vectors(), recommender.index_vectors()):
        answers = recommender(HISTORIES, index=build(vectors), **options)
        assert items_of(answers) == items_of(expected)
    logits = recommender.encode(HISTORIES) @ recommender.item_vectors().T
    for row, answer in zip(logits, answers, strict=True):
        assert [found["score"] for found in answer] == pytest.approx(
            [row[ITEMS.index(found["item"])] for found in answer], abs=1e-4
        )


def test_more_candidates_are_taken_if_too_few_are_left(recommender):
    """`LostIndex` finds j, i and h first, then g, f and so on."""
    assert items_of(recommender([["a"]], top_k=1, index=LostIndex()))[0][0] in "jih"
    nobody = items_of(recommender([[]], top_k=2))  # for a user without items, what the index finds is not used
    assert items_of(recommender([[]], top_k=2, index=LostIndex())) == nobody
    answers = recommender([[], ["g"]], top_k=1, deny=list("jihb"), index=LostIndex())
    assert items_of(answers) == items_of(recommender([[], ["g"]], top_k=1, deny=list("jihb")))


def test_removed_items_are_not_taken_from_an_index(model, tokenizer):
    tokenizer.removed = list("abcdefgh")
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    answers = recommender([[], ["i"]], top_k=1, index=faiss_index(recommender.item_vectors()))
    assert answers[1][0]["item"] == "j"
    assert items_of(answers) == items_of(recommender([[], ["i"]], top_k=1))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (faiss_index(np.ones((3, 13), np.float32)), "`index` has 3 vectors, but the model has 10 items"),
        (faiss_index(np.ones((10, 15), np.float32)), "`index` have 15 numbers, but those of .* have 14"),
        (
            dataset_index(np.ones((10, 14), np.float32)).add_faiss_index("vector", index_name="other"),
            "with one FAISS index, found 2. Remove the others with `drop_index`",
        ),
        (Dataset.from_dict({"vector": [[1.0]]}), "with one FAISS index, found 0. Call `add_faiss_index`"),
        ([1, 2], "`index` must be a usearch or FAISS index, or a `Dataset` with a FAISS index, found list"),
    ],
)
def test_another_index_is_refused(recommender, index, message):
    with pytest.raises(ValueError, match=message):
        recommender([["a"]], index=index)  # all items are ranked, without a search


@pytest.mark.parametrize("first", [3, 1000, -2])
def test_an_index_with_other_keys_is_refused(recommender, first):
    vectors, keys = recommender.index_vectors(), np.arange(first, first + len(ITEMS))
    id_map = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    id_map.add_with_ids(vectors, keys)
    clusters = faiss.index_factory(vectors.shape[1], "IVF1,Flat", faiss.METRIC_INNER_PRODUCT)
    clusters.train(vectors)
    clusters.add_with_ids(vectors, keys)
    indexes = [id_map, clusters]
    if first > 0:  # usearch has unsigned keys
        indexes.append(Index(ndim=vectors.shape[1], metric="ip", dtype="f32"))
        indexes[-1].add(keys, vectors)
    message = r"`index`: expected the keys 0 ... 9, the row numbers of `index_vectors\(\)`, found -?\d+"
    for index in indexes:
        with pytest.raises(ValueError, match=message):
            recommender([["a", "b"]], top_k=2, index=index)


def test_an_index_of_other_vectors_is_refused():
    def new(seed):
        torch.manual_seed(seed)
        model = Bert4RecForMaskedLM(small_config(vocab_size=1503)).eval()
        tokenizer = item_tokenizer(range(1500), max_length=model.config.max_position_embeddings)
        return NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")

    recommender, histories = new(0), [["1", "2"], ["3"], []]
    vectors = recommender.index_vectors()
    expected = items_of(recommender(histories, top_k=5))
    for build in (usearch_index, faiss_index):
        assert items_of(recommender(histories, top_k=5, index=build(vectors))) == expected
        for others in (vectors[::-1].copy(), np.roll(vectors, 1, axis=0), new(1).index_vectors()):
            with pytest.raises(ValueError, match="`index` has the vectors of another model, or other keys"):
                recommender(histories, top_k=5, index=build(others))


def test_an_index_may_have_its_keys_in_any_order(recommender):
    vectors, keys = recommender.index_vectors(), np.arange(len(ITEMS))[::-1].copy()
    index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    index.add_with_ids(vectors[keys], keys)
    other = Index(ndim=vectors.shape[1], metric="ip", dtype="f32")
    other.add(keys, vectors[keys])
    expected = items_of(recommender(HISTORIES, top_k=2))
    assert items_of(recommender(HISTORIES, top_k=2, index=index)) == expected
    assert items_of(recommender(HISTORIES, top_k=2, index=other)) == expected


def test_damaged_weights_are_an_error_with_an_index_too(recommender):
    index = faiss_index(recommender.item_vectors())
    with torch.no_grad():
        recommender.model.model.embeddings.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores are NaN or infinite"):
        recommender([["a"]], top_k=1, index=index)
    with pytest.raises(ValueError, match="scores are NaN or infinite"):
        recommender.encode([["a"]])
    assert recommender.similar(["a"], top_k=1)
    with torch.no_grad():
        recommender.model.get_input_embeddings().weight[-1] = torch.nan
    with pytest.raises(ValueError, match="scores are NaN or infinite"):
        recommender.similar(["a"], top_k=1)
