"""Recommend for all users of a Parquet file with Ray Data. Install it with `pip install "ray[data]"`.

    python scripts/recommend_with_ray.py runs/mine/model histories.parquet recommendations --workers 2

The file has one row per user, with the columns user and history (a list of item IDs, oldest first). The result has one
row per recommendation: user, rank, item and score. On a cluster, start the script on one of the machines, with paths
that all machines can read.
"""

import argparse
from pathlib import Path

import ray

from hf_bert4rec.inference.batch import BatchRecommender


def main() -> None:
    """Write recommendations as Parquet, in the order in which batches are ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint folder or Hub ID")
    parser.add_argument("source", help="Parquet file of histories, or folder of such files")
    parser.add_argument("output", help="folder of the result")
    parser.add_argument("--workers", type=int, default=2, help="number of processes (2)")
    args = parser.parse_args()
    local = Path(args.checkpoint).exists()
    histories = ray.data.read_parquet(str(Path(args.source).resolve()))
    recommended = histories.map_batches(
        BatchRecommender,
        fn_constructor_args=(str(Path(args.checkpoint).resolve()) if local else args.checkpoint,),
        batch_format="pyarrow",
        batch_size=2000,
        compute=ray.data.ActorPoolStrategy(size=args.workers),
        num_cpus=0.5,  # of the processors that Ray counts, so that some are left for reading
    )
    recommended.write_parquet(str(Path(args.output).resolve()))


if __name__ == "__main__":
    main()
