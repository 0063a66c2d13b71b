"""Plot NDCG@10 and its interval for each model of a comparison.

hf-bert4rec compare scripts/comparisons/ml-1m.yaml --output_dir runs/compare-ml-1m
python scripts/plot_comparison.py runs/compare-ml-1m/comparison.json comparison-ml-1m.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hf_bert4rec.cli.main import plain_errors


def plot(summary: str, image: str) -> None:
    """Plot one bar per model, the best on top."""
    comparison = json.loads(Path(summary).read_text(encoding="utf-8"))
    models = comparison["models"]
    ranked = sorted(models, key=lambda name: models[name]["metrics"]["ndcg@10"])
    means = np.array([models[name]["metrics"]["ndcg@10"] for name in ranked])
    ends = np.array([models[name]["interval"] for name in ranked]).T
    figure = Figure(figsize=(8, 0.8 + 0.4 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    axes.barh(ranked, means, xerr=np.abs(ends - means), color="C0", ecolor="gray")
    axes.set_xlabel("NDCG@10, 95 % interval over users")
    axes.set_title(comparison["protocol"], fontsize=8, wrap=True)
    figure.savefig(image, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summary", help="comparison.json of the output folder, or a copy of it")
    parser.add_argument("image", help="PNG file to write")
    args = parser.parse_args()
    with plain_errors():
        plot(args.summary, args.image)
