"""Plot NDCG@10 and its interval for each model of a comparison.

hf-bert4rec compare scripts/comparisons/ml-1m.yaml --output_dir runs/compare-ml-1m
python scripts/plot_comparison.py scripts/comparisons/ml-1m.yaml runs/compare-ml-1m comparison-ml-1m.png
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

from hf_bert4rec.cli.compare import Comparison, file_name
from hf_bert4rec.cli.comparison_report import ModelResult
from hf_bert4rec.cli.main import plain_errors
from hf_bert4rec.evaluation.ranking import bootstrap_interval, ndcg_gains


def plot(config: str, folder: str, image: str) -> None:
    """Plot one bar per model, the best on top."""
    results = {name: ModelResult.load(folder, file_name(name)) for name in Comparison.load(config).models}
    ranked = sorted(results, key=lambda name: results[name].metrics["ndcg@10"])
    gains = [ndcg_gains(results[name].users.ranks, 10) for name in ranked]
    means, ends = np.array([gain.mean() for gain in gains]), np.array([bootstrap_interval(gain) for gain in gains]).T
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    axes.barh(ranked, means, xerr=np.abs(ends - means), color="C0", ecolor="gray")
    axes.set_xlabel("NDCG@10, 95 % interval over users")
    axes.set_title(results[ranked[0]].protocol, fontsize=8, wrap=True)
    figure.savefig(image, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of the comparison")
    parser.add_argument("folder", help="its output folder")
    parser.add_argument("image", help="PNG file to write")
    args = parser.parse_args()
    with plain_errors():
        plot(args.config, args.folder, args.image)
