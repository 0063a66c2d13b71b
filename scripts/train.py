"""The same as `hf-bert4rec train`, for `accelerate launch`."""

import sys

from hf_bert4rec.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
