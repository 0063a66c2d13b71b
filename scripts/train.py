"""Train BERT4Rec by a recipe, judge it beside baselines, save it with its card.

    python scripts/train.py scripts/configs/ml-latest-small.yaml
    python scripts/train.py scripts/configs/ml-latest-small.yaml --learning_rate 1e-3 --output_dir runs/slow
    python scripts/train.py scripts/configs/ml-latest-small.yaml --resume_from_checkpoint true

Two processes, on two GPUs or, with --use_cpu true, on a CPU:

    accelerate launch --multi_gpu --num_processes 2 scripts/train.py scripts/configs/ml-latest-small.yaml --use_cpu true
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

import transformers

from hf_bert4rec.cli.recipe import parse_recipe, plain_errors
from hf_bert4rec.cli.run import run, summary

if __name__ == "__main__":
    recipe = parse_recipe(description=__doc__)
    transformers.logging.disable_progress_bar()  # a bar for every checkpoint; that of the training stays
    with plain_errors():
        folder = run(recipe)
        if folder is not None:
            print(summary(folder))
