"""The small Moonshine: its tokenizer and its sizes."""

import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, pipeline

from sft_hf.models.moonshine import build_processor, small_moonshine_config

TEXTS = ["turn on the light", "stop the radio", "turn off the light"]


def test_every_text_comes_back_from_its_tokens():
    tokenizer = build_processor(TEXTS).tokenizer
    for text in [*TEXTS, "Ünknown, 漢字 & |pipes| </s>?", ""]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("turn on the light").input_ids) == 4, "frequent words are one piece each"


def test_the_same_texts_give_the_same_tokenizer():
    first, second = (build_processor(TEXTS).tokenizer.get_vocab() for _ in range(2))
    assert first == second
    assert {first[token] for token in ("<pad>", "<s>", "</s>")} == {0, 1, 2}


def test_it_is_saved_and_runs_in_the_pipeline(tmp_path):
    processor, config = build_processor(TEXTS), small_moonshine_config()
    config.vocab_size = len(processor.tokenizer)
    model = AutoModelForSpeechSeq2Seq.from_config(config).eval()
    assert 1.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6
    model.generation_config.max_length, model.generation_config.num_beams = 6, 1
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.eos_token_id == 2
    waveform = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    with torch.no_grad():
        ids = model.generate(**processor(waveform, sampling_rate=16_000, return_tensors="pt"))
    answer = pipeline("automatic-speech-recognition", model=str(tmp_path))({"raw": waveform, "sampling_rate": 16_000})
    assert answer["text"] == processor.tokenizer.decode(ids[0], skip_special_tokens=True)
