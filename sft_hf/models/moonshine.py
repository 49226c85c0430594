"""A small Moonshine for where no pretrained one can be had: waveform to word pieces by an encoder and a decoder, from scratch.

    processor = build_processor(["turn on the light", "stop the radio"])
    config = small_moonshine_config()
    config.vocab_size = len(processor.tokenizer)
    model = MoonshineForConditionalGeneration(config)       # 2.6 million parameters; the smallest published one has 27

The architecture is that of Jeffries et al. 2024 (https://arxiv.org/abs/2410.15608), as transformers has it; only the sizes are ours.
"""

from collections.abc import Iterable

from transformers import MoonshineConfig, PreTrainedTokenizerFast, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<pad>", "<s>", "</s>"


def small_moonshine_config() -> MoonshineConfig:
    """The sizes, with the special tokens of `build_processor`."""
    return MoonshineConfig(
        hidden_size=144,
        intermediate_size=576,
        encoder_num_hidden_layers=4,
        decoder_num_hidden_layers=3,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        max_position_embeddings=194,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def build_processor(texts: Iterable[str], *, vocab_size: int = 512, sampling_rate: int = 16_000) -> Wav2Vec2Processor:
    """A processor whose tokenizer is trained on transcripts: byte-level BPE (Sennrich et al. 2016), so that no text is unknown.

    The same texts give the same tokenizer; `vocab_size` is an upper limit.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        split_special_tokens=True,  # a transcript that says "</s>" is four characters
    )
    extractor = Wav2Vec2FeatureExtractor(
        sampling_rate=sampling_rate, do_normalize=True, return_attention_mask=True, padding_value=0.0
    )
    return Wav2Vec2Processor(extractor, fast)
