"""The same as `hf-bert4rec compare`."""

import sys

from hf_bert4rec.cli.main import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
