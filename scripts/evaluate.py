"""The same as `hf-bert4rec evaluate`, for `accelerate launch`."""

import sys

from hf_bert4rec.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
