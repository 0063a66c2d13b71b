"""Put a checkpoint on the Hugging Face Hub in one commit: weights, config, tokenizer, titles, code, card and run facts.

hf auth login
python scripts/push_to_hub.py runs/ml-latest-small/model your-name/bert4rec-ml-latest-small
"""

import argparse

from hf_bert4rec.cli.recipe import plain_errors
from hf_bert4rec.hub.checkpoint import push_checkpoint

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="Checkpoint folder, as scripts/train.py saves it.")
    parser.add_argument("repository", help="Hub id: org/name.")
    parser.add_argument("--private", action="store_true", help="Create a private repository.")
    args = parser.parse_args()
    with plain_errors():
        print(push_checkpoint(args.checkpoint, args.repository, private=args.private or None))
