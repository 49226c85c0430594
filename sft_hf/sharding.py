"""What has to hold around a model whose weights are shared among ranks (FSDP, DeepSpeed ZeRO).

    with whole_models():                              # also under accelerate_configs/zero3.yaml
        model = AutoModel.from_pretrained(...)        # every rank has all of it; sharing begins with the training
    layers_to_shard(model)                            # ["BertLayer"]: what is gathered, used and freed as one

Seen on two CPU ranks, where accelerate was told to take its sharded paths (tests/test_sharding.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import FullyShardedDataParallelPlugin
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import deepspeed


@contextmanager
def whole_models() -> Iterator[None]:
    """Inside, transformers makes whole models, whatever a DeepSpeed file says.

    Under a ZeRO-3 file it would share the weights out while it makes a model, with `zero3_init_flag: false` too: all ranks have to
    be there for each weight, and they are not where one prepares the data first or one alone checks what was saved. What is written
    into such a weight afterwards (a head that starts at the labels' base rates) is lost.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference


@contextmanager
def whole_weights(model: nn.Module, *, gather_again: bool = True) -> Iterator[None]:
    """Inside, every rank has all weights of a sharded model, and a forward pass waits for no other rank; all have to enter.

    In evaluation ranks do different numbers of passes: windows of large pictures and long clips, clips of one length, texts that end
    at different lengths. While the weights are shared, the one with fewer would leave the others waiting for ever. It takes the
    memory of one copy of the weights (with FSDP in the precision that it computes in). `gather_again` is FSDP's
    `reshard_after_forward`, which is put back. What BatchNorm has counted, each rank for itself, becomes the first rank's, which is saved.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    partitioned = [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]
    if units or partitioned:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)
    if units:
        with _unsharded(model, units, gather_again=gather_again):
            yield
    elif partitioned:
        with _gathered(partitioned):
            yield
    else:
        yield


@contextmanager
def _unsharded(model: FSDPModule, units: list[FSDPModule], *, gather_again: bool) -> Iterator[None]:
    model.set_reshard_after_forward(False)
    for unit in units:
        unit.unshard()
    # The Trainer has registered `generate` with FSDP, which shares the root's weights out when it ends; the class's own does not.
    registered = {name: vars(model).pop(name) for name in ("generate",) if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(registered)
        for unit in units:
            unit.reshard()
        model.set_reshard_after_forward(gather_again)
        model.set_reshard_after_forward(
            False, recurse=False
        )  # as accelerate makes it: backward begins where forward ended


@contextmanager
def _gathered(partitioned: list[nn.Parameter]) -> Iterator[None]:
    from deepspeed import zero

    persist = [parameter.ds_persist for parameter in partitioned]
    with zero.GatheredParameters(partitioned):
        for parameter in partitioned:
            parameter.ds_persist = True  # or a layer's forward pass would share it out again
        try:
            yield
        finally:
            for parameter, before in zip(partitioned, persist, strict=True):
                parameter.ds_persist = before


def fit_fsdp(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Make of a model what accelerate's FSDP takes: layers to cut at, unless the file names them, and plain weights.

    A model of pictures or sounds may have no input embeddings, and transformers raises NotImplementedError when asked. FSDP cuts
    contiguous weights only, not those of pictures in channels_last.
    """
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or layers_to_shard(model)
    if _input_embeddings(model) is None:
        model.get_input_embeddings = _none
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()


def _none() -> None:
    return None


def layers_to_shard(model: nn.Module) -> list[str]:
    """The classes of the layers of which each is one unit of FSDP: those that the model declares and holds.

    accelerate 1.15 takes the declaration (`_no_split_modules`) as it is and raises for two kinds of models: those that lack a
    declared class (a Whisper classifier has no decoder), and those whose input embeddings lie in a declared module (BertEmbeddings),
    of which it makes a unit inside of a unit.
    """
    declared = set(getattr(model, "_no_split_modules", None) or ())
    embeddings = _input_embeddings(model)
    return sorted(
        {
            type(module).__name__
            for module in model.modules()
            if type(module).__name__ in declared and all(part is not embeddings for part in module.modules())
        }
    )


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model without any
        return None
