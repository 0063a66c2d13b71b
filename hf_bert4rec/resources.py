"""What a run needs of the machine: memory, told before it is taken, and memory that is kept between steps."""

import ctypes
import logging
import sys
from dataclasses import asdict, dataclass

import psutil
import torch

from .configuration_bert4rec import Bert4RecConfig

logger = logging.getLogger(__name__)

GB = 10**9
ADVICE = {
    "parameters": "take a smaller hidden_size, or leave out rare items (min_item_interactions)",
    "activations": "take a smaller per_device_train_batch_size, or gradient_checkpointing",
    "loss": "take loss='sampled_softmax', or a smaller loss_chunk_size",
}


@dataclass
class MemoryEstimate:
    """Memory of a training run in GB, by what needs it, in float32."""

    parameters: float
    gradients: float
    optimizer_state: float
    activations: float
    loss: float

    @property
    def total(self) -> float:
        """The sum, in GB. What the process holds before (libraries, data) comes on top."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name.replace('_', ' ')} {size:.2f}" for name, size in asdict(self).items())
        return f"{self.total:.2f} GB ({parts})"


def estimate_memory(
    config: Bert4RecConfig,
    batch_size: int,
    length: int,
    mask_probability: float = 0.2,
    gradient_checkpointing: bool = False,
) -> MemoryEstimate:
    """Peak memory of training steps with AdamW, from the shapes alone: nothing is allocated. Evaluation is not counted.

    Numbers kept for the backward pass are counted a position: 4 d by the embeddings (sum, normalised, mask and result
    of dropout); 10 d + 2 f by a layer (query, key, value, attention, and twice mask, residual and norm; f twice in the
    feed-forward); by the last one 2 d (key, value) at every position and the rest at the scored ones. The layer that is
    just worked on holds 3 f more. With checkpointing a layer keeps its input only.

    Args:
        config: Of the model.
        batch_size: Rows of a step and device.
        length: Longest row.
        mask_probability: Share of the positions that is scored.
        gradient_checkpointing: Whether layers are computed again in the backward pass.
    """
    rows, d, f = config.vocab_size, config.hidden_size, config.intermediate_size
    table = rows * (d + 1)
    layer = 4 * d * (d + 1) + 2 * d * f + d + f + 4 * d
    embeddings = (config.max_position_embeddings + (config.conv_kernel_size or 0) + 2) * d
    head = d * (d + 3) if config.prediction_head else 0
    encoder = embeddings + config.num_hidden_layers * layer + head
    parameters = table + (0 if config.tie_word_embeddings else rows * d) + encoder

    positions = batch_size * length
    scored = positions * min(1, mask_probability)
    kept = d if gradient_checkpointing else 10 * d + 2 * f
    working = 10 * d + 5 * f if gradient_checkpointing else 3 * f
    every = (4 if config.conv_kernel_size is None else 6) * d + (config.num_hidden_layers - 1) * kept + 2 * d + working
    activations = positions * every + scored * (10 * d + 2 * f)
    weights = config.num_attention_heads * positions * length  # where the attention's own are kept or masked
    plain = 1 if gradient_checkpointing else config.num_hidden_layers  # layers whose weights are kept
    activations += weights * (3 * plain if config.attention_probs_dropout_prob else 0.5)
    if config.loss == "softmax":
        loss = min(config.loss_chunk_size, scored) * rows + 2 * table + scored * 2 * d
    else:
        columns = config.num_negatives * (1 if config.share_negatives else d)
        loss = 4 * scored * columns + table
    numbers = {
        "parameters": parameters,
        "gradients": parameters,
        "optimizer_state": 2 * parameters,
        "activations": activations,
        "loss": loss,
    }
    return MemoryEstimate(**{name: 4 * count / GB for name, count in numbers.items()})


def check_memory(estimate: MemoryEstimate, device: torch.device) -> None:
    """Compare with what is free on a device before a model is made, and advise where it may not be enough.

    Args:
        estimate: Of the run.
        device: Where it runs.

    Raises:
        MemoryError: Parameters, gradients and optimiser state alone are larger than what is free.
    """
    on_gpu = device.type == "cuda"
    free = (torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available) / GB
    sure = estimate.parameters + estimate.gradients + estimate.optimizer_state
    if sure > free:
        raise MemoryError(
            f"Parameters, gradients and optimiser state take {sure:.2f} GB, {free:.2f} GB are free: "
            f"{ADVICE['parameters']}."
        )
    if estimate.total > free:
        largest = max(("activations", "loss"), key=lambda name: getattr(estimate, name))
        logger.warning("Training takes about %s, %.2f GB are free: %s.", estimate, free, ADVICE[largest])


def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next operation, where it is glibc's; the process does not shrink.

    By default it gives blocks past 32 MB back to the system at once, and every operation of the next step gets fresh
    pages that must be cleared first: training is 1.1 to 1.2 times faster without. It holds for the whole process; other
    allocators (jemalloc, musl) are left as they are.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(option, 2**31 - 1)
