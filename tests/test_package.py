"""The package root: lazy public names, and registration with transformers in any order of imports."""

import os
import subprocess
import sys

import pytest

import hf_bert4rec

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY
import torch, hf_bert4rec
for kind in ("bert4rec", "sasrec", "gru4rec"):
    config = AutoConfig.for_model(kind, vocab_size=9, max_position_embeddings=5)
    with torch.device("meta"):
        model, encoder = AutoModelForMaskedLM.from_config(config), AutoModel.from_config(config)
    assert model.__class__.__module__.startswith("hf_bert4rec.models."), model.__class__
    assert type(model.model) is type(encoder)
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
    assert "ItemTokenizer" in str(TOKENIZER_MAPPING[type(config)])
assert PIPELINE_REGISTRY.check_task("next-item-recommendation")
"""
HEAVY = {"torch", "transformers", "datasets", "pyarrow", "numpy", "matplotlib", "huggingface_hub"}


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_package_imports_nothing_heavy():
    loaded = run_python("import sys, hf_bert4rec; print(*sys.modules)").split()
    assert not HEAVY.intersection(loaded)


def test_importing_the_package_changes_no_logging():
    code = (
        "import logging; before = (logging.root.handlers[:], logging.root.level); import hf_bert4rec;"
        "from hf_bert4rec import load_interactions; logger = logging.getLogger('hf_bert4rec');"
        "print(before == (logging.root.handlers, logging.root.level), logger.handlers, logger.level, logger.propagate)"
    )
    assert run_python(code).split() == ["True", "[]", "0", "True"]


FIRST = [
    "import hf_bert4rec\nfrom transformers import AutoTokenizer, BertModel, pipeline",
    "import transformers.pipelines, transformers.models.auto.modeling_auto\nimport hf_bert4rec",
    "from hf_bert4rec import Bert4RecForMaskedLM, item_tokenizer",
    "import hf_bert4rec.inference.pipeline",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_models_are_registered_whatever_is_imported_first():
    # Each runs in a copy of a process that has imported what takes long, and neither transformers nor the package.
    programs = [first + CHECK for first in FIRST]
    code = f"""
import os, sys, traceback
import datasets, scipy.optimize, torch._dynamo, torch.distributed.tensor
assert not [name for name in sys.modules if name.startswith(("transformers", "hf_bert4rec"))]
for program in {programs!r}:
    if (child := os.fork()) == 0:
        try:
            exec(program, {{}})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, program
"""
    run_python(code)


def test_every_public_name_exists():
    assert len(hf_bert4rec.__all__) == len(set(hf_bert4rec.__all__)) > 30
    assert all(hasattr(hf_bert4rec, name) for name in hf_bert4rec.__all__)
    assert set(hf_bert4rec.__all__) <= set(dir(hf_bert4rec))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hf_bert4rec.nothing  # noqa: B018
