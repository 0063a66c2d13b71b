"""The same as `hf-bert4rec push-data`."""

import sys

from hf_bert4rec.cli.main import main

if __name__ == "__main__":
    main(["push-data", *sys.argv[1:]])
