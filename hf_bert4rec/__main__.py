"""`python -m hf_bert4rec`: the command `hf-bert4rec`."""

from .cli.main import main

if __name__ == "__main__":
    main()
