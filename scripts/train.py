"""Train BERT4Rec by a recipe, judge it beside baselines, save it with its card.

python scripts/train.py scripts/configs/ml-latest-small.yaml
python scripts/train.py scripts/configs/ml-latest-small.yaml --learning_rate 1e-3 --output_dir runs/slow
accelerate launch --multi_gpu --num_processes 2 scripts/train.py scripts/configs/ml-latest-small.yaml  # two GPUs
    # two processes on a CPU: the same and --use_cpu true
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads make small models much slower

import transformers

from hf_bert4rec.recipe import parse_recipe
from hf_bert4rec.run import run, summary

if __name__ == "__main__":
    recipe = parse_recipe(description=__doc__)
    transformers.logging.disable_progress_bar()  # a bar for every checkpoint; that of the training stays
    transformers.logging.set_verbosity_error()  # it warns of the tied head, which is never saved
    folder = run(recipe)
    if folder is not None:
        print(summary(folder))
