"""From a mask's file to train ids: what each kind of file means, and what is ignored, once and for all."""

import io
import json
import logging
import pickle
import re
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from sft_hf.errors import ArgumentError, DataError
from sft_hf.losses import IGNORE_INDEX, make_loss
from sft_hf.vision.masks import (
    MaskClasses,
    check_pair,
    mask_histogram,
    pixel_counts,
    read_color_table,
    read_mask,
    resolve_mask_classes,
)

IDS = [[0, 1, 2], [7, 7, 255]]
ROAD_AND_CAR = {(0, 0, 0): 0, (128, 64, 128): 1, (0, 0, 142): 2}


def file_of(picture, *, name="masks/a.png", **options):
    """A row of an Image(decode=False) column."""
    buffer = io.BytesIO()
    picture.save(buffer, options.pop("format", "PNG"), **options)
    return {"bytes": buffer.getvalue(), "path": name}


def grey(ids=IDS):
    return Image.fromarray(np.array(ids, dtype=np.uint8))


def palette(ids=IDS):
    picture = grey(ids)
    picture.putpalette([200, 10, 10] * 256)  # one color for all: only the indices tell
    return picture


def png(depth, color_type, *, row):
    """A PNG of two pixels, of a kind that Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, depth, color_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")
    return {"bytes": b"\x89PNG\r\n\x1a\n" + b"".join(parts), "path": "masks/a.png"}


@pytest.mark.parametrize(
    "picture",
    [
        grey(),
        palette(),
        grey().convert("RGB"),
        Image.merge("LA", [grey(), Image.new("L", (3, 2), 9)]),
        Image.merge("RGBA", [grey()] * 3 + [Image.new("L", (3, 2), 9)]),
    ],
    ids=["L", "P", "RGB", "LA", "RGBA"],
)
def test_pixels_are_ids_whatever_the_mode_and_transparency_is_ignored(picture):
    for value in (file_of(picture), picture):
        mask = read_mask(value)
        assert mask.dtype == np.uint8
        assert mask.tolist() == IDS


def test_a_transparent_palette_has_indices_too():
    """Pillow makes this mode of a palette with transparency, and writes none."""
    assert read_mask(palette().convert("PA")).tolist() == IDS


def test_one_bit_is_0_and_1():
    assert read_mask(file_of(grey([[0, 255]]).convert("1"))).tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_wide_ids_are_int32_as_they_are(mode):
    wide = Image.fromarray(np.array([[0, 300, 65535]], dtype=np.uint16 if mode == "I;16" else np.int32))
    mask = read_mask(file_of(wide, format="TIFF"))
    assert mask.dtype == np.int32
    assert mask.tolist() == [[0, 300, 65535]]


def test_a_16_bit_png_keeps_its_ids():
    assert read_mask(png(16, 0, row=struct.pack(">HH", 300, 5))).tolist() == [[300, 5]]


def test_arrays_are_masks_too():
    assert read_mask(np.array(IDS)).tolist() == IDS
    assert read_mask(np.array(IDS, dtype=np.uint8)[..., None]).tolist() == IDS
    assert read_mask(np.array([[True, False]])).tolist() == [[1, 0]]
    with pytest.raises(DataError, match=r"an array of float64 of shape \(1, 1\), expected whole numbers"):
        read_mask(np.array([[0.5]]))
    with pytest.raises(DataError, match=r"shape \(2, 2, 2\)"):
        read_mask(np.zeros((2, 2, 2), dtype=np.uint8))


def test_a_path_without_bytes_is_read(tmp_path):
    grey().save(tmp_path / "a.png")
    assert read_mask({"bytes": None, "path": str(tmp_path / "a.png")}).tolist() == IDS


def test_a_masks_own_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    assert read_mask(file_of(grey(), exif=exif)).tolist() == [[7, 0], [7, 1], [255, 2]]


def test_colors_are_looked_up_exactly():
    colors = np.array([[(0, 0, 142), (0, 0, 0), (128, 64, 128)]], dtype=np.uint8)
    picture = Image.fromarray(colors)
    for value in (file_of(picture), file_of(picture.convert("RGBA")), file_of(picture.quantize(3)), colors):
        mask = read_mask(value, colors=ROAD_AND_CAR)
        assert mask.dtype == np.uint8
        assert mask.tolist() == [[2, 0, 1]]


def test_grey_is_a_color_where_there_is_a_table():
    """Masks of black and white, as 8 bits or 1 bit, have one meaning; three pixels a row are not three channels."""
    table = {(0, 0, 0): 0, (255, 255, 255): 1}
    for value in (grey([[255, 0, 0]]), grey([[255, 0, 0]]).convert("1"), np.array([[255, 0, 0]], dtype=np.uint8)):
        assert read_mask(value, colors=table).tolist() == [[1, 0, 0]]


def test_more_than_256_colors_have_wide_ids():
    table = {(index // 256, index % 256, 9): index for index in range(300)}
    mask = read_mask(np.array([[(1, 43, 9)]], dtype=np.uint8), colors=table)
    assert mask.tolist() == [[299]]
    assert mask.dtype == np.int32


def test_an_unknown_color_is_an_error_with_the_color_the_pixels_and_the_file():
    almost = np.array([[(0, 0, 142), (0, 0, 141), (0, 0, 141), (1, 0, 0)]], dtype=np.uint8)
    said = r"masks/a.png holds the color \[0, 0, 141\] in 2 of 4 pixels \(and 1 more colors\).* 3 of --mask_colors"
    with pytest.raises(DataError, match=said):
        read_mask(file_of(Image.fromarray(almost)), colors=ROAD_AND_CAR)


def test_a_color_after_the_last_of_the_table_is_unknown_too():
    with pytest.raises(DataError, match=r"the color \[255, 255, 255\] in 1 of 1 pixels, which is not among"):
        read_mask(grey([[255]]), colors=ROAD_AND_CAR)


def test_colors_without_a_table_are_an_error():
    colors = np.array([[(5, 5, 5), (0, 0, 142)]], dtype=np.uint8)
    with pytest.raises(DataError, match=r"masks/a.png holds colors such as \[0, 0, 142\].* --mask_colors FILE"):
        read_mask(file_of(Image.fromarray(colors)))


def test_wide_ids_have_no_colors():
    with pytest.raises(DataError, match=r"masks/a.png holds uint16, and --mask_colors looks up colors of 8 bits"):
        read_mask(png(16, 0, row=struct.pack(">HH", 300, 5)), colors=ROAD_AND_CAR)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_format_with_losses_is_refused(format):
    """At quality 95 the border of a block of 7 holds ids that nobody drew."""
    ids = np.zeros((16, 16), dtype=np.uint8)
    ids[4:, 5:] = 7
    value = file_of(grey(ids), name="masks/a.jpg", format=format, quality=95)
    assert len(np.unique(Image.open(io.BytesIO(value["bytes"])))) > 2
    with pytest.raises(DataError, match=f"masks/a.jpg is a {format} file, which keeps ids and colors only nearly"):
        read_mask(value)


def test_a_tiff_with_jpeg_inside_is_refused():
    with pytest.raises(DataError, match="is a TIFF file, which keeps ids and colors only nearly"):
        read_mask(file_of(grey(np.zeros((16, 16))), format="TIFF", compression="jpeg"))


def test_several_frames_are_refused():
    with pytest.raises(DataError, match="masks/a.gif has 2 frames, expected one"):
        read_mask(
            file_of(grey(), name="masks/a.gif", format="GIF", save_all=True, append_images=[grey([[3, 3, 3]] * 2)])
        )


@pytest.mark.parametrize(("depth", "row", "read_as"), [(4, b"\x12", 17), (2, b"\x60", 85)])
def test_grey_of_few_bits_can_be_read_in_two_ways(depth, row, read_as):
    value = png(depth, 0, row=row)
    assert read_as in np.asarray(Image.open(io.BytesIO(value["bytes"])))
    with pytest.raises(DataError, match=f"grey PNG of {depth} bits, whose value 1 is read as {read_as} by most"):
        read_mask(value)


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colors_of_16_bits_would_lose_half(color_type, channels):
    with pytest.raises(DataError, match="with 16 bits a channel, of which 8 would be lost"):
        read_mask(png(16, color_type, row=b"\1\2" * 2 * channels))


@pytest.mark.parametrize("mode", ["CMYK", "F"])
def test_other_kinds_of_pictures_are_no_masks(mode):
    with pytest.raises(DataError, match=f"is of Pillow's mode {mode}, expected one of 1, I,"):
        read_mask(Image.new(mode, (2, 2)))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"bytes": b"no picture", "path": "masks/a.png"}, "masks/a.png cannot be read: cannot identify"),
        ({"bytes": file_of(grey())["bytes"][:-30], "path": "masks/a.png"}, "masks/a.png cannot be read"),
        ({"bytes": None, "path": "gone/a.png"}, "gone/a.png cannot be read: .*No such file"),
        ({"bytes": None, "path": None}, "without a file name. cannot be read: the row has neither bytes nor a path"),
        (None, "the row has neither bytes nor a path"),
    ],
)
def test_what_cannot_be_read_says_which_file_and_why(value, reason):
    with pytest.raises(DataError, match=reason):
        read_mask(value)


def test_histograms_add_up():
    total = Counter(mask_histogram(file_of(grey()))) + Counter(mask_histogram(np.array([[7, 300]])))
    assert total == {0: 1, 1: 1, 2: 1, 7: 3, 255: 1, 300: 1}
    assert all(type(number) is int for pair in total.items() for number in pair)
    assert mask_histogram(np.array([[(0, 0, 142)]], dtype=np.uint8), colors=ROAD_AND_CAR) == {2: 1}


def test_picture_and_mask_have_one_size():
    check_pair((400, 300), (400, 300), "a.png")
    with pytest.raises(DataError, match="a.png: the picture has 400 x 300 pixels, its mask 399 x 300.*scale neither"):
        check_pair((400, 300), (399, 300), "a.png")
    with pytest.raises(DataError, match="its mask 300 x 400.*one of them is turned: an EXIF orientation"):
        check_pair((400, 300), (300, 400), "a.png")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("colors.json", '{"void": [0, 0, 0], "road": [128, 64, 128]}'),
        ("colors.yaml", "void: [0, 0, 0]\nroad: [128, 64, 128]\n"),
    ],
)
def test_a_color_table_has_ids_in_its_order(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_color_table(tmp_path / name) == ({(0, 0, 0): 0, (128, 64, 128): 1}, ("void", "road"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "expected an existing json or yaml file"),
        ("a: [1", "cannot be read"),
        ("[1, 2]", r"expected \{name: \[r, g, b\]\} in id order, found \[1, 2\]"),
        ("no: [0, 0, 0]", "the name False is no text. Quote it"),
        ("a: [0, 0]", r"a: expected \[r, g, b\], whole numbers from 0 to 255, found \[0, 0\]"),
        ("a: [0, 0, 256]", r"found \[0, 0, 256\]"),
        ("a: [0.0, 0.5, 1.0]", r"found \[0.0, 0.5, 1.0\]"),
        ("a: '#000000'", "found '#000000'"),
        ("a: [1, 2, 3]\nb: [1, 2, 3]", r"a and b both have the color \[1, 2, 3\]"),
    ],
)
def test_a_broken_color_table_is_refused(tmp_path, text, reason):
    path = tmp_path / "colors.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArgumentError, match=f"--mask_colors {re.escape(str(path))}.*{reason}"):
        read_color_table(path)


def test_ids_are_closed_up_in_their_order_and_decoded_to_the_datas_own():
    classes = resolve_mask_classes(
        {0: "sky", 2: "road", 5: "void", 9: "car"}, values={0: 10, 2: 10, 5: 10, 9: 10}, ignore_label_ids=[0]
    )
    assert (classes.names, classes.raw_ids, classes.ignored_ids) == (("road", "car"), (2, 9), (0, 5, 255, 65535))
    encoded = classes.encode(np.array([[0, 2, 5, 9, 255]], dtype=np.uint8))
    assert encoded.dtype == np.int16
    assert encoded.tolist() == [[IGNORE_INDEX, 0, IGNORE_INDEX, 1, IGNORE_INDEX]]
    assert classes.encode(np.array([[9, 65535]], dtype=np.int32)).tolist() == [[1, IGNORE_INDEX]]
    assert classes.decode(np.array([[1, 0]])).tolist() == [[9, 2]]
    assert classes.decode(np.array([1])).dtype == np.uint8
    assert (classes.num_labels, classes.id2label, classes.label2id) == (
        2, {0: "road", 1: "car"}, {"road": 0, "car": 1},
    )  # fmt: skip


def test_classes_travel_to_workers():
    classes = MaskClasses(("a", "b"), (1, 300), (0,))
    copy = pickle.loads(pickle.dumps(classes))
    assert copy == classes
    assert copy.encode(np.array([[300, 0]], dtype=np.int32)).tolist() == [[1, IGNORE_INDEX]]
    assert copy.decode(np.array([1])).tolist() == [300]


def test_pitfall_13_loss_and_metric_ignore_the_same_pixels_and_a_perfect_prediction_scores_1():
    """Ignoring 0 in the metric and 255 in the loss scores it 0.50; reducing in the transform and in the metric, 0.00."""
    mask = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    classes = resolve_mask_classes({0: "wall", 1: "floor"}, reduce_labels=True, values=mask_histogram(mask))
    labels = torch.from_numpy(classes.encode(mask)).long()[None]
    assert labels.tolist() == [[[IGNORE_INDEX, 0, 1, IGNORE_INDEX]]]
    # At the ignored pixels the logits are far from any class that could be meant.
    logits = torch.tensor([[[[9.0, 30.0, 0.0, 0.0]], [[0.0, 0.0, 30.0, 9.0]]]])  # (batch, classes, height, width)
    loss = make_loss("cross_entropy", problem_type="semantic_segmentation")
    assert loss.denominator(labels) == 2
    assert loss(logits, labels) < 1e-6
    counted = labels != IGNORE_INDEX
    predicted = logits.argmax(1)
    for index in range(classes.num_labels):
        union = ((predicted == index) | (labels == index)) & counted
        assert ((predicted == labels) & union).sum() == union.sum() == 1


def test_pitfall_13_an_encoded_mask_cannot_be_encoded_again():
    classes = MaskClasses(("a", "b"), (1, 2), (0,))
    with pytest.raises(ValueError, match="train ids must not be encoded again"):
        classes.encode(classes.encode(np.array([[1, 2]], dtype=np.uint8)))


def test_a_value_that_was_in_no_histogram_is_an_error():
    classes = MaskClasses(("a", "b"), (0, 1))
    with pytest.raises(DataError, match="the value 7 in 1 pixels, 25.0% of all.*The classes are 0 a, 1 b"):
        classes.encode(np.array([[0, 1, 1, 7]], dtype=np.uint8))
    for value in (-1, 70000):
        with pytest.raises(DataError, match=f"the value {value}, expected ids from 0 to 65535"):
            classes.encode(np.array([[value]], dtype=np.int32))


def test_an_ignored_pixel_has_no_way_back():
    with pytest.raises(ValueError, match="train ids are 0 to 1, got -100 to 1"):
        MaskClasses(("a", "b"), (0, 1)).decode(np.array([1, IGNORE_INDEX]))


def test_class_weights_count_train_classes():
    classes = MaskClasses(("a", "b", "c"), (1, 2, 4), (0, 255))
    counts = pixel_counts(Counter({0: 9, 2: 5, 1: 3, 255: 8}), classes)
    assert counts.tolist() == [3, 5, 0]
    assert counts.dtype == np.int64


@pytest.mark.parametrize(
    "name", ["void", "Ignore", "ignored", "unlabeled", " Unlabelled ", "don't care", "Don\u2019t_Care"]
)
def test_some_names_are_ignored_without_a_flag_and_said(name, caplog):
    caplog.set_level(logging.INFO)
    classes = resolve_mask_classes({0: "a", 1: name, 2: "b"}, values={0: 50, 1: 25, 2: 25})
    assert classes.names == ("a", "b")
    assert classes.raw_ids == (0, 2)
    said = f"mask value 1 ({name.strip()}) is ignored in loss and metrics, 25.0% of the pixels: by its name"
    assert caplog.messages == [said]


@pytest.mark.parametrize("name", ["avoid", "background", "ignored area", "other"])
def test_other_names_are_classes(name):
    assert resolve_mask_classes({0: "a", 1: name}, values={0: 1, 1: 1}).names == ("a", name)


@pytest.mark.parametrize("value", [255, 65535])
def test_the_highest_value_without_a_name_is_ignored_and_said_with_its_share(value, caplog):
    caplog.set_level(logging.INFO)
    resolve_mask_classes({0: "a", 1: "b"}, values={0: 50, 1: 25, value: 25})
    said = f"mask value {value} is ignored in loss and metrics, 25.0% of the pixels: the usual value of ignored pixels"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("INFO", said)]


def test_the_highest_value_in_most_pixels_is_a_warning(caplog):
    resolve_mask_classes({0: "a", 1: "b"}, values={0: 20, 1: 20, 255: 60})
    assert "mask value 255 is ignored in loss and metrics, 60.0%" in caplog.text
    caplog.clear()
    resolve_mask_classes({0: "a", 1: "b"}, values={0: 20, 1: 20, 255: 60}, ignore_label_ids=[255])
    assert caplog.text == ""


def test_the_highest_value_with_a_name_is_a_class():
    names = {index: f"class {index}" for index in range(256)}
    classes = resolve_mask_classes(names, values={0: 5, 255: 5})
    assert classes.encode(np.array([[255]], dtype=np.uint8)).tolist() == [[255]]
    assert 255 not in classes.ignored_ids


def test_a_value_without_a_name_stops_the_run_with_the_value_and_a_file():
    said = (
        r"value 7 in 30 pixels, 30.0% of all \(in masks/b.png\) \(others: 4\), and no class has it. "
        r"The classes are 0 a, 1 b. .*--class_names, in id order from 0, .*--ignore_label_ids 7 4; .*--mask_colors"
    )
    with pytest.raises(DataError, match=said):
        resolve_mask_classes({0: "a", 1: "b"}, values={0: 40, 1: 20, 4: 10, 7: 30}, files={7: "masks/b.png"})


@pytest.mark.parametrize("value", [-1, 65536])
def test_ids_outside_of_16_bits_are_refused(value):
    with pytest.raises(DataError, match=rf"the value {value} \(in a.tif\), expected ids from 0 to 65535"):
        resolve_mask_classes({0: "a", 1: "b"}, values={0: 1, 1: 1, value: 1}, files={value: "a.tif"})


def test_class_names_of_the_flag_go_before_those_of_the_data(caplog):
    caplog.set_level(logging.INFO)
    classes = resolve_mask_classes({0: "LABEL_0", 1: "LABEL_1"}, class_names=["cat", "dog"], values={0: 1, 1: 1})
    assert classes.names == ("cat", "dog")
    assert "--class_names goes before the 2 class names of the data" in caplog.text


def test_without_names_nothing_is_guessed():
    with pytest.raises(
        DataError, match="hold the values 0, 1, 7, and nothing names them. .*--class_names.*id2label.json"
    ):
        resolve_mask_classes(None, values={7: 1, 0: 1, 1: 1})


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ({0: "a", 1: "a", 3: "b"}, "the class names of the data: the ids 0, 1 are all named 'a'"),
        ({0: "a", 1: " "}, "the name of id 1 is empty"),
        ({-1: "licence plate", 0: "a"}, "the ids are -1 to 0, expected ids from 0 to 65535"),
    ],
)
def test_names_are_distinct_and_ids_positive(names, reason):
    with pytest.raises(DataError, match=reason):
        resolve_mask_classes(names, values={0: 1})


def test_several_classes_can_be_void():
    assert resolve_mask_classes({0: "void", 1: "a", 2: "b", 3: "void"}, values={1: 1, 2: 1}).names == ("a", "b")


def test_classes_without_a_pixel_are_kept_and_said(caplog):
    caplog.set_level(logging.INFO)
    classes = resolve_mask_classes({0: "a", 1: "b", 2: "c"}, values={0: 1, 2: 1})
    assert classes.names == ("a", "b", "c")
    assert "1 of 3 classes have no pixel: b" in caplog.text


def test_masks_of_black_and_white_are_no_masks_of_one_class():
    said = (
        r"hold background alone \(values: 0, 255\).* 255 was taken for .*20.0% of the pixels. .*--mask_colors a table"
    )
    with pytest.raises(DataError, match=said):
        resolve_mask_classes({0: "background", 1: "person"}, values={0: 80, 255: 20})


@pytest.mark.parametrize(
    ("names", "values", "found"),
    [({0: "a"}, {0: 9}, "Of the 1 .*hold a alone"), ({0: "a", 1: "b"}, {}, "Of the 2 .*hold none alone")],
)
def test_fewer_than_two_classes_with_pixels_cannot_be_learned(names, values, found):
    with pytest.raises(DataError, match=f"{found}.*nothing can be learned from fewer than two"):
        resolve_mask_classes(names, values=values)


def test_an_explicit_ignore_gets_no_hint():
    with pytest.raises(DataError, match="fewer than two. See --class_names"):
        resolve_mask_classes({0: "a", 1: "b"}, values={0: 80, 255: 20}, ignore_label_ids=[255])


def test_reduced_names_without_the_background_begin_at_1():
    """ADE20K on the Hub: 150 names from 0 (wall), values from 0 to 150."""
    names = {index: f"class {index}" for index in range(150)}
    classes = resolve_mask_classes(names, reduce_labels=True, values=dict.fromkeys(range(151), 4))
    assert classes.raw_ids == tuple(range(1, 151))
    assert classes.encode(np.array([[0, 1, 150]], dtype=np.uint8)).tolist() == [[IGNORE_INDEX, 0, 149]]
    assert (classes.names[0], classes.names[149]) == ("class 0", "class 149")


@pytest.mark.parametrize("background", ["background", "Null", "none", "void"])
def test_reduced_names_with_the_background_begin_at_0(background):
    classes = resolve_mask_classes({0: background, 1: "a", 2: "b"}, reduce_labels=True, values={0: 5, 1: 5, 2: 5})
    assert (classes.names, classes.raw_ids) == (("a", "b"), (1, 2))
    # The value after the last name has no name then, whatever it would be otherwise.
    with pytest.raises(DataError, match="the value 3 in 5 pixels"):
        resolve_mask_classes({0: background, 1: "a", 2: "b"}, reduce_labels=True, values={0: 5, 1: 5, 2: 5, 3: 5})


def test_reduced_names_that_begin_at_1_are_their_own():
    assert resolve_mask_classes({1: "a", 2: "b"}, reduce_labels=True, values={0: 5, 1: 5, 2: 5}).raw_ids == (1, 2)


@pytest.mark.parametrize("ignore_label_ids", [[], [3]])
def test_reduced_names_that_can_be_read_in_two_ways_are_refused(ignore_label_ids):
    said = (
        r"--reduce_labels: the first of 3 class names is 'wall'.*--class_names background,\.\.\..*--ignore_label_ids 0"
    )
    values = {0: 5, 1: 5, 2: 5} | dict.fromkeys(ignore_label_ids, 5)
    with pytest.raises(DataError, match=said):
        resolve_mask_classes(
            {0: "wall", 1: "floor", 2: "sky"}, reduce_labels=True, values=values, ignore_label_ids=ignore_label_ids
        )


def test_255_names_and_the_value_255_can_be_read_in_two_ways():
    names = {index: f"class {index}" for index in range(255)}
    with pytest.raises(DataError, match="--reduce_labels: the first of 255"):
        resolve_mask_classes(names, reduce_labels=True, values={0: 5, 1: 5, 255: 5})


def test_the_reduced_background_is_said(caplog):
    caplog.set_level(logging.INFO)
    resolve_mask_classes({0: "background", 1: "a", 2: "b"}, reduce_labels=True, values={0: 2, 1: 1, 2: 1})
    said = "mask value 0 (background) is ignored in loss and metrics, 50.0% of the pixels: --reduce_labels"
    assert caplog.messages == [said]


def test_pitfall_13_masks_that_are_reduced_already_are_warned_of(caplog):
    resolve_mask_classes({1: "a", 2: "b"}, reduce_labels=True, values={1: 5, 2: 5})
    assert "--reduce_labels ignores the mask value 0, but no pixel has it" in caplog.text


def test_ids_to_ignore_that_are_not_there_are_warned_of(caplog):
    resolve_mask_classes({0: "a", 1: "b"}, values={0: 1, 1: 1}, ignore_label_ids=[9, 255])
    assert caplog.messages == ["--ignore_label_ids: neither a class nor a pixel has the id 9"]
    with pytest.raises(ArgumentError, match="--ignore_label_ids -1: expected ids from 0 to 65535"):
        resolve_mask_classes({0: "a", 1: "b"}, values={0: 1, 1: 1}, ignore_label_ids=[-1])


def test_long_lists_are_cut():
    names = {index: f"class {index}" for index in range(40)}
    with pytest.raises(DataError, match=r"8 class 8, 9 class 9 \.\.\. \(40 in all\)"):
        resolve_mask_classes(names, values={0: 1, 99: 1})


def test_a_color_table_gives_names_to_a_mask_of_colors(tmp_path):
    (tmp_path / "colors.json").write_text(json.dumps({"void": [0, 0, 0], "road": [128, 64, 128], "car": [0, 0, 142]}))
    colors, names = read_color_table(tmp_path / "colors.json")
    value = np.array([[(0, 0, 142), (0, 0, 0), (128, 64, 128)]], dtype=np.uint8)
    classes = resolve_mask_classes(dict(enumerate(names)), values=mask_histogram(value, colors=colors))
    assert classes.names == ("road", "car")
    assert classes.encode(read_mask(value, colors=colors)).tolist() == [[1, IGNORE_INDEX, 0]]
