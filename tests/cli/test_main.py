"""The command `hf-bert4rec`: help, start-up, and errors without a traceback."""

import dataclasses
import logging
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import hf_bert4rec
from hf_bert4rec import Bert4RecConfig, RecommendationTrainingArguments
from hf_bert4rec.cli.main import COMMANDS, main, plain_errors
from hf_bert4rec.cli.report import recommendation_table
from hf_bert4rec.hub.errors import disk_errors
from tests.cli.test_run import LOG, recipe_for, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def logger():
    """The logger of the package, which is as before after the test."""
    logger = logging.getLogger("hf_bert4rec")
    level, handlers = logger.level, logger.handlers[:]
    yield logger
    logger.setLevel(level)
    logger.handlers[:] = handlers


def python(*words: str, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, **options)


def test_the_help_lists_every_command(capsys):
    main(["--help"])
    text = capsys.readouterr().out
    assert set(re.findall(r"^  (\S+) ", text, re.MULTILINE)) == set(COMMANDS)
    assert "--import MODULE" in text
    assert "--version" in text
    main([])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_fits_on_a_screen_and_needs_no_heavy_module(name):
    code = (
        f"import sys\nfrom hf_bert4rec.cli.main import main\ntry:\n    main({[*name.split(), '--help']})\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    finished = python("-c", code)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].startswith("usage: hf-bert4rec")
    assert len(lines) <= 32
    assert max(map(len, lines)) <= 120


def test_the_package_is_the_command():
    finished = python("-m", "hf_bert4rec", "--help")
    assert finished.stdout.startswith("usage: hf-bert4rec")


def test_the_defaults_of_the_short_help_are_those_of_the_options(capsys):
    main(["train", "--help"])
    found = dict(re.findall(r"^  --(\w+) .*\(([\d.]+)\)", capsys.readouterr().out, re.MULTILINE))
    defaults = {it.name: it.default for it in dataclasses.fields(RecommendationTrainingArguments)}
    defaults["max_length"] = Bert4RecConfig.max_position_embeddings
    assert {name: float(value) for name, value in found.items()} == {name: defaults[name] for name in found}
    assert {"num_train_epochs", "learning_rate", "seed", "max_length"} <= {*found}


def test_all_options_are_behind_help_all(capsys):
    main(["train", "--help-all"])
    text = capsys.readouterr().out
    assert text.startswith("usage: hf-bert4rec train [CONFIG] [--option value ...]")
    assert "--gradient_accumulation_steps" in text
    assert "--layer_norm_eps" in text


def test_an_unknown_command_is_refused_with_the_near_name():
    with pytest.raises(SystemExit, match=r"Unknown command `trian`\. Did you mean `train`\?"):
        main(["trian"])
    with pytest.raises(SystemExit, match="Choose from train, evaluate"):
        main(["something"])


def test_importing_the_command_sets_nothing_and_running_it_sets_the_wait_policy(monkeypatch, capsys):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main(["--help"])
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("wrong"), "x: error: wrong"),
        (FileNotFoundError(2, "No such file", "a.csv"), r"x: error: a\.csv: No such file\.$"),
        (RuntimeError("X requires y to be installed. Run `pip install y`."), "x: error: X requires y to be installed"),
        (PackageNotFoundError("deepspeed"), "x: error: No package metadata was found for deepspeed"),
        (ModuleNotFoundError("No module named 'implicit'", name="implicit"), r"pip install 'hf-bert4rec\[baselines\]'"),
        (ModuleNotFoundError("No module named 'gradio'", name="gradio"), r"pip install 'hf-bert4rec\[space\]'"),
        (KeyboardInterrupt(), "x: interrupted"),
    ],
)
def test_what_a_user_can_fix_is_one_sentence(error, message):
    with pytest.raises(SystemExit, match=message), plain_errors("x"):
        raise error


def test_errors_of_the_program_keep_their_traceback():
    for error in (RuntimeError("a bug"), ModuleNotFoundError("No module named 'own'", name="own"), TypeError("a bug")):
        with pytest.raises(type(error), match=str(error)), plain_errors("x"):
            raise error


def test_a_wrong_size_of_the_model_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match="error: `hidden_size` must be a positive multiple") as error:
        main(["train", "--data", "ml-latest-small", "--output_dir", str(tmp_path), "--hidden_size", "13"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("checkpoint", "advice"),
    [(None, "no checkpoint to resume from. To start"), ("x/checkpoint-2", "resume from x/checkpoint-2, add `--")],
)
def test_an_interrupted_run_says_how_to_go_on(monkeypatch, tmp_path, checkpoint, advice):
    def interrupt(recipe):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_bert4rec.cli.run.run", interrupt)
    monkeypatch.setattr("hf_bert4rec.hub.checkpoint.last_complete_checkpoint", lambda folder: checkpoint)
    with pytest.raises(SystemExit, match=f"^\nInterrupted.*{advice}"):
        main(["train", "--data", "log.csv", "--output_dir", str(tmp_path)])


def test_train_needs_the_name_of_a_log():
    with pytest.raises(SystemExit, match=r"The log is missing. Pass `--data ratings\.csv`"):
        main(["train", "--output_dir", "unused"])


# ---- from the command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(recipe_for(tmp_path_factory.mktemp("main"), "--example", "i0", "i1", "--num_train_epochs=1"))


def test_train_works_without_a_file_of_options_and_ends_with_a_summary(tmp_path):
    (tmp_path / "ratings.csv").write_text(LOG)
    words = ["train", "--data", "ratings.csv", "--output_dir", "runs/mine", "--num_train_epochs", "2"]
    finished = python("-m", "hf_bert4rec.cli.main", *words, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "epoch   2.0   loss" in finished.stdout
    assert "| BERT4Rec |" in finished.stdout
    assert "Checkpoint, card and learning_curve.png are in runs/mine/model" in finished.stdout
    assert (tmp_path / "runs" / "mine" / "model" / "model.safetensors").exists()
    for line in finished.stderr.replace("\r", "\n").splitlines():
        assert "shards" not in line
        assert "Loading weights" not in line


@pytest.mark.parametrize("script", ["train", "evaluate", "recommend", "push_to_hub"])
def test_every_script_is_its_command(script):
    finished = python(str(ROOT / "scripts" / f"{script}.py"), "--help")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"usage: hf-bert4rec {script.removesuffix('_to_hub')}")


def test_evaluate_prints_results_and_intervals(trained, capsys):
    main(["evaluate", str(trained), "--popularity_candidates", "2"])
    text = capsys.readouterr().out
    assert "ranked among all 12 items, history excluded" in text
    assert "| test |" in text
    assert "95 % interval of NDCG@10 over users (bootstrap), test: 0." in text
    assert "ranked among 2 items drawn for each user by their popularity" in text
    with pytest.raises(SystemExit, match="The checkpoint is missing"):
        main(["evaluate"])


def test_recommend_prints_titles_and_follows_its_options(trained, capsys):
    main(["recommend", str(trained), "--history", "i0", "i3", "--top_k", "2"])
    text = capsys.readouterr().out
    assert "Zero" in text
    assert len(text.split("title):")[1].strip().splitlines()) == 2
    main(["recommend", str(trained), "--history", "i0", "--allow", "i0", "i1", "i2", "--deny", "i2"])
    first, reason = capsys.readouterr().out.split("title):")[1].strip().splitlines()
    assert first.split()[0] == "i1"
    assert reason.startswith("Found 1 of 10 wanted items. Excluded from the 12 items of the catalog: ")
    words = [
        "--allow",
        "i1",
        "i2",
        "--allow",
        "i3",
        "i4",
        "--deny",
        "i1",
        "--deny",
        "i3",
        "--history=i0",
        "--history=i5",
    ]
    main(["recommend", str(trained), *words])
    history, best = capsys.readouterr().out.split("Recommended, best first (item, score, title):")
    assert [line.split()[0] for line in history.strip().splitlines()[1:]] == ["i0", "i5"]
    assert {line.split()[0] for line in best.strip().splitlines()[:-1]} == {"i2", "i4"}
    main(["recommend", str(trained), "--history", "i0", "--allow", "i0", "--exclude_history", "false"])
    assert "i0" in capsys.readouterr().out.split("title):")[1]


def test_a_folder_without_a_checkpoint_is_refused_in_one_sentence(tmp_path):
    finished = python("-m", "hf_bert4rec.cli.main", "recommend", str(tmp_path), "--history", "1")
    assert finished.returncode == 1
    assert finished.stderr.startswith("hf-bert4rec recommend: error: ")
    assert "no config.json" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_push_prints_the_address_of_the_commit(trained, hub, capsys):
    main(["push", str(trained), "org/mine", "--private"])
    assert "org/mine/commit/" in capsys.readouterr().out
    assert hub.repositories["org/mine"].private


@pytest.mark.parametrize(("rank", "reports"), [("0", True), ("1", False)])
def test_only_the_first_process_reports(monkeypatch, logger, rank, reports):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit):
        main(["push", "--help"])
    assert logger.isEnabledFor(logging.WARNING) is reports


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
)
def test_a_full_disk_is_one_sentence(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("hf_bert4rec.cli.run.run", fail)
    with pytest.raises(SystemExit, match=r"error: runs/x: the disk is full\. Free some space, then try again\."):
        main(["train", "--data", "ml-latest-small", "--output_dir", "runs/x"])


def test_a_file_that_torch_cannot_open_is_not_reported_as_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match=r"Is a directory|cannot be opened"), disk_errors(tmp_path):
        torch.save({}, tmp_path)


OWN = """
from hf_bert4rec import LOSSES, Bert4RecConfig, Bert4RecForMaskedLM, register_architecture

class OwnConfig(Bert4RecConfig):
    model_type = "own_model"
    width: int = 1

class OwnForMaskedLM(Bert4RecForMaskedLM):
    config: OwnConfig

register_architecture(OwnConfig, OwnForMaskedLM)
LOSSES["own_loss"] = LOSSES["softmax"]
"""


def test_code_of_the_user_is_imported_by_every_command(tmp_path):
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "log.csv").write_text(LOG)
    words = ["--data", "log.csv", "--output_dir", "out", "--max_steps", "1", "--hidden_size", "8", "--use_cpu", "true"]
    options = ["--architecture", "own_model", "--width", "2", "--loss", "own_loss"]
    command = ["-m", "hf_bert4rec.cli.main"]
    finished = python(*command, "train", "--import", "own_code", *words, *options, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    finished = python(*command, "recommend", "--import", "own_code", "out/model", "--history", "i1", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    finished = python(*command, "recommend", "out/model", "--history", "i1", cwd=tmp_path)
    assert "`model_type` in config.json must be one of bert4rec, sasrec, gru4rec, found 'own_model'" in finished.stderr
    assert "--import MODULE" in finished.stderr


def test_the_version_is_printed(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"{version('hf-bert4rec')}\n"


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(SystemExit, match=r"`--import no_such_module` failed: No module named 'no_such_module'\. Check"):
        main(["recommend", "--import", "no_such_module", "x"])


def test_a_loss_that_does_not_exist_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"`loss` must be one of softmax, .*found 'sofmax'"):
        run(recipe_for(tmp_path, "--loss", "sofmax"))
    with pytest.raises(ValueError, match=r"found 'sofmax'\. Correct the name, or add the loss .*`--import`"):
        run(recipe_for(tmp_path, "--loss", "sofmax", "--data", "not/read.csv"))


def test_a_recommendation_shows_unknown_ids_and_no_empty_column(trained, capsys):
    main(["recommend", str(trained), "--history", "i1", "588", "--top_k", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [f"{'i1':>12}          One", f"{'588':>12}          unknown ID, skipped"]
    recommender = hf_bert4rec.pipeline(trained)
    recommender.tokenizer.titles = None
    lines = recommendation_table(recommender, ["i1"], top_k=1).splitlines()
    assert lines[1:3] == [f"{'i1':>12}", "Recommended, best first (item, score):"]


def test_unknown_arguments_of_recommend_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["recommend", "runs/a/model", "tr0588", "tr2"])
    assert "arguments: tr0588 tr2. Pass the items of a history after `--history`." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["recommend", "runs/a/model", "--topk", "5"])
    assert "unrecognized arguments: --topk 5. Use the options above, or with `--input`" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["recs.csv", "new/recs.parquet"])
def test_recommend_does_not_make_a_folder_with_the_name_of_a_file(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["recommend", "runs/a/model", "--input", "log.csv", "--output", name])
    assert f"`--output` must be a folder for Parquet files, found {name}. Omit the suffix." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_import_without_a_module_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--import"])
    assert "argument --import: expected one argument" in capsys.readouterr().err
