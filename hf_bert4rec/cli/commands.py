"""The commands train, evaluate, recommend and push: arguments in, text out."""

import argparse
from collections.abc import Sequence


def train(argv: Sequence[str]) -> None:
    """Train by a recipe and print a summary."""
    import transformers

    from .recipe import parse_recipe
    from .run import run, summary

    recipe = parse_recipe(argv)
    transformers.logging.disable_progress_bar()  # one bar per saved checkpoint; the bar of the training stays
    folder = run(recipe)
    if folder is not None:
        print(summary(folder))


def evaluate(argv: Sequence[str]) -> None:
    """Evaluate a checkpoint and print its results."""
    from ..hub.model_card import results_table, sampled_table
    from .recipe import parse_recipe
    from .run import evaluate

    (protocol, sampled_protocol), metrics, intervals = evaluate(parse_recipe(argv, config="CHECKPOINT"))
    print(f"Protocol: {protocol}\n{results_table(metrics)}")
    for split, (low, high) in intervals.items():
        print(f"95 % interval of NDCG@10 over users (bootstrap), {split}: {low:.4f} to {high:.4f}")
    if sampled := sampled_table(metrics):
        print(f"\nProtocol: {sampled_protocol}\n{sampled}")


def recommend(argv: Sequence[str]) -> None:
    """Print recommendations for one history."""
    parser = argparse.ArgumentParser(prog="hf-bert4rec recommend", description=recommend.__doc__)
    parser.add_argument("checkpoint", help="Checkpoint folder or Hub id.")
    parser.add_argument("--history", nargs="*", default=[], metavar="ID", help="Item ids, oldest first.")
    parser.add_argument("--top_k", type=int, default=10, help="Number of items to recommend (10).")
    parser.add_argument("--allow", nargs="+", metavar="ID", help="Recommend only these items.")
    parser.add_argument("--deny", nargs="+", metavar="ID", help="Never recommend these items.")
    parser.add_argument("--keep_history", action="store_true", help="Items of the history may be recommended again.")
    args = parser.parse_args(argv)
    from ..inference.pipeline import pipeline
    from .run import recommendation_table

    options = {
        "top_k": args.top_k,
        "allow": args.allow,
        "deny": args.deny,
        "exclude_history": False if args.keep_history else None,
    }
    print(recommendation_table(pipeline(args.checkpoint), args.history, **options))


def push(argv: Sequence[str]) -> None:
    """Push a checkpoint to the Hugging Face Hub in one commit."""
    parser = argparse.ArgumentParser(prog="hf-bert4rec push", description=push.__doc__)
    parser.add_argument("checkpoint", help="Checkpoint folder, as hf-bert4rec train saves it.")
    parser.add_argument("repository", help="Hub id: org/name.")
    parser.add_argument("--private", action="store_true", help="Create a private repository.")
    args = parser.parse_args(argv)
    from ..hub.push import push_checkpoint

    print(push_checkpoint(args.checkpoint, args.repository, private=args.private or None))
