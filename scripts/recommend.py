"""The same as `hf-bert4rec recommend`, for `accelerate launch`."""

import sys

from hf_bert4rec.cli.main import main

if __name__ == "__main__":
    main(["recommend", *sys.argv[1:]])
