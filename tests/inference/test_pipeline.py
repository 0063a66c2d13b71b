"""The recommendation pipeline: loading, and answers compared with brute force over the logits of the model."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import hf_bert4rec
from hf_bert4rec import Bert4RecConfig, Bert4RecForMaskedLM, NextItemRecommendationPipeline, item_tokenizer
from hf_bert4rec.evaluation.ranking import stable_top_k
from tests.conftest import small_config
from tests.inference.conftest import items_of, scores_of

ITEMS = "abcdefghij"
MASK, FIRST_ITEM = 1, 3
LOGGER = "hf_bert4rec.inference.answers"
HISTORIES = [["a", "b"], [], ["c"], list("abcdefg"), ["j", "j", "d"], ["e", "f", "g", "h"], ["b", "a"]]


@torch.no_grad()
def probabilities(model: Bert4RecForMaskedLM, history: list[str]) -> dict[str, float]:
    """Probability of each item after the newest four of the history, for one user, without padding."""
    rows = [FIRST_ITEM + ITEMS.index(item) for item in history][-4:]
    logits = model(torch.tensor([[*rows, MASK]])).logits[0, -1, FIRST_ITEM:]
    return dict(zip(ITEMS, logits.softmax(dim=0).tolist(), strict=True))


def level(model: Bert4RecForMaskedLM) -> Bert4RecForMaskedLM:
    """The model with the same logit for every item."""
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
    return model


# ---- the answer ------------------------------------------------------------------------------------------------------


def test_the_answer_is_a_list_of_items_with_title_and_score_for_each_history(recommender):
    answers = recommender([["c"], ["d", "e"]], top_k=9)
    assert isinstance(answers, list)
    assert [len(answered) for answered in answers] == [9, 8]
    for answered in answers:
        for answer in answered:
            assert list(answer) == ["item", "title", "score"]
            assert answer["title"] == {"a": "Alpha", "b": "Beta"}.get(answer["item"])
            assert type(answer["item"]) is str
            assert type(answer["score"]) is float
        assert [answer["score"] for answer in answered] == sorted(scores_of([answered]), reverse=True)
    assert json.loads(json.dumps(answers)) == answers


def test_the_answer_is_that_of_brute_force(recommender, model):
    for history, answered in zip(HISTORIES, recommender(HISTORIES), strict=True):
        expected = {item: score for item, score in probabilities(model, history).items() if item not in history}
        assert items_of([answered]) == [sorted(expected, key=expected.get, reverse=True)]
        assert scores_of([answered]) == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-5)


def test_scores_are_probabilities_over_the_whole_catalog(recommender, model):
    (answered,) = recommender([["a", "b"]], exclude_history=False, top_k=10)
    assert {answer["item"] for answer in answered} == set(ITEMS)
    assert sum(scores_of([answered])) == pytest.approx(1, abs=1e-5)
    fewer = recommender([["a", "b"]], top_k=3, deny=["c"])
    expected = probabilities(model, ["a", "b"])
    assert scores_of(fewer) == pytest.approx([expected[item] for item in items_of(fewer)[0]], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_the_answer_does_not_depend_on_the_batch(recommender, batch_size):
    expected = recommender(HISTORIES)
    order = [3, 0, 6, 1, 5, 2, 4]
    for answers in (
        recommender(HISTORIES, batch_size=batch_size),
        [
            dict(zip(order, recommender([HISTORIES[i] for i in order], batch_size=batch_size), strict=True))[i]
            for i in range(7)
        ],
        [recommender([history], batch_size=batch_size)[0] for history in HISTORIES],
    ):
        assert items_of(answers) == items_of(expected)
        assert scores_of(answers) == pytest.approx(scores_of(expected), abs=1e-5)


def test_threads_may_share_a_pipeline(recommender):
    histories = HISTORIES * 20
    expected = [recommender([history]) for history in histories]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda history: recommender([history]), histories)) == expected


def test_a_model_in_training_mode_answers_without_dropout_and_stays_in_its_mode(recommender):
    model = recommender.model
    uses = [
        lambda: recommender(HISTORIES),
        lambda: recommender.fill([["a", None, "b"]]),
        lambda: recommender.surprise(HISTORIES),
        lambda: recommender.explain(["a", "b"], "c"),
        lambda: recommender.encode(HISTORIES).tolist(),
        lambda: recommender.similar(["a"]),
    ]
    expected = [use() for use in uses]
    model.train()
    model.model.embeddings.eval()  # a part that somebody froze
    modes = [module.training for module in model.modules()]
    inputs = torch.tensor([[FIRST_ITEM, MASK]])
    assert not torch.equal(model(inputs).logits, model(inputs).logits)  # dropout is active
    assert [use() for use in uses] == expected
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        model.model.embeddings.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="scores are NaN"):
        recommender([["a"]])
    assert [module.training for module in model.modules()] == modes


def test_changes_of_the_removed_items_apply_from_the_next_call_on(recommender, caplog):
    tokenizer = recommender.tokenizer
    best = items_of(recommender([["a"]]))[0]
    rank = recommender.surprise([["a", best[-1]]])[0][1]["rank"]
    tokenizer.removed = [best[0]]
    assert items_of(recommender([["a"]], allow=best)) == [best[1:]]
    assert items_of(recommender.fill([["a", None]], exclude_history=True)[0]) == [best[1:]]
    assert recommender.surprise([["a", best[-1]]])[0][1]["rank"] == rank - 1
    assert best[0] not in items_of(recommender.similar(["a"], top_k=20))[0]
    tokenizer.removed.append(best[1])
    answers = recommender([["a"]])
    assert items_of(answers) == [best[2:]]
    assert answers[0].reason == (
        "Found 7 of 10 wanted items. Excluded from the 10 items of the catalog: 2 removed, 1 in the history."
    )
    tokenizer.removed = []
    assert items_of(recommender([["a"]])) == [best]
    assert not caplog.messages


def test_unknown_removed_items_are_named_once_and_change_nothing(model, tokenizer, caplog):
    tokenizer.removed = ["c", "typo", "[PAD]"]
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    warning = "Correct `tokenizer.removed`: 2 of its 3 IDs are unknown and skipped, such as '[PAD]', 'typo'."
    assert [record.message for record in caplog.records if record.name == LOGGER] == [warning]
    caplog.clear()
    assert sorted(items_of(recommender([[]]))[0]) == [*"abdefghij"]
    assert sorted(items_of(recommender.similar(["a"], top_k=20))[0]) == [*"bdefghij"]  # with the last one
    assert not caplog.messages


def test_items_that_are_added_to_the_tokenizer_need_a_new_recommender(recommender):
    recommender.tokenizer.add_tokens(["k"])
    message = (
        "had 13 tokens when the recommender was built, and has 14 now. Build a new recommender after you add items"
    )
    for use in (recommender, recommender.encode, recommender.surprise, recommender.fill):
        with pytest.raises(ValueError, match=message):
            use([["a", "k"]])
    with pytest.raises(ValueError, match=message):
        recommender.similar(["k"])
    recommender.model.resize_token_embeddings(14)
    new = NextItemRecommendationPipeline(model=recommender.model, tokenizer=recommender.tokenizer, device="cpu")
    assert sorted(items_of(new([["a"]], top_k=20))[0]) == [*"bcdefghijk"]


def test_the_order_of_a_history_matters(recommender):
    one, other = recommender([["a", "b"], ["b", "a"]])
    assert scores_of([one]) != pytest.approx(scores_of([other]), abs=1e-4)


def test_no_history_gives_no_answer(recommender):
    assert recommender([]) == []


# ---- histories -------------------------------------------------------------------------------------------------------


def test_the_history_is_excluded_by_default(recommender):
    assert not {"a", "b"} & set(items_of(recommender([["a", "b"]]))[0])
    assert set(items_of(recommender([["a", "b"]], exclude_history=False))[0]) == set(ITEMS)


def test_all_of_a_history_is_excluded_although_only_the_newest_items_are_read(recommender):
    (answered,) = recommender([list("abcdefghi")])
    assert items_of([answered]) == [["j"]]


def test_only_the_newest_items_of_a_long_history_are_read(recommender, model):
    long, short = recommender([list("ghiabcd"), list("abcd")], exclude_history=False)
    assert items_of([long]) == items_of([short])
    assert scores_of([long]) == pytest.approx(scores_of([short]), abs=1e-5)
    by_item = {answer["item"]: answer["score"] for answer in long}
    assert by_item == pytest.approx(probabilities(model, list("abcd")), abs=1e-5)


def test_unknown_ids_are_skipped_and_reported_once(recommender, caplog):
    with caplog.at_level(logging.WARNING, LOGGER):
        answers = recommender([["a", "x1", "b"], ["[PAD]", "c"], ["[MASK]"], ["d"]], batch_size=1)
    assert answers == recommender([["a", "b"], ["c"], [], ["d"]], batch_size=1)
    (record,) = caplog.records
    assert record.name == LOGGER
    assert record.getMessage() == ("histories: 3 of 7 IDs are unknown and skipped, such as 'x1', '[PAD]', '[MASK]'.")


def test_known_ids_are_not_reported(recommender, caplog):
    with caplog.at_level(logging.INFO, LOGGER):
        recommender(HISTORIES, allow=["a"], deny=["b"])
    assert caplog.records == []


def test_unknown_ids_only_and_an_empty_history_return_the_unconditional_recommendations(recommender, model):
    unknown, empty = recommender([["x", "y"], []])
    assert items_of([unknown]) == items_of([empty])
    assert scores_of([unknown]) == pytest.approx(scores_of([empty]), abs=1e-5)
    assert {answer["item"]: answer["score"] for answer in empty} == pytest.approx(probabilities(model, []), abs=1e-5)


# ---- which items may be recommended ----------------------------------------------------------------------------------


def test_only_allowed_items_are_recommended(recommender, caplog):
    full = {answer["item"]: answer["score"] for answer in recommender([["a"]])[0]}
    with caplog.at_level(logging.WARNING, LOGGER):
        (answered,) = recommender([["a"]], allow=["c", "a", "zz", "e", "[UNK]"])
    assert {answer["item"]: answer["score"] for answer in answered} == {item: full[item] for item in "ce"}
    assert "allow: 2 of 5 IDs are unknown" in caplog.text


def test_denied_items_are_not_recommended(recommender, caplog):
    with caplog.at_level(logging.WARNING, LOGGER):
        (answered,) = recommender([["a"]], deny=["c", "zz"])
    assert {answer["item"] for answer in answered} == set("bdefghij")
    assert "deny: 1 of 2 IDs are unknown" in caplog.text


def test_allowed_and_denied_items_may_be_generators(recommender):
    for given_ids in ({"allow": "cde"}, {"deny": "abc"}):
        ((name, ids),) = given_ids.items()
        expected = recommender(HISTORIES, batch_size=2, **{name: list(ids)})
        assert recommender(HISTORIES, batch_size=2, **{name: (item for item in ids)}) == expected


# ---- ties ------------------------------------------------------------------------------------------------------------


def test_equal_scores_are_in_the_order_of_the_item_table(model, tokenizer):
    recommender = NextItemRecommendationPipeline(model=level(model), tokenizer=tokenizer, device="cpu")
    answers = recommender([["b"], [], ["a", "d"]], top_k=3)
    assert items_of(answers) == [["a", "c", "d"], ["a", "b", "c"], ["b", "c", "e"]]
    assert scores_of(answers) == pytest.approx([0.1] * 9)


numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, -2.5]), st.floats(width=32, allow_nan=False), st.just(float("-inf"))
)
tables = st.integers(1, 12).flatmap(
    lambda columns: st.lists(st.lists(numbers, min_size=columns, max_size=columns), min_size=1, max_size=4)
)


@given(tables, st.data())
def test_top_k_is_sorted_by_score_then_place(table, data):
    k = data.draw(st.integers(1, len(table[0])))
    values, places = stable_top_k(torch.tensor(table), k)
    expected = [sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k] for row in table]
    assert places.tolist() == expected
    assert values.tolist() == [[row[i] for i in chosen] for row, chosen in zip(table, expected, strict=True)]


def test_top_k_of_more_rows_than_a_small_integer_counts():
    scores = torch.zeros(1, 70_000)
    scores[0, 69_999] = 1
    assert stable_top_k(scores, 3)[1].tolist() == [[69_999, 0, 1]]


# ---- arguments and loading -------------------------------------------------------------------------------------------


def test_defaults_of_a_call_are_given_on_construction(folder):
    recommender = hf_bert4rec.pipeline(
        folder, device="cpu", top_k=3, exclude_history=False, allow=list("abcd"), batch_size=2
    )
    answers = recommender(HISTORIES)
    assert [len(answered) for answered in answers] == [3] * 7
    assert set().union(*items_of(answers)) <= set("abcd")
    assert {"a", "b"} & set(items_of(answers)[0])
    (short,) = recommender([["h"]], allow=list("abz"), exclude_history=True)
    assert short.reason == (
        "Found 2 of 3 wanted items. Excluded from the 10 items of the catalog: 1 in the history, 7 not in `allow`."
    )
    (short,) = recommender([["h"]], allow=list("abg"), exclude_history=True)
    assert short.reason.endswith("1 in the history, 6 not in `allow`, 1 by `allow` of the pipeline.")
    assert [len(answered) for answered in recommender(HISTORIES, top_k=1)] == [1] * 7
    assert items_of(recommender(HISTORIES)) == items_of(answers)


def test_ten_items_are_recommended_by_default(tmp_path):
    Bert4RecForMaskedLM(small_config(29, 5)).save_pretrained(tmp_path)
    item_tokenizer([str(item) for item in range(26)], max_length=5).save_pretrained(tmp_path)
    (answered,) = hf_bert4rec.pipeline(tmp_path, device="cpu")([["1"]])
    assert [answer["title"] for answer in answered] == [None] * 10


def test_the_task_is_registered_with_transformers(folder, recommender):
    stock = transformers.pipeline("next-item-recommendation", model=folder, device="cpu")
    assert type(stock) is NextItemRecommendationPipeline
    assert stock(HISTORIES) == recommender(HISTORIES)


def test_the_model_is_put_into_evaluation_mode(model, tokenizer):
    recommender = NextItemRecommendationPipeline(model=model.train(), tokenizer=tokenizer, device="cpu")
    assert recommender([["a", "b"]]) == recommender([["a", "b"]])


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_folder_without_one_of_the_files_is_refused(folder, tmp_path, missing):
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"found no {missing}. Save or push"):
        hf_bert4rec.pipeline(folder, device="cpu")


def test_model_and_tokenizer_of_different_catalogs_are_refused(folder, tmp_path):
    item_tokenizer(list("abc"), max_length=5).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model has 13 rows in its item table, the tokenizer has 6 tokens"):
        hf_bert4rec.pipeline(folder, device="cpu")


def test_a_tokenizer_with_longer_inputs_than_the_model_is_refused(folder, tmp_path):
    item_tokenizer(list(ITEMS), max_length=6).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"from 2 to 5 .* of the model\), found 6"):
        hf_bert4rec.pipeline(folder, device="cpu")


def test_another_kind_of_tokenizer_is_refused(model, tokenizer):
    stock = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="Expected an ItemTokenizer, found"):
        NextItemRecommendationPipeline(model=model, tokenizer=stock, device="cpu")


def test_a_saved_pipeline_needs_no_remote_code_and_loads_again(recommender, tmp_path):
    expected = recommender(HISTORIES)
    again = tmp_path / "again"
    recommender.save_pretrained(again)
    assert "custom_pipelines" not in json.loads((again / "config.json").read_text())
    assert hf_bert4rec.pipeline(again, device="cpu")(HISTORIES) == expected


@pytest.mark.parametrize("place", ["nothing", "./nothing", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused_without_asking_the_hub(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        hf_bert4rec.pipeline(place)


def test_a_folder_does_not_shadow_the_repositories_of_an_owner_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "alice").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConnectionError, match="alice/mine: found neither such a folder nor a complete copy in the cache"
    ):
        hf_bert4rec.pipeline("alice/mine")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", [50, 200])
@pytest.mark.parametrize("settings", [{}, {"rope_theta": 200, "conv_kernel_size": 3, "prediction_head": False}])
def test_near_ties_are_in_the_same_order_in_any_batch(threads, length, settings):
    items = [str(i) for i in range(3000)]
    tokenizer = item_tokenizer(items, max_length=length)
    torch.manual_seed(0)  # an untrained model: thousands of scores within a thousandth
    config = Bert4RecConfig(vocab_size=len(tokenizer), max_position_embeddings=length, **settings)
    recommender = NextItemRecommendationPipeline(model=Bert4RecForMaskedLM(config), tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 220, (60,), generator=generator).tolist()
    histories = [[items[i] for i in torch.randint(3000, (n,), generator=generator)] for n in lengths]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        expected = recommender(histories, top_k=50)
        for batch_size in (1, 7, 60):
            answers = recommender(histories[::-1], top_k=50, batch_size=batch_size)[::-1]
            assert items_of(answers) == items_of(expected)
            assert scores_of(answers) == pytest.approx(scores_of(expected), rel=1e-5)
    finally:
        torch.set_num_threads(before)


def test_no_more_scores_than_a_quarter_of_a_gigabyte_are_held_at_a_time(recommender, monkeypatch):
    monkeypatch.setattr("hf_bert4rec.inference.answers.MAX_SCORES", 2 * 13)  # two rows of the catalog
    sizes = []
    recommender.model.lm_head.register_forward_hook(lambda module, args, scores: sizes.append(len(scores)))
    monkeypatch.setattr("hf_bert4rec.inference.scoring.MIN_ROWS", 1)
    assert items_of(recommender(HISTORIES, batch_size=100)) == items_of(recommender(HISTORIES, batch_size=1))
    assert max(sizes) == 2


def test_a_pipeline_warns_about_spinning_threads_and_leaves_the_allocator_alone(model, tokenizer, monkeypatch):
    calls = []
    monkeypatch.setattr("hf_bert4rec.inference.pipeline.warn_about_spinning_threads", lambda: calls.append("threads"))
    monkeypatch.setattr("hf_bert4rec.training.resources.ctypes.CDLL", lambda name: pytest.fail("malloc settings"))
    NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")([["a"]])
    assert calls == ["threads"]


@pytest.mark.parametrize("excluded", [True, False])
def test_the_history_is_excluded_as_in_the_evaluation_of_the_model(model, tokenizer, tmp_path, excluded):
    model.config.exclude_history = excluded
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    recommender = hf_bert4rec.pipeline(tmp_path, device="cpu")
    assert recommender([["a", "b"]]) == recommender([["a", "b"]], exclude_history=excluded)
    assert len(recommender([["a", "b"]])[0]) == (8 if excluded else 10)
    assert len(recommender([["a", "b"]], exclude_history=not excluded)[0]) == (10 if excluded else 8)


def test_an_added_token_is_recommended_once_the_model_is_resized(model, tokenizer, tmp_path):
    tokenizer.add_tokens(["new"])
    model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        model.lm_head.bias[-1] = 50
    recommender = NextItemRecommendationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    (answer,) = recommender([["a"]], top_k=1)[0]
    assert answer == {"item": "new", "title": None, "score": pytest.approx(1)}
    assert "new" not in items_of(recommender([["new"]], top_k=20))[0]
    recommender.save_pretrained(tmp_path)
    again = hf_bert4rec.pipeline(tmp_path, device="cpu")
    assert again([["new", "a"]], top_k=20) == recommender([["new", "a"]], top_k=20)


def test_a_model_that_returns_tuples_recommends_too(folder):
    recommender = hf_bert4rec.pipeline(folder, device="cpu")
    expected = recommender([["a"]])
    recommender.model.config.return_dict = False
    assert recommender([["a"]]) == expected
