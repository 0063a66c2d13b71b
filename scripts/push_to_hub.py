"""The same as `hf-bert4rec push`, for `accelerate launch`."""

import sys

from hf_bert4rec.cli.main import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
