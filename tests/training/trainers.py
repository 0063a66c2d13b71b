"""A Trainer for the splits of the fixture `cyclic_histories`."""

from transformers import Trainer, set_seed

from hf_bert4rec import Bert4RecForMaskedLM, RecommendationTrainer, RecommendationTrainingArguments, cloze_training
from tests.conftest import small_config

OPTIONS = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}


def make_trainer(histories, folder, kind=RecommendationTrainer, setup=(), config=(), **options) -> Trainer:
    """Return a Trainer for the splits and the tokenizer of `histories`, on the CPU.

    `setup` are more arguments of the Trainer, `config` options of the model, `options` training arguments.
    """
    splits, tokenizer = histories
    args = RecommendationTrainingArguments(str(folder), **{**OPTIONS, **options})
    set_seed(args.seed)
    model = Bert4RecForMaskedLM(small_config(len(tokenizer), 8, **dict(config)))
    arguments = cloze_training(tokenizer, **({"callbacks": []} if kind is Trainer else {})) | dict(setup)
    model = arguments.pop("model", model)
    return kind(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"], **arguments)
