"""Judge a checkpoint again: full ranking over its catalogue, by the protocol that it was trained with.

    python scripts/evaluate.py runs/ml-latest-small/model
    python scripts/evaluate.py runs/ml-latest-small/model --data ratings.csv

Options that are not given are those of the recipe in the checkpoint's run facts.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

from hf_bert4rec.cli.recipe import parse_recipe, plain_errors
from hf_bert4rec.cli.run import evaluate
from hf_bert4rec.hub.checkpoint import results_table, sampled_table

if __name__ == "__main__":
    recipe = parse_recipe(description=__doc__, config="CHECKPOINT")
    with plain_errors():
        (protocol, sampled_protocol), metrics, intervals = evaluate(recipe)
        print(f"Protocol: {protocol}\n{results_table(metrics)}")
        for split, (low, high) in intervals.items():
            print(f"95 % interval of NDCG@10 over users (bootstrap), {split}: {low:.4f} to {high:.4f}")
        if sampled := sampled_table(metrics):
            print(f"\nProtocol: {sampled_protocol}\n{sampled}")
