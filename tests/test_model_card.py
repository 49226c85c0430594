"""The model card: its numbers, its example, its command, and nothing in it of the machine."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import tiny
import yaml

from sft_hf.arguments import ModelArguments
from sft_hf.data.labels import Labels
from sft_hf.data.sources import Source
from sft_hf.flags import Parsed
from sft_hf.model_card import cell, command, literal, make_card
from sft_hf.pretrained import ModelSource
from sft_hf.tasks.text_classification import TextClassification

RESULTS = {
    "metrics": {
        "validation": {"loss": 0.5, "f1_macro": 0.876543, "examples": 12, "epoch": 3.0},
        "test": {"loss": 0.25, "f1_macro": 0.75, "epoch": 3.0},
    },
    "thresholds": None,
    "training": {
        "steps": 30, "epochs": 3.0, "seconds": 12.3, "world_size": 2, "device": "cpu", "mixed_precision": "no",
    },
    "versions": {"sft_hf": "0.1.0", "torch": "2.9.0"},
}  # fmt: skip
HUB_SOURCE = Source({}, "hub", "carol/topics", config_name="short", revision="abc123", hub_id="carol/topics")
HUB_MODEL = ModelSource("carol/bert", "carol/bert", hub_id="carol/bert")
LABELS = Labels("single_label_classification", ("animals", "kitchen"))
BUILTIN_MODEL = ModelSource("builtin:lstm", "builtin:lstm", architecture="lstm", is_random=True)


def card_of(
    *,
    source=HUB_SOURCE,
    model_source=HUB_MODEL,
    base_source=None,
    hub_model_id="me/topics-bert",
    task=None,
    labels=LABELS,
    **results,
):
    """The card of a run that trained nothing. Its licence is asked of builtin:lstm, which has none."""
    trainer = SimpleNamespace(
        task=task or TextClassification(), args=SimpleNamespace(hub_model_id=hub_model_id, output_dir="runs/a")
    )
    prepared = SimpleNamespace(
        source=source, model_source=model_source, base_source=base_source or model_source, labels=labels
    )
    parsed = Parsed((None, ModelArguments("builtin:lstm")), {"seed": 1}, {"seed": "command line"})
    return make_card(trainer, prepared, {**RESULTS, **results}, parsed)


@pytest.fixture(autouse=True)
def started_as_a_recipe(monkeypatch):
    monkeypatch.setattr("sys.argv", ["somewhere/recipes/text_cls.py"])


def parsed(**values):
    """As if each were given on the command line."""
    return Parsed((), values, dict.fromkeys(values, "command line"))


# ---- the numbers ----


def test_the_table_has_a_row_for_each_metric_and_a_column_for_each_split():
    assert (
        "## Results\n\n"
        "| metric | validation | test |\n"
        "|---|---|---|\n"
        "| loss | 0.5000 | 0.2500 |\n"
        "| f1_macro | 0.8765 | 0.7500 |\n"
        "| examples | 12 |  |\n\n"
        "## Use"
    ) in card_of().text


def test_a_number_in_a_table():
    assert [cell(value) for value in (0.87654, 12, None, 0.0)] == ["0.8765", "12", "", "0.0000"]


def test_the_metadata_hold_the_same_numbers_by_the_names_of_the_hub():
    found = [
        (entry.dataset_split, entry.metric_type, entry.metric_name, entry.metric_value)
        for entry in card_of().data.eval_results
    ]
    assert found == [
        ("validation", "loss", "loss (validation)", 0.5),
        ("validation", "f1", "f1_macro (validation)", 0.87654),  # a count is no result
        ("test", "loss", "loss (test)", 0.25),
        ("test", "f1", "f1_macro (test)", 0.75),
    ]


HOSTILE = "a | b\n---\n# <script>alert(1)</script> [x](javascript:1) ![i](u) `c` *e* \\"
SHOWN = r"a \| b --- # &lt;script&gt;alert(1)&lt;/script&gt; \[x\](javascript:1) !\[i\](u) \`c\` \*e\* \\"


def test_a_name_out_of_the_data_is_shown_and_is_no_markup():
    """Class names are whatever stands in somebody's dataset, and the Hub shows the card as a page."""
    assert literal("card_arrival, 2.5 % & more") == "card_arrival, 2.5 % &amp; more"
    assert literal("क\u200d्ष") == "क\u200d्ष"  # what joins letters stays
    assert literal(HOSTILE) == SHOWN
    labels = Labels("single_label_classification", (HOSTILE, "b"))
    card = card_of(
        source=Source({}, "folder", HOSTILE), labels=labels, per_class={"test": {"f1": {HOSTILE: 0.5, "b": 0.25}}}
    )
    assert f"| {SHOWN} | 0.5000 |\n| b | 0.2500 |\n" in card.text
    assert f"single_label_classification: {SHOWN}, b\n" in card.text
    assert f" fine-tuned on {SHOWN} with sft_hf" in card.text
    assert "<script>" not in card.text
    assert card.data.eval_results[0].dataset_name == HOSTILE  # there it is a value


def test_tuned_thresholds_are_explained_where_there_are_some():
    assert "config.thresholds" not in card_of().text
    assert "reaches its threshold in `config.thresholds`, tuned on validation" in card_of(thresholds=[0.4, 0.6]).text


def test_how_it_was_trained_is_said():
    text = card_of().text
    assert "30 steps, 3.0 epochs, 12 s on 2 process(es) (cpu, mixed precision no)." in text
    assert "```bash\naccelerate launch recipes/text_cls.py --seed 1\n```" in text
    assert "single_label_classification: animals, kitchen\n" in text
    assert "Versions: sft_hf 0.1.0, torch 2.9.0.\n" in text


# ---- names ----


def test_what_the_hub_has_is_named_as_the_hub_names_it():
    card = card_of()
    assert card.text.startswith(
        "\n# topics-bert\n\ncarol/bert fine-tuned on carol/topics with sft_hf for text classification.\n"
    )
    assert (card.data.model_name, card.data.base_model, card.data.datasets) == (
        "topics-bert",
        "carol/bert",
        ["carol/topics"],
    )
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_revision) == ("carol/topics", "short", "abc123")


def test_what_the_hub_does_not_have_is_in_no_field_that_the_hub_looks_up():
    """Pitfall 35."""
    source = Source({}, "builtin", "builtin:two words")
    card = card_of(source=source, model_source=ModelSource("/some/where/bert", "/some/where/bert"), hub_model_id=None)
    assert card.text.startswith("\n# a\n\nbert fine-tuned on builtin:two words with sft_hf")
    assert (card.data.base_model, card.data.datasets) == (None, None)
    assert card.data.eval_results[0].dataset_type == "two_words"
    assert "/some/where" not in str(card)
    assert "builtin:lstm trained from random weights on" in card_of(model_source=BUILTIN_MODEL).text


def test_a_pretrained_backbone_is_the_base_model():
    card = card_of(model_source=BUILTIN_MODEL, base_source=HUB_MODEL)
    assert "builtin:lstm over the pretrained backbone carol/bert fine-tuned on" in card.text
    assert card.data.base_model == "carol/bert"


def test_the_card_of_a_run_is_valid_for_data_that_the_hub_does_not_have(tmp_path):
    """Pitfall 35: names of local data are no dataset ids, and the Hub refuses such a card."""
    world = tmp_path / "world"
    world.mkdir()
    tiny.save_bert(world / "bert")
    tiny.write_rows(world / "train.csv", tiny.rows(96))
    tiny.run_recipe(
        *("--train_file", world / "train.csv", "--model_name_or_path", world / "bert"),
        *("--output_dir", tmp_path / "run"),
    )
    text = (tmp_path / "run" / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---")[1])
    assert "datasets" not in metadata
    assert metadata["pipeline_tag"] == "text-classification"
    assert metadata["model-index"][0]["results"][0]["dataset"] == {
        "name": "world",  # of the folder: train.csv says nothing
        "type": "world",
        "split": "validation",
    }
    assert str(tmp_path) not in text
    assert "--train_file train.csv" in text


# ---- the example ----


@dataclass(frozen=True)
class Segmentation(TextClassification):
    """As far as a card knows it."""

    pipeline_tag = "image-segmentation"

    def usage_example(self) -> str:
        return 'segmenter("photo.png")'


def test_the_example_calls_the_pipeline_as_the_task_does():
    assert (
        "```python\n"
        "from transformers import pipeline\n\n"
        'classifier = pipeline("text-classification", model="me/topics-bert")\n'
        'classifier("...", truncation=True)\n'
        "```"
    ) in card_of().text
    assert (
        'segmenter = pipeline("image-segmentation", model="path/to/this/folder")\nsegmenter("photo.png")\n```'
    ) in card_of(task=Segmentation(), hub_model_id=None).text


def test_an_architecture_of_ours_is_registered_first():
    text = card_of(model_source=BUILTIN_MODEL).text
    assert "```python\nimport sft_hf  # registers the architecture\nfrom transformers import pipeline\n" in text
    assert "import sft_hf" not in card_of().text


# ---- the command ----


def test_the_command_has_the_flags_that_differ_from_the_recipe_s():
    values = {"learning_rate": 5e-5, "weight_decay": 0.1, "seed": 1, "bf16": True, "class_names": "a b,c"}
    layers = {"learning_rate": "command line", "weight_decay": "recipe", "bf16": "run.yaml", "class_names": "run.yaml"}
    assert command(Parsed((), values, layers)) == (
        "accelerate launch recipes/text_cls.py --bf16 true --class_names 'a b,c' --learning_rate 5e-05"
    )


def test_the_command_has_neither_secrets_nor_folders():
    given = parsed(
        token="hf_read", output_dir="/some/where/a", cache_dir="/some/cache", train_file=["/x/a.csv", "b.csv"]
    )
    assert command(given) == "accelerate launch recipes/text_cls.py --train_file a.csv b.csv"


def test_a_default_that_was_taken_back_has_no_form_on_the_command_line():
    assert command(parsed(save_total_limit=None, seed=3)) == "accelerate launch recipes/text_cls.py --seed 3"
