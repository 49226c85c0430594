"""The multilayer perceptron of introductions, 784-128-64-10, as a model that transformers saves and reloads.

    model = MlpForImageClassification(MlpConfig(num_labels=10))
    logits = model(pixel_values).logits    # (batch, 1, 28, 28), or grey pictures as RGB (batch, 3, 28, 28) -> (batch, 10)

Rumelhart, Hinton and Williams 1986, Learning representations by back-propagating errors, with rectifiers (Glorot et
al. 2011). Importing this module registers it with AutoConfig and AutoModelForImageClassification.
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from sft_hf.losses import loss_of_a_head


class MlpConfig(PreTrainedConfig):
    """The sizes of a multilayer perceptron over square pictures; `image_size` is their side in pixels."""

    model_type = "sft_hf_mlp"

    image_size: int = 28
    num_channels: int = 1
    hidden_sizes: list[int] | tuple[int, ...] = (128, 64)
    hidden_act: str = "relu"
    hidden_dropout_prob: float = 0.0

    def __post_init__(self, **kwargs: Any):
        self.hidden_sizes = list(self.hidden_sizes)  # as it comes back from config.json
        super().__post_init__(**kwargs)


class MlpForImageClassification(PreTrainedModel):
    """Hidden layers over the pixels of a picture, and a linear classifier over the last of them."""

    config_class = MlpConfig
    base_model_prefix = "mlp"
    main_input_name = "pixel_values"

    def __init__(self, config: MlpConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        sizes = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.mlp = nn.Sequential()
        for inputs, outputs in pairwise(sizes):
            self.mlp.extend(
                [nn.Linear(inputs, outputs), ACT2FN[config.hidden_act], nn.Dropout(config.hidden_dropout_prob)]
            )
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights and biases as torch's own Linear has them: uniform, up to one over the root of the number of inputs.

        The library's normal with 0.02 suits models that normalise their activations. Mean negative log-likelihood of the
        tenth epoch on 4,000 digits of MNIST, plain SGD at 0.01, batch 64, one seed: 0.39 so, 1.75 with 0.02.
        """
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Return logits `(batch, num_labels)` and, given labels, the loss that `problem_type` asks for.

        `pixel_values` are `(batch, num_channels, image_size, image_size)`. Where `num_channels` is 1 they may have 3,
        and the mean over them is taken, because transformers' pipeline makes every picture RGB: for grey pictures that is
        exact. Labels are those of `sft_hf.losses`, and the loss is divided by `num_items_in_batch`, the labels of the
        whole global batch, or else by the labels given here. Raises `ValueError` for other sizes.
        """
        hidden = self.mlp(self._grey(pixel_values).flatten(start_dim=1))
        logits = self.classifier(hidden)
        loss = None
        if labels is not None:
            options = {"problem_type": self.config.problem_type, "num_items_in_batch": num_items_in_batch}
            loss = loss_of_a_head(logits, labels, **options)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _grey(self, pixel_values: Tensor) -> Tensor:
        """Return pixels of the shape that the config says."""
        channels, side = self.config.num_channels, self.config.image_size
        given = tuple(pixel_values.shape)
        if given[1:] == (3, side, side) and channels == 1:
            return pixel_values.mean(dim=1, keepdim=True)
        if given[1:] != (channels, side, side):
            raise ValueError(
                f"pixel_values are {given}, expected (batch, {channels}, {side}, {side})"
                + (f", or RGB (batch, 3, {side}, {side})" if channels == 1 else "")
                + ": set the image processor's size, or image_size and num_channels of the config."
            )
        return pixel_values


def register() -> None:
    """Make the Auto classes of transformers know the perceptron; calling it again changes nothing."""
    AutoConfig.register(MlpConfig.model_type, MlpConfig, exist_ok=True)
    AutoModelForImageClassification.register(MlpConfig, MlpForImageClassification, exist_ok=True)


register()
