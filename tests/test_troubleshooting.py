"""The messages of docs/troubleshooting.md are those that the package writes."""

import logging
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset

import hf_bert4rec
from hf_bert4rec import (
    Bert4RecConfig,
    Bert4RecForMaskedLM,
    RecommendationTrainer,
    RecommendationTrainingArguments,
    before,
    cloze_training,
    item_tokenizer,
    leave_one_out,
    load_interactions,
    push_checkpoint,
    split_at_time,
    target_ranks,
    transfer,
)
from hf_bert4rec.cli.main import main
from hf_bert4rec.evaluation.baselines import BASELINES
from hf_bert4rec.training.resources import MemoryEstimate, check_memory, warn_about_spinning_threads
from tests.conftest import small_config
from tests.hub_server import OWNER

PAGE = Path(__file__).parents[1].joinpath("docs", "troubleshooting.md").read_text(encoding="utf-8")


def read(text: str | bytes, name: str = "log.csv", **options):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_interactions(name, **options)


def reading_faults():
    yield lambda: load_interactions("rating.csv")
    yield lambda: read("a,b,timestamp\n1,2,3\n")
    yield lambda: read("userId movieId timestamp\n1 2 3\n")
    yield lambda: read("user,item,product_id,timestamp\n1,2,3,4\n", item=None)
    yield lambda: read("user,product_id,article_id,timestamp\n1,2,3,4\n")
    yield lambda: read("user,item,timestamp\n1,2,3\n1,2\n")
    yield lambda: read("user,item,timestamp\n1,Caf\xe9,3\n".encode("latin-1"))
    yield lambda: read(b"PK\x03\x04" + b"xl/" * 10, "log.xlsx")
    yield lambda: read("user,item,timestamp\n1,2,3\n", "log.log")
    yield lambda: read("user,item,timestamp\n1,2,01/02/2026\n1,3,02/02/2026\n")
    yield lambda: read("user,item,timestamp\n1,2 3 4,5\n2,3 4 5,6\n")
    yield lambda: read("user,item,timestamp\n1,2,3\n", min_user_interactions=5)
    yield lambda: read("user,item,timestamp\n1, 2,3\n1,2,4\n")
    yield lambda: read("user,item,timestamp\n1,2.0,3\n1,3.0,4\n")
    yield lambda: item_tokenizer(["a b", "a\u00a0b"])
    yield lambda: read("ann;tea;4,5;01.02.2024\nbob;tea;4,0;02.02.2024\n")
    yield lambda: read("session_id,item,timestamp\n1,2,3\n1,4,4\n")
    yield lambda: read("user,item,date\n1,2,2024.10\n1,4,2024.9\n")
    yield lambda: read("user,item,date,view_time\n1,2,2024-01-02,120\n")
    yield lambda: read('user,item,timestamp\n1,"S1,S2",3\n1,"S2,S1",4\n')
    yield lambda: read("ann tea, cup, pot\nbob tea, cup\n", "log.txt")
    yield lambda: read("user,item,timestamp\n1,2,1.70E+12\n1,3,1.71E+12\n")
    yield lambda: read("user,item\n1,2\n")
    yield lambda: item_tokenizer(["[MASK]"])
    yield lambda: item_tokenizer(["1"], titles={"other": "Title"})


def split_faults():
    log, tokenizer = load_interactions("ratings.csv"), item_tokenizer(load_interactions("ratings.csv"))
    past = item_tokenizer(before(log, "2030-01-01"))
    yield lambda: leave_one_out(read("user,item,timestamp\n1,2,3\n"), item_tokenizer(["2"]))
    yield lambda: split_at_time(log, tokenizer, validation_time="1998-01-01", test_time="1999-01-01")
    yield lambda: split_at_time(log, past, validation_time="2030-01-01", test_time="2031-01-01")
    last = max(log["timestamp"])
    yield lambda: split_at_time(log, tokenizer, validation_time=last - 0.5, test_time=last)
    yield train_with_repeats
    yield lambda: target_ranks(torch.full((1, 9), torch.nan), torch.tensor([4]))
    yield lambda: BASELINES["item_neighbors"](leave_one_out(log, tokenizer, max_length=999)["train"], len(tokenizer))


def train_with_repeats():
    rows = [(f"u{user}", item, time) for user in range(4) for time, item in enumerate("abcda")]
    users, items, times = zip(*rows, strict=True)
    tokenizer = item_tokenizer(list("abcdefghijklm"), max_length=11)
    rows = leave_one_out(Dataset.from_dict({"user": users, "item": items, "timestamp": times}), tokenizer)["test"]
    model, args = Bert4RecForMaskedLM(small_config(len(tokenizer))), RecommendationTrainingArguments("runs")
    RecommendationTrainer(model, args, eval_dataset=rows, **cloze_training(tokenizer))


def train(*words):
    main(["train", "--data", "ratings.csv", "--output_dir", "runs/again", "--num_train_epochs", "2", *words])


def training_faults():
    yield lambda: train("--learnin_rate", "1")
    yield lambda: train("--fp16", "true")
    yield lambda: train("--output_dir", "runs/mine", "--resume_from_checkpoint", "true")
    yield interrupt_a_run
    yield train
    yield lambda: train("--seed", "7", "--resume_from_checkpoint", "true")
    yield resume_with_other_data
    yield lambda: RecommendationTrainer(Bert4RecForMaskedLM(small_config()))
    yield lambda: Bert4RecConfig(vocab_size=20, loss="sampled_softmax", num_negatives=99)
    yield lambda: Bert4RecConfig(hidden_size=33)
    yield lambda: check_memory(MemoryEstimate(1e6, 0, 0, 0, 0, ""))
    yield warn_about_spinning_threads


def interrupt_a_run():
    def interrupt(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_bert4rec.cli.run.save_checkpoint", interrupt)
        train()


def resume_with_other_data():
    lines = Path("ratings.csv").read_text().splitlines(keepends=True)
    Path("ratings.csv").write_text("".join(lines[:-1]))
    train("--resume_from_checkpoint", "true")


def checkpoint_faults(hub):
    recommender = hf_bert4rec.pipeline("runs/mine/model")
    yield lambda: hf_bert4rec.pipeline("runs/mine")
    yield lambda: hf_bert4rec.pipeline("runs/nothing/model")
    yield lambda: hf_bert4rec.pipeline(f"{OWNER}/nothing")
    yield lambda: load_what_is_cut_off("model.safetensors", 1000)
    yield lambda: load_what_is_cut_off("config.json", 10)
    yield load_another_tokenizer
    yield lambda: transfer(recommender.model, recommender.tokenizer, item_tokenizer(["other"]))
    yield lambda: push_where_data_is(hub)
    yield lambda: push_checkpoint("runs/mine/model", "somebody/else")
    yield lambda: recommender(["260", "1196"])
    yield lambda: recommender([["nothing", "260"]])
    yield lambda: recommender([["260"]], topk=3)
    films = pd.DataFrame({"item": ["260"], "year": [1977]})
    yield lambda: recommender([["260"]], attributes=films, where={"genre": "x"})
    yield lambda: recommender([["260"]], attributes=films.assign(item="0260"), where={"year": 1977})
    yield lambda: recommender([["260"]], attributes=films, where={"year": "1977"})
    yield lambda: recommender([["260"]], rerank=lambda candidates: [0, 0])
    yield lambda: recommender([["260"]], rerank=hf_bert4rec.at_most)
    yield lambda: recommender([["260"]], attributes=films, where={"year": lambda year: year[5000] > 1990})
    yield lambda: recommender([["260"]], attributes=films, where={"year": 1977})
    yield lambda: fill_with_a_model_of_last_items(recommender)
    yield lambda: save_below_a_card_of_ones_own(recommender)
    yield lambda: recommend_with_damaged_weights(recommender)


def load_what_is_cut_off(name, missing):
    folder = Path("runs", f"cut-{name}")
    shutil.copytree("runs/mine/model", folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-missing])
    hf_bert4rec.pipeline(folder)


def load_another_tokenizer():
    shutil.copytree("runs/mine/model", "runs/mixed")
    item_tokenizer(["1", "2"]).save_pretrained("runs/mixed")
    hf_bert4rec.pipeline("runs/mixed")


def push_where_data_is(hub):
    push_checkpoint("runs/mine/model", f"{OWNER}/taken")
    hub.repositories[f"{OWNER}/taken"].commits.append({"data.csv": b"1"})
    push_checkpoint("runs/mine/model", f"{OWNER}/taken")


def save_below_a_card_of_ones_own(recommender):
    Path("runs/mine/model/README.md").write_text("Mine")
    args = RecommendationTrainingArguments("runs/mine/model", eval_strategy="no")
    RecommendationTrainer(recommender.model, args, **cloze_training(recommender.tokenizer)).save_model()


def fill_with_a_model_of_last_items(recommender):
    recommender.gap_warning_due = True
    recommender.fill([[None]])


def recommend_with_damaged_weights(recommender):
    with torch.no_grad():
        recommender.model.lm_head.bias.fill_(float("nan"))
    recommender([["260"]])


@pytest.fixture
def messages(film_folder, hub, monkeypatch, caplog):
    """All errors and log lines of the faults above."""
    caplog.set_level("INFO", "hf_bert4rec")
    warn_about_spinning_threads.cache_clear()
    logging.Logger.warning_once.cache_clear()
    monkeypatch.setitem(sys.modules, "implicit.nearest_neighbours", None)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = []
    for fault in (*reading_faults(), *split_faults(), *training_faults(), *checkpoint_faults(hub)):
        try:
            fault()
        except (Exception, SystemExit) as error:
            found.append(str(error))
    return [*found, *caplog.messages]


def test_the_messages_of_the_page_are_those_of_the_package(messages):
    shown = [cell.strip("` ") for cell in re.findall(r"^\| (`.+?`+) \|", PAGE, re.MULTILINE)]
    assert len(shown) > 40
    written = "\n".join(messages)
    patterns = {text: ".*".join(map(re.escape, text.split("…"))) for text in shown}
    assert [text for text, pattern in patterns.items() if not re.search(pattern, written)] == []
