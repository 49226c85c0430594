"""A recurrent recogniser of speech, trained from scratch: log-mel, convolutions, bidirectional LSTM layers, CTC.

    tokenizer = build_tokenizer(transcripts)
    model = CrnnForCTC(CrnnConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    inputs = build_processor(tokenizer)(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")
    logits = model(**inputs).logits    # (batch, frames, vocab), 25 frames a second; token 0, [PAD], is the blank

The classical recogniser before attention, in the shape of Deep Speech 2 (Amodei et al. 2015,
https://arxiv.org/abs/1512.02595), with layer in place of batch normalisation, so that neither an utterance's logits nor its
gradient depend on the batch around it. Importing this module registers it with AutoConfig, AutoModel, AutoModelForCTC and
AutoModelForAudioClassification.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from sft_hf.losses import loss_of_a_head
from sft_hf.losses.ctc import CtcLoss
from sft_hf.models.lstm import LstmLayer, initialise_gates, pooled

if TYPE_CHECKING:  # registering happens in the middle of transformers' own imports, which cannot give these yet
    from transformers import PreTrainedTokenizerBase, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

SMALLEST_POWER = 1e-20  # of a mel band: digital silence has a logarithm too
DYNAMIC_RANGE = 8.0  # decades (80 dB) below an utterance's loudest band; what is quieter counts as that quiet


class CrnnConfig(PreTrainedConfig):
    """The sizes of a recurrent recogniser.

    `window_length` and `hop_length` are in samples: 25 and 10 ms. Each convolution halves the mel bands, and has its own
    stride over time in `conv_stride`. `hidden_size` is that of one direction. `dropout` applies before each LSTM layer and
    before the head. `mask_*` are SpecAugment's as wav2vec2 has them, in hops and mel bands: the share that is masked, were
    there no overlaps, in spans of a fixed length; only in training, and only if `apply_spec_augment`.
    """

    model_type = "sft_hf_crnn"

    vocab_size: int = 32
    sampling_rate: int = 16_000
    num_mel_bins: int = 80
    window_length: int = 400
    hop_length: int = 160
    conv_channels: int = 32
    conv_stride: list[int] | tuple[int, ...] = (2, 2, 1)
    hidden_size: int = 128
    num_hidden_layers: int = 2
    dropout: float = 0.1
    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_feature_prob: float = 0.1
    mask_feature_length: int = 10
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any):
        self.conv_stride = list(self.conv_stride)  # as it comes back from config.json
        super().__post_init__(**kwargs)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples for each frame of logits; transformers' pipeline takes chunks and timestamps from it."""
        return self.hop_length * math.prod(self.conv_stride)


class CrnnConvolutions(nn.Module):
    """Strided 2-D convolutions over time and mel bands, whose outputs never see the padding."""

    def __init__(self, config: CrnnConfig):
        super().__init__()
        self.strides = config.conv_stride
        sizes = [1] + [config.conv_channels] * len(self.strides)
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, config.conv_channels, kernel_size=3, stride=(stride, 2), padding=1)
            for inputs, stride in zip(sizes, self.strides, strict=False)
        )
        bins = config.num_mel_bins
        for _ in self.strides:
            bins = _strided(bins, 2)
        self.output_size = config.conv_channels * bins

    def forward(self, features: Tensor, num_frames: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(batch, frames, bins)` to `(batch, shorter, output_size)`, and the frame counts `(batch,)` with them."""
        hidden_states = features[:, None]
        for layer, stride in zip(self.layers, self.strides, strict=True):
            hidden_states, num_frames = layer(hidden_states).relu(), _strided(num_frames, stride)
            is_padding = _is_padding(num_frames, hidden_states.shape[2])
            hidden_states = hidden_states.masked_fill(is_padding[:, None, :, None], 0)
        return hidden_states.transpose(1, 2).flatten(start_dim=2), num_frames


class CrnnPreTrainedModel(PreTrainedModel):
    """What the models share: the config, the prefix of the base model, the initialisation and the frames."""

    config_class = CrnnConfig
    base_model_prefix = "crnn"
    main_input_name = "input_values"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            for name, parameter in module.named_parameters():
                # A checkpoint's weights carry this flag, which slices of them do not.
                if not getattr(parameter, "_is_hf_initialized", False):
                    initialise_gates(name, parameter)
        else:
            super()._init_weights(module)

    def _get_feat_extract_output_lengths(self, input_lengths: Tensor | int) -> Tensor:
        """Return the numbers of frames for numbers of samples, at least 1."""
        return _strided(torch.as_tensor(input_lengths), self.config.inputs_to_logits_ratio).clamp(min=1)


class CrnnModel(CrnnPreTrainedModel):
    """Log-mel features, convolutions and bidirectional LSTM layers, each of which normalises what it is given."""

    def __init__(self, config: CrnnConfig):
        super().__init__(config)
        self.convolutions = CrnnConvolutions(config)
        sizes = [self.convolutions.output_size] + [2 * config.hidden_size] * config.num_hidden_layers
        # CTC begins with nothing but blanks (Zeyer et al. 2021, https://arxiv.org/abs/2105.14849), and with one of these on
        # each layer that is soon over. Error rate of characters on AN4 after 250 steps from scratch, batch 8, 2e-3, one
        # seed: 0.62; 1.0 with the first alone; 0.91 with a bias of -2 for the blank as well.
        self.layer_norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes[:-1])
        self.layers = nn.ModuleList(LstmLayer(size, config.hidden_size) for size in sizes[:-1])
        self.final_layer_norm = nn.LayerNorm(sizes[-1])
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @can_return_tuple
    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """Return hidden states `(batch, frames, 2 * hidden_size)`.

        `input_values` are waveforms `(batch, samples)`, and `attention_mask` is 1 where they are not padding. Waveforms
        must be padded on the right, and then neither the padding nor what stands in it changes anything of an utterance's
        own frames. Raises `ValueError` for padding elsewhere.
        """
        dtype = self.final_layer_norm.weight.dtype
        features, num_frames = log_mel(input_values, _lengths(input_values, attention_mask), self.config)
        if self.training and self.config.apply_spec_augment:
            features = spec_augment(features, num_frames, self.config)
        hidden_states, num_frames = self.convolutions(features.to(dtype), num_frames)
        # In the weights' precision: under bfloat16 autocast oneDNN has no LSTM for a CPU without bfloat16.
        with torch.autocast(input_values.device.type, enabled=False):
            hidden_states = hidden_states.to(dtype)
            for layer_norm, layer in zip(self.layer_norms, self.layers, strict=True):
                hidden_states = layer(self.dropout(layer_norm(hidden_states)), num_frames)
            return BaseModelOutput(self.final_layer_norm(hidden_states))


class CrnnForCTC(CrnnPreTrainedModel):
    """The recogniser: a linear layer over each frame."""

    # transformers' Trainer counts the labels that differ from -100, and CTC is a mean over utterances (pitfall 1).
    accepts_loss_kwargs = False

    def __init__(self, config: CrnnConfig):
        super().__init__(config)
        self.crnn = CrnnModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(2 * config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> CausalLMOutput:
        """Return logits `(batch, frames, vocab_size)` and, given labels, the mean of `CtcLoss` over the utterances.

        Inputs are those of `CrnnModel`, labels are `(batch, length)`, padded with -100. Frames of the padding are blank, so
        that decoding them adds nothing.
        """
        num_frames = self._get_feat_extract_output_lengths(_lengths(input_values, attention_mask))
        hidden_states = self.crnn(input_values, attention_mask, return_dict=True).last_hidden_state
        logits = self._blank_padding(self.lm_head(self.dropout(hidden_states)), num_frames)
        loss = None if labels is None else self._loss(logits, labels, num_frames)
        return CausalLMOutput(loss=loss, logits=logits)

    def _blank_padding(self, logits: Tensor, num_frames: Tensor) -> Tensor:
        blank = torch.zeros_like(logits[0, 0])
        blank[self.config.pad_token_id] = 1
        return torch.where(_is_padding(num_frames, logits.shape[1])[..., None], blank, logits)

    def _loss(self, logits: Tensor, labels: Tensor, num_frames: Tensor) -> Tensor:
        loss = CtcLoss(blank_id=self.config.pad_token_id)
        return loss(logits, labels, num_frames) / loss.denominator(labels)


class CrnnForAudioClassification(CrnnPreTrainedModel):
    """A linear classifier over the max and the mean over a clip's frames."""

    def __init__(self, config: CrnnConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.crnn = CrnnModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(4 * config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Return logits `(batch, num_labels)` and, given labels, the loss that `problem_type` asks for.

        Inputs are those of `CrnnModel`; labels are those of `sft_hf.losses`. The loss is divided by `num_items_in_batch`,
        the labels of the whole global batch, or else by the labels given here.
        """
        num_frames = self._get_feat_extract_output_lengths(_lengths(input_values, attention_mask))
        hidden_states = self.crnn(input_values, attention_mask, return_dict=True).last_hidden_state
        logits = self.classifier(self.dropout(pooled(hidden_states, num_frames)))
        loss = None
        if labels is not None:
            options = {"problem_type": self.config.problem_type, "num_items_in_batch": num_items_in_batch}
            loss = loss_of_a_head(logits, labels, **options)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@torch.no_grad()
def log_mel(waveforms: Tensor, lengths: Tensor, config: CrnnConfig) -> tuple[Tensor, Tensor]:
    """Return log-mel features `(batch, frames, num_mel_bins)`, zero mean and unit variance in each band, and frame counts.

    Waveforms are `(batch, samples)`, of which the first `lengths` `(batch,)` count; louder ones give the same features.
    Frames stand `hop_length` apart from the first sample on, zeros lie before and after the clip, and only its own
    frames are normalised over. Computed in float32, under autocast and for bfloat16 waveforms too.
    """
    with torch.autocast(waveforms.device.type, enabled=False):
        waveforms = waveforms.float().masked_fill(_is_padding(lengths, waveforms.shape[1]), 0)
        num_frames = _strided(lengths, config.hop_length).clamp(min=1)
        spectrum = torch.stft(
            waveforms,
            n_fft=config.window_length,
            hop_length=config.hop_length,
            window=_window(config.window_length, waveforms.device),
            # Reflection would show an utterance its own end, or the padding's, depending on the batch.
            pad_mode="constant",
            return_complex=True,
        )[..., : max(1, _strided(waveforms.shape[1], config.hop_length))]
        power = spectrum.real.square() + spectrum.imag.square()
        filters = _mel_filters(config.window_length, config.num_mel_bins, config.sampling_rate, waveforms.device)
        features = (filters @ power).clamp(min=SMALLEST_POWER).log10().transpose(1, 2)
        return _normalise(features, num_frames), num_frames


def _normalise(features: Tensor, num_frames: Tensor) -> Tensor:
    is_padding = _is_padding(num_frames, features.shape[1])[..., None]
    # Digital silence would otherwise be an outlier that the rest is measured by.
    loudest = features.masked_fill(is_padding, -torch.inf).amax(dim=(1, 2), keepdim=True)
    features = features.maximum(loudest - DYNAMIC_RANGE)
    counts = num_frames[:, None, None]
    centred = features - features.masked_fill(is_padding, 0).sum(dim=1, keepdim=True) / counts
    centred = centred.masked_fill(is_padding, 0)
    variances = centred.square().sum(dim=1, keepdim=True) / counts
    return centred / (variances + 1e-5).sqrt()


def spec_augment(features: Tensor, num_frames: Tensor, config: CrnnConfig) -> Tensor:
    """Return normalised features `(batch, frames, bins)` with spans of time and of bands set to their mean, 0.

    SpecAugment (Park et al. 2019, https://arxiv.org/abs/1904.08779) without time warping, drawn from torch's generator.
    """
    _, frames, bins = features.shape
    in_time = _draw_spans(num_frames, frames, share=config.mask_time_prob, length=config.mask_time_length)
    num_bins = torch.full_like(num_frames, bins)
    in_bands = _draw_spans(num_bins, bins, share=config.mask_feature_prob, length=config.mask_feature_length)
    return features.masked_fill(in_time[:, :, None] | in_bands[:, None, :], 0)


def _draw_spans(sizes: Tensor, largest: int, *, share: float, length: int) -> Tensor:
    """Return which of `largest` steps are in random spans, `(batch, largest)`; `sizes` `(batch,)` are the steps there are."""
    # Rounded up or down at random, so that short utterances get their share.
    counts = (sizes * share / length + torch.rand(len(sizes), device=sizes.device)).floor()
    numbers = torch.arange(math.ceil(largest * share / length) + 1, device=sizes.device)
    starts = torch.rand(len(sizes), len(numbers), device=sizes.device) * (sizes - length + 1).clamp(min=1)[:, None]
    offsets = torch.arange(largest, device=sizes.device) - starts.floor()[..., None]  # (batch, spans, largest)
    is_drawn = (numbers < counts[:, None])[..., None]
    return ((offsets >= 0) & (offsets < length) & is_drawn).any(dim=1)


def build_feature_extractor(*, sampling_rate: int = 16_000) -> "Wav2Vec2FeatureExtractor":
    """Return an extractor that pads waveforms and says where, and changes nothing else of them."""
    from transformers import Wav2Vec2FeatureExtractor

    return Wav2Vec2FeatureExtractor(sampling_rate=sampling_rate, do_normalize=False, return_attention_mask=True)


def build_processor(tokenizer: "PreTrainedTokenizerBase", *, sampling_rate: int = 16_000) -> "Wav2Vec2Processor":
    """Return the extractor of `build_feature_extractor` and a tokenizer as one."""
    from transformers import Wav2Vec2Processor

    return Wav2Vec2Processor(build_feature_extractor(sampling_rate=sampling_rate), tokenizer)


def register() -> None:
    """Make the Auto classes of transformers know the models; calling it again changes nothing."""
    AutoConfig.register(CrnnConfig.model_type, CrnnConfig, exist_ok=True)
    AutoModel.register(CrnnConfig, CrnnModel, exist_ok=True)
    AutoModelForCTC.register(CrnnConfig, CrnnForCTC, exist_ok=True)
    AutoModelForAudioClassification.register(CrnnConfig, CrnnForAudioClassification, exist_ok=True)


# Neither is a buffer: from_pretrained builds models without memory and fills in what a checkpoint has, and a model
# in bfloat16 would round them.
@lru_cache(maxsize=8)
def _window(length: int, device: torch.device) -> Tensor:
    return torch.hann_window(length, device=device)


@lru_cache(maxsize=8)
def _mel_filters(window_length: int, num_mel_bins: int, sampling_rate: int, device: torch.device) -> Tensor:
    """Return triangular filters `(num_mel_bins, frequencies)` on Slaney's mel scale, as librosa and Whisper have them."""
    filters = mel_filter_bank(
        num_frequency_bins=window_length // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.tensor(filters.T, dtype=torch.float32, device=device)


def _strided(size, stride: int):
    """Return how many steps of `stride` begin within `size`, an int or a tensor: the quotient, rounded up."""
    return -(-size // stride)


def _is_padding(lengths: Tensor, size: int) -> Tensor:
    """Return which of `size` steps are none of the first `lengths` `(batch,)`: `(batch, size)`."""
    return torch.arange(size, device=lengths.device) >= lengths[:, None]


def _lengths(waveforms: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the number of samples `(batch,)` of a mask `(batch, samples)`."""
    if attention_mask is None:
        return torch.full((len(waveforms),), waveforms.shape[1], device=waveforms.device)
    mask = attention_mask.bool()
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError(
            'The recogniser takes waveforms padded on the right: set feature_extractor.padding_side = "right".'
        )
    return mask.sum(dim=1)


register()
