"""The example for Ray Data, with two local workers."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.inference.test_batch import expected_rows, rows_of
from tests.inference.test_export import checkpoint
from tests.inference.test_pipeline import ITEMS

SCRIPT = Path(__file__).parents[2] / "scripts" / "recommend_with_ray.py"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[data]")
def test_each_user_gets_the_items_of_the_pipeline_once(tmp_path):
    source, draw = checkpoint(tmp_path / "model", "bert4rec"), random.Random(0)
    histories = [[draw.choice(ITEMS) for _ in range(draw.randint(1, 7))] for _ in range(5000)]
    pq.write_table(pa.table({"user": range(5000), "history": histories}), tmp_path / "histories.parquet")
    command = [sys.executable, SCRIPT, source, tmp_path / "histories.parquet", tmp_path / "out", "--workers", "2"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert rows_of(tmp_path / "out") == expected_rows(source, tmp_path / "histories.parquet")
