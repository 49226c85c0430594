"""Overlay sheets: what stands where, in which color; palette files keep the ids."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from sft_hf.losses import IGNORE_INDEX
from sft_hf.report import overlays
from sft_hf.report.overlays import overlay_sheet, palette, write_palette_png
from sft_hf.vision.masks import read_mask

NAMES = ("background", "cat", "dog")
MARGIN, TOP = 12, 33  # where the first panel begins


def white(width=300, height=200):
    return Image.new("RGB", (width, height), "white")


def mask(width=300, height=200, *, left=0, right=0):
    """Class `left` in the left half, `right` in the other."""
    ids = np.full((height, width), left)
    ids[:, width // 2 :] = right
    return ids


def pixel(sheet, *, panel, x, y, width=300):
    return sheet.getpixel((MARGIN + panel * (width + MARGIN) + x, TOP + y))


def has_color(picture, color):
    return bool((np.asarray(picture) == color).all(axis=-1).any())


def entries(*masks, names=NAMES):
    return [entry.name for entry in overlays._legend_entries(masks, names, palette(len(names)))]


def test_colors_are_distinct_and_an_id_has_one_for_any_number_of_classes():
    assert len(set(palette(300))) == 300
    assert palette(300)[:20] == palette(20)
    assert palette(3) == ((86, 180, 233), (230, 159, 0), (0, 158, 115))
    assert all(type(channel) is int and 0 <= channel <= 255 for color in palette(300) for channel in color)


def test_colors_are_far_from_each_other_and_from_the_grey_of_uncounted_pixels():
    colors = np.array(palette(60), dtype=float)
    between = np.sqrt(((colors[:, None] - colors[None]) ** 2).sum(axis=-1))
    assert between[np.triu_indices(60, k=1)].min() > 30
    assert np.ptp(colors, axis=1).min() > 40


@pytest.mark.parametrize(("num_classes", "mode", "ids"), [(3, "P", [[0, 2, 1]]), (256, "P", [[0, 255, 9]])])
def test_a_palette_file_keeps_the_ids_and_shows_the_colors(tmp_path, num_classes, mode, ids):
    write_palette_png(np.array(ids), tmp_path / "a.png", num_classes=num_classes)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == mode
        assert picture.convert("RGB").getpixel((1, 0)) == palette(num_classes)[ids[0][1]]
    assert read_mask({"bytes": None, "path": str(tmp_path / "a.png")}).tolist() == ids


def test_over_256_classes_a_file_has_16_bits(tmp_path):
    write_palette_png(np.array([[0, 256, 299]]), tmp_path / "a.png", num_classes=300)
    assert read_mask({"bytes": None, "path": str(tmp_path / "a.png")}).tolist() == [[0, 256, 299]]


@pytest.mark.parametrize("ids", [[[3]], [[IGNORE_INDEX]]])
def test_an_id_that_is_no_class_is_not_written(tmp_path, ids):
    with pytest.raises(ValueError, match="ids are 0 to 2, got"):
        write_palette_png(np.array(ids), tmp_path / "a.png", num_classes=3)
    assert not (tmp_path / "a.png").exists()


def test_a_sheet_has_the_image_the_truth_and_the_prediction_from_left_to_right():
    sheet = overlay_sheet(white(), mask(left=0, right=1), mask(left=0, right=2), names=NAMES)
    assert sheet.width == MARGIN + 3 * (300 + MARGIN)
    for panel, (left, right) in enumerate([(None, None), (0, 1), (0, 2)]):
        for x, index in ((20, left), (280, right)):
            # 0.55 of the class's color and 0.45 of the white below
            expected = (255,) * 3 if index is None else tuple(
                round(0.55 * channel + 0.45 * 255) for channel in palette(3)[index]
            )  # fmt: skip
            assert pixel(sheet, panel=panel, x=x, y=100) == pytest.approx(expected, abs=1)


def test_regions_are_outlined():
    sheet = overlay_sheet(white(), None, mask(left=0, right=1), names=NAMES)
    assert sum(pixel(sheet, panel=1, x=149, y=100)) < 0.5 * sum(pixel(sheet, panel=1, x=140, y=100))


def test_without_a_truth_there_are_two_panels():
    sheet = overlay_sheet(white(), None, mask(right=1), names=NAMES)
    assert sheet.width == MARGIN + 2 * (300 + MARGIN)


def test_pixels_that_do_not_count_are_hatched_in_grey():
    sheet = overlay_sheet(white(), mask(left=IGNORE_INDEX, right=1), mask(right=1), names=NAMES)
    row = [pixel(sheet, panel=1, x=x, y=100) for x in range(20, 36)]
    assert all(red == green == blue for red, green, blue in row)
    assert len(set(row)) == 2
    assert row[:8] == row[8:]


def test_the_legend_has_the_classes_of_both_masks_from_the_largest_to_the_smallest():
    truth, prediction = mask(left=2, right=2), mask(left=2, right=0)
    assert entries(truth, prediction) == ["dog", "background"]
    sheet = overlay_sheet(white(), truth, prediction, names=NAMES)
    assert has_color(sheet, palette(3)[2])
    assert not has_color(sheet, palette(3)[1])


def test_the_legend_says_what_the_hatching_is_at_its_end():
    truth = mask(left=IGNORE_INDEX, right=IGNORE_INDEX)
    assert entries(truth, mask(left=1, right=1)) == ["cat", "does not count"]
    assert entries(mask(left=1, right=1)) == ["cat"]


def test_a_long_legend_wraps_and_makes_the_sheet_higher():
    names = [f"class number {index}" for index in range(60)]
    ids = np.arange(60).repeat(5)[None].repeat(200, axis=0)
    long, short = overlay_sheet(white(), None, ids, names=names), overlay_sheet(white(), None, ids * 0, names=names)
    assert long.width == short.width
    assert long.height > short.height + 200
    colors = {tuple(color) for color in np.asarray(long)[TOP + 200 :].reshape(-1, 3).tolist()}
    assert set(palette(60)) <= colors


def test_no_row_of_a_legend_is_wider_than_the_sheet():
    font = ImageFont.load_default(size=15)
    given = [overlays._Entry(name, (0, 0, 0)) for name in ["cat"] * 9 + ["a name without end " * 20] + ["dog"]]
    rows = overlays._wrap(given, font, 200)
    assert [len(row) for row in rows] == [4, 4, 1, 1, 1]
    assert [entry.name for row in rows for entry in row if entry.name in ("cat", "dog")] == ["cat"] * 9 + ["dog"]
    assert max(sum(overlays._entry_width(entry, font) for entry in row) - MARGIN for row in rows) <= 200
    assert any(entry.name.startswith("a name") and entry.name.endswith("...") for row in rows for entry in row)


@pytest.mark.parametrize(
    ("size", "panel"),
    [
        ((960, 480), (480, 240)),
        ((1000, 2000), (320, 640)),
        ((300, 200), (300, 200)),
        ((480, 640), (480, 640)),
        ((64, 48), (192, 144)),
        ((9000, 1), (480, 1)),
    ],
)
def test_large_pictures_are_scaled_down_and_small_ones_enlarged(size, panel):
    assert overlays._panel_size(size) == panel
    width, height = size
    sheet = overlay_sheet(white(width, height), None, mask(width, height, right=1), names=NAMES)
    assert sheet.width == MARGIN + 2 * (panel[0] + MARGIN)


def test_scaling_invents_no_class():
    """Between classes 0 and 2 there is no 1."""
    resized = overlays._resize_mask(mask(left=0, right=2), (77, 33))
    assert np.unique(resized).tolist() == [0, 2]
    assert resized.shape == (33, 77)
    assert np.unique(overlays._resize_mask(mask(left=IGNORE_INDEX, right=300), (77, 33))).tolist() == [
        IGNORE_INDEX,
        300,
    ]


def test_a_narrow_picture_leaves_room_for_its_caption():
    narrow = overlay_sheet(white(20, 400), None, mask(20, 400), names=NAMES)
    assert narrow.width == MARGIN + 2 * (120 + MARGIN)


@pytest.mark.parametrize(
    ("truth", "prediction", "caption"), [((300, 200), (299, 200), "prediction"), ((200, 300), (300, 200), "truth")]
)
def test_a_mask_of_another_size_is_refused(truth, prediction, caption):
    with pytest.raises(ValueError, match=rf"{caption}: .* \(height, width\) over an image of \(200, 300\)"):
        overlay_sheet(white(), mask(*truth), mask(*prediction), names=NAMES)


def test_grey_pictures_and_masks_of_every_type_are_drawn():
    for dtype in (np.uint8, np.int16, np.int64):
        overlay_sheet(white().convert("L"), None, mask(right=1).astype(dtype), names=NAMES)


def test_a_name_of_several_lines_is_written_on_one():
    """Pillow measures no text of several lines."""
    ids = mask(left=0, right=1)
    assert entries(ids, names=("sky\nblue", "<b>\troad</b>")) == ["sky blue", "<b> road</b>"]
    overlay_sheet(white(), None, ids, names=("sky\nblue", "road"))
