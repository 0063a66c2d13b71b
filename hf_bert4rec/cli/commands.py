"""The commands of `hf-bert4rec`: arguments in, text out. Heavy modules are imported when needed."""

import argparse
import sys
from pathlib import Path

TRAIN = """usage: hf-bert4rec train [CONFIG] [--option value ...]

Train a recommender on a log, evaluate it next to two baselines and save it with its model card.

  hf-bert4rec train --data ratings.csv --output_dir runs/mine
  hf-bert4rec train scripts/configs/ml-1m.yaml --learning_rate 3e-3

CONFIG is a YAML file of options, or a checkpoint folder whose recipe is used again. The value none unsets an option.

  --data FILE                 log to read: CSV, Parquet, JSON lines, a folder, a Hub dataset, or ml-latest-small
  --output_dir FOLDER         checkpoints; the final model is in FOLDER/model
  --titles FILE               table with the titles of the items
  --user, --item, --timestamp COLUMN    columns of the log, if they are not found
  --min_user_interactions N, --min_item_interactions N    drop users and items with fewer interactions
  --split NAME                leave_one_out (default), at_time (with --validation_time and --test_time), or
                              train_on_all: nothing is held out, for the final training before deployment
  --exclude_history false     for data in which users interact with the same item again
  --max_length N              longest input, including the [MASK] of the query
  --architecture NAME         bert4rec (default), sasrec or gru4rec
  --hidden_size, --num_hidden_layers, --num_attention_heads N    size of the model
  --loss NAME                 softmax (default); sampled_softmax for very large catalogs
  --mask_probability P        probability that an item is masked
  --num_train_epochs N        maximum number of epochs (50)
  --early_stopping_patience N stop after N evaluations without improvement of validation NDCG@10 (10), or none
  --learning_rate, --muon_learning_rate X    peak learning rates of AdamW and of Muon for the matrices
  --per_device_train_batch_size N
  --bf16 true                 train in bfloat16
  --seed N
  --resume_from_checkpoint true    continue an interrupted run
  --push_to_hub true --hub_model_id ORG/NAME    push the finished model

--help-all shows all options, and their defaults."""

EVALUATE = """usage: hf-bert4rec evaluate CHECKPOINT [--option value ...]

Evaluate a checkpoint folder again by ranking the whole catalog.

  hf-bert4rec evaluate runs/mine/model
  hf-bert4rec evaluate runs/mine/model --data ratings.csv

Options that are not given are those the checkpoint was trained with.

  --data FILE                 log to read
  --split NAME                leave_one_out, at_time (with --validation_time and --test_time), ...
  --exclude_history BOOL      whether items of the history are excluded from the ranking
  --popularity_candidates N, --uniform_candidates N    also rank among N sampled items per user
  --per_device_eval_batch_size N

--help-all shows all options, and their defaults."""


def train(argv: list[str]) -> None:
    """Train by a recipe and print a summary."""
    if _print_help(argv, TRAIN):
        return
    import transformers

    from ..hub.errors import disk_errors
    from .recipe import parse_recipe
    from .report import summary
    from .run import run

    recipe = parse_recipe(argv)
    transformers.logging.disable_progress_bar()  # one bar per saved checkpoint; the bar of the training stays
    with disk_errors(recipe.training.output_dir or ""):
        folder = run(recipe)
    if folder is not None:
        print(summary(folder))


def evaluate(argv: list[str]) -> None:
    """Evaluate a checkpoint and print its results."""
    if _print_help(argv, EVALUATE):
        return
    from ..hub.model_card import results_table, sampled_table
    from .evaluate import evaluate
    from .recipe import parse_recipe

    (protocol, sampled_protocol), results, intervals = evaluate(parse_recipe(argv))
    print(f"Protocol: {protocol}\n{results_table(results)}")
    for split, (low, high) in intervals.items():
        print(f"95 % interval of NDCG@10 over users (bootstrap), {split}: {low:.4f} to {high:.4f}")
    if sampled := sampled_table(results):
        print(f"\nProtocol: {sampled_protocol}\n{sampled}")


def _print_help(argv: list[str], text: str) -> bool:
    if "--help-all" in argv:
        from .recipe import format_help

        text = format_help(text.splitlines()[0].removeprefix("usage: "))
    elif not {"-h", "--help"} & {*argv}:
        return False
    print(text)
    return True


def recommend(argv: list[str]) -> None:
    """Print recommendations for one history."""
    parser = argparse.ArgumentParser(prog="hf-bert4rec recommend", description=recommend.__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", help="checkpoint folder or Hub id")
    parser.add_argument("--history", nargs="*", default=[], metavar="ID", help="item ids, oldest first")
    parser.add_argument("--top_k", type=int, default=10, help="number of items to recommend (10)")
    parser.add_argument("--allow", nargs="+", metavar="ID", help="recommend only these items")
    parser.add_argument("--deny", nargs="+", metavar="ID", help="never recommend these items")
    parser.add_argument(
        "--exclude_history",
        choices=("true", "false"),
        help="whether items of the history are excluded (default: as the model was trained)",
    )
    args = parser.parse_args(argv)
    from ..inference.pipeline import pipeline
    from .report import recommendation_table

    options = {"top_k": args.top_k, "allow": args.allow, "deny": args.deny}
    if args.exclude_history:
        options["exclude_history"] = args.exclude_history == "true"
    print(recommendation_table(pipeline(args.checkpoint), args.history, **options))


def push(argv: list[str]) -> None:
    """Push a checkpoint to the Hugging Face Hub in one commit."""
    parser = argparse.ArgumentParser(prog="hf-bert4rec push", description=push.__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", help="checkpoint folder, as hf-bert4rec train saves it")
    parser.add_argument("repository", help="Hub id: org/name")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    args = parser.parse_args(argv)
    from ..hub.push import push_checkpoint

    print(push_checkpoint(args.checkpoint, args.repository, private=args.private or None))


COMPARE = """Train and evaluate any number of models on one data set, and report metrics, costs and differences.

  hf-bert4rec compare comparison.yaml

CONFIG is a YAML file:

  recipe: mine.yaml                                          data, split and protocol of all models
  models:
    Popularity: {baseline: popularity}                       or markov_chain, ease, item_neighbors, als, bpr_mf
    Neighbors: {baseline: item_neighbors, neighbors: 20}     with parameters of the baseline
    SASRec: {recipe: mine.yaml, architecture: sasrec}        trained by a recipe, with other options
    Mine: {checkpoint: runs/mine/model}                      trained before
  published:                                                 optional, metrics among sampled candidates
    Popularity: {the paper: {hr@10: 0.1358}}                 to show next to ours

Each model is trained and evaluated in its own process. Models with a result in the output folder are not run again."""


def compare(argv: list[str]) -> None:
    """Compare models and print a report."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="hf-bert4rec compare", description=COMPARE, formatter_class=formatter)
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the comparison")
    parser.add_argument("--split", default="test", choices=("validation", "test"), help="split to evaluate on (test)")
    parser.add_argument("--output_dir", help="folder of the results (runs/compare-CONFIG-SPLIT)")
    args = parser.parse_args(argv)
    from .compare import compare

    folder = args.output_dir or f"runs/compare-{Path(args.config).stem}-{args.split}"
    try:
        print(compare(args.config, args.split, folder))
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. Run the same command to continue with the results in {folder}.")
    print(f"Saved in {folder}.")


def push_data(argv: list[str]) -> None:
    """Push the histories of a recipe to the Hub."""
    parser = argparse.ArgumentParser(
        prog="hf-bert4rec push-data",
        description="Push histories, the item tokenizer and a data card to the Hub in one commit. Further options are "
        "those of the recipe, see hf-bert4rec train --help.",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file or checkpoint folder, as for hf-bert4rec train")
    parser.add_argument("repository", metavar="REPO", help="Hub id: org/name")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument(
        "--i_may_share_this_data",
        action="store_true",
        help="you are allowed to publish the data; required unless it is embedded in this package",
    )
    args, options = parser.parse_known_args(argv)
    from .push_data import push_data
    from .recipe import parse_recipe

    recipe = parse_recipe([args.config, *options])
    print(push_data(recipe, args.repository, may_share=args.i_may_share_this_data, private=args.private or None))
