"""Recommend items for one history of item ids.

python scripts/recommend.py runs/ml-latest-small/model --history 260 1196 1210 2571 --top_k 5
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

import argparse

from hf_bert4rec import pipeline
from hf_bert4rec.cli.recipe import plain_errors
from hf_bert4rec.cli.run import recommendation_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="Checkpoint folder or Hub id.")
    parser.add_argument("--history", nargs="*", default=[], metavar="ID", help="Item ids, oldest first.")
    parser.add_argument("--top_k", type=int, default=10, help="How many items to recommend (10).")
    parser.add_argument("--allow", nargs="+", metavar="ID", help="Recommend among these items only.")
    parser.add_argument("--deny", nargs="+", metavar="ID", help="Never recommend these items.")
    parser.add_argument("--keep_history", action="store_true", help="Items of the history may be recommended again.")
    args = parser.parse_args()
    options = {"top_k": args.top_k, "allow": args.allow, "deny": args.deny, "exclude_history": not args.keep_history}
    with plain_errors():
        print(recommendation_table(pipeline(args.checkpoint), args.history, **options))
