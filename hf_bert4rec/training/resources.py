"""Resources of a training run: an estimate of its memory, and settings of the C library and of threads."""

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from functools import cache

import psutil
import torch
from transformers import PreTrainedModel

from ..data.arguments import check_count
from ..models.item_loss import LOSSES
from ..models.modeling_gru4rec import Gru4RecConfig

logger = logging.getLogger(__name__)

GB = 10**9
FRAGMENTATION = 1.25  # memory that an allocator holds when it keeps freed blocks, as a multiple of what is in use
SMALLER_MODEL = "a smaller `hidden_size`, or exclude rare items (`min_item_interactions`)"
MANY_ITEMS = 100_000  # from this size on, a step with `softmax` takes 15 times as long as with `sampled_softmax`


@dataclass
class MemoryEstimate:
    """Peak memory of training in GB (10^9 bytes) by part, without libraries and data, and advice to reduce memory."""

    parameters: float
    gradients: float
    optimizer_state: float
    activations: float
    loss: float
    advice: str

    @property
    def total(self) -> float:
        """Sum of the parts in GB."""
        return self.parameters + self.gradients + self.optimizer_state + self.activations + self.loss

    def __str__(self) -> str:
        parts = [f"{name.replace('_', ' ')} {format_memory(it)}" for name, it in vars(self).items() if name != "advice"]
        return f"{format_memory(self.total)} ({', '.join(parts)})"


def format_memory(gigabytes: float) -> str:
    """Return an amount of memory as text with its unit, such as "1.25 GB" or "80.0 MB"."""
    return f"{gigabytes:.2f} GB" if gigabytes >= 0.1 else f"{1000 * gigabytes:.1f} MB"


def estimate_memory(
    model: PreTrainedModel,
    batch_size: int,
    length: int,
    scored_share: float = 0.2,
    gradient_checkpointing: bool = False,
) -> MemoryEstimate:
    """Estimate the peak memory of float32 training steps with AdamW from the shapes alone.

    The estimate counts the values that the backward pass needs per position. With width d and feed-forward width f:
    4 d for the embeddings (6 d with a convolution), 10 d + 2 f and the attention weights for each layer, 2 d for keys
    and values of the last layer (its other values exist at scored positions only), and 3 f for the current layer. With
    gradient checkpointing, layers before the last keep only their input. A layer of a GRU keeps 9 d. `repeat_head` adds
    8 values per scored position and position of its row, `num_followers` 8 values per scored position and follower.

    Without gradient checkpointing, activations and loss are multiplied by 1.25, for freed memory that is kept. Sharding
    (FSDP), other optimizers, half precision and frozen weights are not taken into account.

    Args:
        model: A model of the package. A model on the meta device needs no memory.
        batch_size: Rows per step and device.
        length: Length of the longest row.
        scored_share: Share of the positions that are scored: `scored_share` of the collator, which is usually
            `mask_probability`, and 1 in next-item training. At least one position per row is counted.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
    """
    check_count("batch_size", batch_size)
    check_count("length", length)
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows, d, f, layers = config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers
    positions, table = batch_size * length, rows * (d + 1)
    scored = max(batch_size, positions * min(1, scored_share))
    if isinstance(config, Gru4RecConfig):
        activations = positions * d * (4 + 9 * layers)
    else:
        # Attention weights exist with eager attention, and three times with dropout on them.
        copies = 3 if config.attention_probs_dropout_prob else int(config._attn_implementation == "eager")
        layer = 10 * d + 2 * f + config.num_attention_heads * length * copies
        embeddings = (4 if config.conv_kernel_size is None else 6) * d
        if gradient_checkpointing:
            activations = positions * (embeddings + (layers - 1) * d + layer + f)
        else:
            activations = positions * (embeddings + (layers - 1) * layer + 2 * d + 3 * f) + scored * layer
    # `repeat_head` scores all positions, and `num_followers` all followers, for each scored position.
    activations += 8 * scored * (length * config.repeat_head + config.num_followers)
    if not LOSSES[config.loss].samples_negatives:
        loss = min(config.loss_chunk_size, scored) * rows + 2 * table + scored * 2 * d
        advice = "a smaller `loss_chunk_size`"
        if not (config.repeat_head or config.num_followers):  # they need this loss
            advice = f"the loss `sampled_softmax`, or {advice}"
    elif config.share_negatives:
        loss = 4 * scored * config.num_negatives + table
        advice = "a smaller `num_negatives`"
    else:
        loss = 2 * scored * config.num_negatives * d + table
        advice = "`share_negatives=True`, or a smaller `num_negatives`"
    held = 1 if gradient_checkpointing else FRAGMENTATION  # with checkpointing freed memory is returned
    if 4 * parameters > held * max(activations, loss):
        advice = SMALLER_MODEL
    elif activations > loss:
        possible = model.supports_gradient_checkpointing and not gradient_checkpointing
        advice = "a smaller `per_device_train_batch_size`" + (", or `gradient_checkpointing=True`" if possible else "")
    weights, followers, unit = 4 * parameters / GB, 8 * rows * config.num_followers / GB, 4 * held / GB
    return MemoryEstimate(weights + followers, weights, 2 * weights, unit * activations, unit * loss, advice)


def free_memory(device: torch.device) -> float:
    """Return the free memory of a device in GB; for a CPU, divided by the training processes of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GB
    return psutil.virtual_memory().available / GB / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def peak_memory() -> float:
    """Return the largest resident memory of this process so far, in GB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / GB
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


def check_memory(estimate: MemoryEstimate) -> None:
    """Raise MemoryError if the parameters alone need more than all memory of this machine, swap included."""
    available = (psutil.virtual_memory().total + psutil.swap_memory().total) / GB
    if estimate.parameters > available:
        needed, memory = map(format_memory, (estimate.parameters, available))
        found = f"The parameters of the model need {needed}, but this machine has {memory} of memory, including swap"
        raise MemoryError(f"{found}. Use {SMALLER_MODEL}.")


def keep_freed_memory(keep: bool = True) -> None:
    """Let glibc keep freed memory for later operations (`keep`), or return blocks above 1 MB to the system at once.

    By default glibc returns blocks above 32 MB at once, and the next step gets new pages that must be cleared first.
    Training is 1.1 to 1.2 times faster when freed blocks are kept, but the process does not shrink. With gradient
    checkpointing, the gaps between kept blocks would exceed the saved memory. Other C libraries are not affected.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(option, 2**31 - 1 if keep else 2**20)


@cache
def warn_about_spinning_threads() -> None:
    """Warn once per process if waiting threads may spin, which makes small models up to 30 times slower."""
    if torch.get_num_threads() > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        logger.warning(
            "OMP_WAIT_POLICY is not PASSIVE. On a busy machine, waiting threads make small models much slower. "
            'Set the environment variable before torch is imported: os.environ["OMP_WAIT_POLICY"] = "PASSIVE".'
        )
