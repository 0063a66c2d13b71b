"""Recommendations for all users of a file: shards, several processes, and a kill in between."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hf_bert4rec
from hf_bert4rec.cli.main import READING, main
from hf_bert4rec.inference import batch
from hf_bert4rec.inference.batch import BatchRecommender, recommend_to_parquet
from hf_bert4rec.inference.export import export_checkpoint
from tests.inference.test_export import checkpoint
from tests.inference.test_pipeline import ITEMS
from tests.processes import started, wait_until

USERS = 50


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("batch") / "model", "bert4rec")


@pytest.fixture
def histories(tmp_path):
    """Users 0 to 49 as numbers; the first one has an empty history, the second one none."""
    draw = random.Random(0)
    rows = [[draw.choice(ITEMS) for _ in range(draw.randint(1, 7))] for _ in range(USERS)]
    table = pa.table({"user": range(USERS), "history": [[], None, *rows[2:]]})
    pq.write_table(table, tmp_path / "histories.parquet", row_group_size=9)
    return tmp_path / "histories.parquet"


def expected_rows(source, file, **options):
    """One row (user, rank, item) per recommendation, by the pipeline."""
    table = pq.read_table(file).to_pydict()
    answers = hf_bert4rec.pipeline(source, device="cpu")([history or [] for history in table["history"]], **options)
    return [
        (user, rank, row["item"])
        for user, answer in zip(table["user"], answers, strict=True)
        for rank, row in enumerate(answer, start=1)
    ]


def rows_of(folder):
    table = pq.read_table(folder).to_pydict()
    return sorted(zip(table["user"], table["rank"], table["item"], strict=True))


@pytest.mark.parametrize("processes", [1, 2])
def test_each_user_gets_the_items_of_the_pipeline_once(source, histories, tmp_path, processes):
    folder = recommend_to_parquet(
        source, histories, tmp_path / "out", processes=processes, shard_size=8, top_k=3, deny=["a"]
    )
    assert rows_of(folder) == expected_rows(source, histories, top_k=3, deny=["a"])
    users = [set(pq.read_table(path)["user"].to_pylist()) for path in sorted(folder.glob("part-*"))]
    assert users == [set(range(start, min(start + 8, USERS))) for start in range(0, USERS, 8)]
    assert pq.read_schema(folder / "part-00000.parquet").types == [pa.int64(), pa.int32(), pa.string(), pa.float32()]


def test_an_exported_checkpoint_gives_the_same(source, histories, tmp_path):
    exported = export_checkpoint(source, tmp_path / "onnx")
    folder = recommend_to_parquet(exported, histories, tmp_path / "out", shard_size=20)
    assert rows_of(folder) == expected_rows(source, histories)


def test_a_log_is_read_in_the_order_of_time(source, tmp_path):
    log = pd.DataFrame(
        [("u2", "a", 3), ("u1", "b", 2), ("u2", "c", 1), ("u1", "d", 2), ("u2", "e", 2)],
        columns=["user", "item", "timestamp"],
    )
    log.to_csv(tmp_path / "log.csv", index=False)
    folder = recommend_to_parquet(source, tmp_path / "log.csv", tmp_path / "out", top_k=2)
    pq.write_table(
        pa.table({"user": ["u1", "u2"], "history": [["b", "d"], ["c", "e", "a"]]}), tmp_path / "histories.parquet"
    )
    assert rows_of(folder) == expected_rows(source, tmp_path / "histories.parquet", top_k=2)


def test_the_same_call_continues_and_another_one_is_refused(source, histories, tmp_path, monkeypatch):
    folder = recommend_to_parquet(source, histories, tmp_path / "out", shard_size=8, top_k=3)
    complete, written = rows_of(folder), []
    (folder / "part-00002.parquet").unlink()
    (folder / "_part-00002.parquet.tmp").write_bytes(b"cut off")
    write = batch._write
    monkeypatch.setattr(batch, "_write", lambda path, *rest: written.append(path.name) or write(path, *rest))
    recommend_to_parquet(source, histories, tmp_path / "out", shard_size=8, top_k=3)
    assert written == ["part-00002.parquet"]
    assert rows_of(folder) == complete
    with pytest.raises(ValueError, match=r"started with another `top_k` \(then 3, now the default\)"):
        recommend_to_parquet(source, histories, tmp_path / "out", shard_size=8)
    with pytest.raises(ValueError, match="`top_k` must be a whole number"):
        recommend_to_parquet(source, histories, tmp_path / "new", top_k=0)
    with pytest.raises(ValueError, match=r"^`processes` must be a whole number of at least 1, found 0\.$"):
        recommend_to_parquet(source, histories, tmp_path / "new", processes=0)
    with pytest.raises(ValueError, match=r"Unknown option 'batch_size'\. The options are top_k, .*, deny, processes"):
        recommend_to_parquet(source, histories, tmp_path / "new", batch_size=8)
    assert not (tmp_path / "new").exists()
    for changes, name in (({"top_k": 4}, "top_k"), ({"shard_size": 9}, "shard_size")):
        with pytest.raises(ValueError, match=f"started with another `{name}`"):
            recommend_to_parquet(source, histories, tmp_path / "out", **{"shard_size": 8, "top_k": 3, **changes})
    with pytest.raises(ValueError, match=r"started with another `columns` \(then the default, now "):
        batch._begin(folder, json.loads((folder / batch.REQUEST_FILE).read_text()) | {"columns": {"user": "user"}})
    weights = source / "model.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)
    os.utime(weights, (0, 0))
    with pytest.raises(ValueError, match="started before the model changed"):
        recommend_to_parquet(source, histories, tmp_path / "out", shard_size=8, top_k=3)
    os.utime(weights, ns=times)
    pq.write_table(pq.read_table(histories), histories, row_group_size=3)
    with pytest.raises(ValueError, match="started before the source changed"):
        recommend_to_parquet(source, histories, tmp_path / "out", shard_size=8, top_k=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    for taken in (tmp_path / "other", histories):
        with pytest.raises(ValueError, match="a folder with other files than recommendations"):
            recommend_to_parquet(source, histories, taken)
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder\\. Pass a single file"):
        recommend_to_parquet(source, tmp_path, tmp_path / "recommendations")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet: found no such file\. Pass a Parquet file"):
        recommend_to_parquet(source, tmp_path / "nowhere.parquet", tmp_path / "new")
    with pytest.raises(ValueError, match=r"`source` must be the path of a file, found DataFrame\. Save the table as"):
        recommend_to_parquet(source, pd.DataFrame(), tmp_path / "new")


def test_a_killed_command_loses_and_doubles_no_user(source, histories, tmp_path):
    """Killed after the first files have appeared; the same command then finishes."""
    code = (
        "import sys; from hf_bert4rec.inference.batch import recommend_to_parquet\n"
        "if __name__ == '__main__': recommend_to_parquet(*sys.argv[1:], processes=2, shard_size=1, top_k=3)"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(source), str(histories), str(out)]
    with started(command, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: list(out.glob("part-00001*")), process)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert 0 < len([*out.glob("part-*")]) < USERS
        recommend_to_parquet(source, histories, out, shard_size=1, top_k=3)  # while its processes may still run
    assert rows_of(out) == expected_rows(source, histories, top_k=3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"user": ["u"], "history": ["a"]}, "'history', found string. Convert this column to lists"),
        (
            {"user": [None], "history": [["a"]]},
            "Expected a user ID in every row of the column 'user', found a row without",
        ),
        (
            {"user": [1.0, float("nan")], "history": [["a"], ["a"]]},
            "Expected a user ID in every row of the column 'user', found a row without",
        ),
        ({"person": ["u"], "history": [["a"]]}, "expected a column 'user', found person, history. Rename"),
    ],
)
def test_other_tables_are_refused(source, tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=message):
        recommend_to_parquet(source, tmp_path / "table.parquet", tmp_path / "out")


def test_a_run_that_failed_before_its_first_file_can_be_repeated_with_other_data(source, tmp_path):
    pq.write_table(pa.table({"user": ["u"], "history": [[None]]}), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="None"):
        recommend_to_parquet(source, tmp_path / "table.parquet", tmp_path / "out")
    pq.write_table(pa.table({"user": ["u"], "history": [["a"]]}), tmp_path / "table.parquet")
    folder = recommend_to_parquet(source, tmp_path / "table.parquet", tmp_path / "out")
    assert {row[0] for row in rows_of(folder)} == {"u"}


def test_a_damaged_request_asks_for_a_new_folder(source, histories, tmp_path):
    folder = recommend_to_parquet(source, histories, tmp_path / "out")
    (folder / batch.REQUEST_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"_request\.json is not valid .*\. Pass a new folder"):
        recommend_to_parquet(source, histories, folder)


def test_the_scoring_class_takes_arrow_and_pandas(source):
    score = BatchRecommender(source, user="customer", history="items", top_k=2)
    table = pa.table({"customer": ["x", "y"], "items": [["a"], []]})
    found = score(table)
    assert isinstance(found, pa.Table)
    assert found["customer"].to_pylist() == ["x", "x", "y", "y"]
    assert found["rank"].to_pylist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match=r"Expected a column 'customer', found user\. Pass the names of your columns"):
        score(pa.table({"user": ["x"]}))
    with pytest.raises(
        ValueError, match=r"table of Arrow or pandas, found dict\. .*Ray Data pass `batch_format='pyarrow'`"
    ):
        score({"customer": ["x"], "items": [["a"]]})
    assert score(table.to_batches()[0]) == found
    frame = score(table.to_pandas())
    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict("list") == found.to_pydict()


def test_the_scoring_class_takes_mixed_ids_and_missing_histories_of_pandas(source):
    score = BatchRecommender(source, top_k=1)
    mixed = pd.DataFrame({"user": [1, "u", 2, 3], "history": [["a", 5], [5], float("nan"), None]}, index=[7, 7, 8, 9])
    found = score(mixed)
    answers = hf_bert4rec.pipeline(source, device="cpu")([["a", 5], [5], [], []], top_k=1)
    assert found["user"].tolist() == [1, "u", 2, 3]
    assert found["item"].tolist() == [answer[0]["item"] for answer in answers]
    arrays = pd.DataFrame({"user": [1, 2], "history": [np.array(["a"]), np.array([])]})
    assert score(arrays)["user"].tolist() == [1, 2]
    assert score(arrays).dtypes[["rank", "score"]].tolist() == [np.int32, np.float32]
    assert score(mixed[:0])["user"].tolist() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "`top_k` must be a whole number of at least 1, found 0"),
        ({"topk": 3}, "Unknown option 'topk'"),
        ({"deny": [["a"]]}, "deny: expected a list of item IDs, or one list per history"),
        (
            {"user": "item"},
            "`user` must be a name other than 'history', 'rank', 'item' and 'score', found 'item'. Rename",
        ),
        ({"user": "history"}, "found 'history'. Rename your column of users"),
    ],
)
def test_the_scoring_class_refuses_options_before_the_first_table(source, options, message):
    with pytest.raises(ValueError, match=message):
        BatchRecommender(source, **options)


def test_the_columns_of_a_log_can_be_named(source, tmp_path):
    (tmp_path / "log.csv").write_text("who,what,moment\nu,b,2\nu,a,1\nv,c,3\n")
    words = ["recommend", str(source), "--input", str(tmp_path / "log.csv"), "--output", str(tmp_path / "out")]
    main([*words, "--user", "who", "--item", "what", "--timestamp", "moment", "--top_k", "1"])
    found = hf_bert4rec.pipeline(source)([["a", "b"], ["c"]], top_k=1)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [(row["user"], row["item"]) for row in rows] == [("u", found[0][0]["item"]), ("v", found[1][0]["item"])]


def test_a_log_is_read_with_the_options_of_train(source, tmp_path):
    assert set(READING) == inspect.signature(hf_bert4rec.load_interactions).parameters.keys() - {"source"}
    (tmp_path / "log.txt").write_text("u;b;1;2\nu;a;5;1\nu;c;4;3\nv;c;5;3\n")
    words = ["recommend", str(source), "--input", str(tmp_path / "log.txt"), "--output", str(tmp_path / "out")]
    words += ["--separator", ";", "--format", "csv", "--user", "0", "--item", "1", "--rating", "2", "--timestamp", "3"]
    main([*words, "--min_rating", "4", "--min_user_interactions", "2", "--top_k", "1"])
    found = hf_bert4rec.pipeline(source)([["a", "c"]], top_k=1)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [(row["user"], row["item"]) for row in rows] == [("u", found[0][0]["item"])]
    with pytest.raises(SystemExit, match="error: `--min_rating` must be a number, found 'many'"):
        main([*words, "--min_rating", "many"])


def test_the_command(source, histories, tmp_path, capsys):
    words = ["recommend", str(source), "--input", str(histories), "--output", str(tmp_path / "out"), "--top_k", "2"]
    main(words)
    assert capsys.readouterr().out == f"Saved in {tmp_path / 'out'}.\n"
    assert rows_of(tmp_path / "out") == expected_rows(source, histories, top_k=2)
    for wrong in (words[:4], [*words, "--history", "a"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert "Use `--input` together with `--output`" in capsys.readouterr().err
    for option in (["--user", "x"], ["--timestamp", "x"], ["--processes", "2"]):
        with pytest.raises(SystemExit):
            main([*words[:2], *option])
        assert " needs `--input` and `--output`, without `--history`. Add them, or omit `" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"Omit `user` in `columns` \(command line: `--user`\), which is for logs"):
        main([*words[:5], str(tmp_path / "other"), "--user", "name"])
