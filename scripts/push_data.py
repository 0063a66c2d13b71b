"""Put the histories of a recipe on the Hub: the splits as Parquet, the item tokenizer, and a card with what is known.

    hf auth login
    python scripts/push_data.py scripts/configs/ml-latest-small.yaml your-name/ml-latest-small-histories
    python scripts/push_data.py scripts/configs/own-data.yaml your-name/mine --data mine.csv --i_may_share_this_data

Further options are those of the recipe (`scripts/train.py --help`), after the two names.
"""

import argparse

from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.cli.push_data import push_data
from hf_bert4rec.cli.recipe import parse_recipe

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", help="YAML file or checkpoint folder, as for scripts/train.py.")
    parser.add_argument("repository", help="Hub id: org/name.")
    parser.add_argument("--private", action="store_true", help="Create a private repository.")
    parser.add_argument(
        "--i_may_share_this_data",
        action="store_true",
        help="You may redistribute the data: needed for all but the embedded ones.",
    )
    args, options = parser.parse_known_args()
    recipe = parse_recipe([args.config, *options])
    with plain_errors():
        print(push_data(recipe, args.repository, may_share=args.i_may_share_this_data, private=args.private or None))
