"""The SBR explorer shows what sbr.py draws, and names the case that was used."""

from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ullsam import InputError, SbrConfig, sample_points, sbr_regions
from ullsam.widgets.live import PointerImage
from ullsam.widgets.sbr_explorer import MISSING, SbrExplorer


def scene():
    labels = np.zeros((60, 80), np.int32)
    labels[5:25, 5:30], labels[30:50, 40:70], labels[40:43, 5:8] = 3, 5, 9
    return labels


@pytest.fixture
def demo():
    return SbrExplorer(scene())


def messages(demo, **content):
    demo.view  # noqa: B018 builds the view
    demo._picture._handle_custom_msg(content, [])


def test_it_starts_with_the_papers_settings_and_the_middling_object(demo):
    choice = demo.choice
    assert choice.instance == 3 and choice.config == SbrConfig() and (choice.n_pos, choice.n_neg) == (1, 3)
    regions, points = sbr_regions(scene(), instance=3), sample_points(scene(), 3, np.random.default_rng(0))
    np.testing.assert_array_equal(demo.regions.core, regions.core)
    np.testing.assert_array_equal(demo.points.points, points.points)


def test_each_control_reaches_sbr(demo):
    demo.choose(5)
    demo.set_erosion(60)
    demo.set_ring(20, 40)
    demo.set_dilation(30)
    demo.set_counts(4, 7)
    demo.set_seed(11)
    demo.set_exclude(True)
    config = SbrConfig(erosion=60, ring=(20, 40), dilation=30, exclude_other_instances=True)
    expected = sample_points(scene(), 5, np.random.default_rng(11), 4, 7, config)
    np.testing.assert_array_equal(demo.points.points, expected.points)
    np.testing.assert_array_equal(demo.regions.ring, sbr_regions(scene(), config, 5).ring)
    demo.reset()
    assert demo.choice.config == SbrConfig() and demo.choice.instance == 5


DISTANCES = st.integers(0, 300)
SETTINGS = st.tuples(
    st.sampled_from([3, 5, 9, None]),
    DISTANCES,
    st.tuples(DISTANCES, DISTANCES),
    st.integers(0, 2000),
    st.integers(0, 9),
    st.integers(0, 400),
    st.booleans(),
)


@settings(max_examples=60)
@given(SETTINGS)
def test_the_named_case_holds(values):
    """The formula that is shown is true of the numbers that are shown."""
    number, erosion, ring, dilation, n_pos, n_neg, exclude = values
    demo = SbrExplorer(scene(), config=SbrConfig(erosion, tuple(sorted(ring)), dilation, exclude_other_instances=exclude))
    demo.set_counts(n_pos, n_neg)
    demo.choose_missing() if number is None else demo.choose(number)
    size = demo.sizes()
    inside = {
        "core": size["E"] >= size["Nₚ"],
        "core_repeated": 0 < size["E"] < size["Nₚ"],
        "centroid": size["E"] == 0 < size["M"],
        "image_center": size["M"] == 0,
    }
    outside = {
        "ring": size["B"] >= size["Nₙ"],
        "outside": size["B"] < size["Nₙ"] <= size["O"],
        "anywhere": size["B"] < size["Nₙ"] and size["O"] < size["Nₙ"],
    }
    assert inside[demo.points.positive_branch] and outside[demo.points.negative_branch]
    for sentence in demo.branches():
        for name in ("E", "B", "O", "M"):
            if f"|{name}| =" in sentence.split("(")[1]:
                assert f"|{name}| = {size[name]}" in sentence


def test_branches_in_words(demo):
    assert demo.branches() == [
        "Eq. 3, points inside, case 1 of 4: |E| ≥ Nₚ (|E| = 414, Nₚ = 1), so Nₚ different pixels of the core E.",
        f"Eq. 4, points outside, case 1 of 3: |B| ≥ Nₙ (|B| = {demo.sizes()['B']}, Nₙ = 3), so Nₙ different pixels of the "
        "ring B.",
    ]
    demo.choose(9)
    demo.set_erosion(30)
    assert "case 3 of 4: |E| = 0 < |M| (|M| = 9, |E| = 0), so the centroid" in demo.branches()[0]
    demo.choose_missing()
    assert "case 4 of 4" in demo.branches()[0] and demo.status.startswith(f"{MISSING.capitalize()}: 0 pixels")


def test_wrong_input_is_one_sentence_and_changes_nothing(demo):
    before = demo.choice
    for act in (
        lambda: demo.choose(4),
        lambda: demo.set_ring(9, 3),
        lambda: demo.set_erosion(-1),
        lambda: demo.set_seed(-1),
        lambda: demo.set_counts(-1, 3),
        lambda: demo.click(1, 1),
        lambda: demo.click(99, 1),
    ):
        with pytest.raises(InputError) as error:
            act()
        assert demo.choice == before and demo.status == str(error.value)
    with pytest.raises(InputError, match="no object"):
        SbrExplorer(np.zeros((5, 5), int))
    with pytest.raises(InputError, match="one size"):
        SbrExplorer(scene(), np.zeros((5, 5), np.uint8))
    with pytest.raises(InputError, match="label map"):
        SbrExplorer(scene().astype(float))


def test_an_object_that_fills_the_image_has_no_outside():
    with pytest.raises(InputError, match="fills the whole image"):
        SbrExplorer(np.ones((20, 20), np.int32))


def test_sliders_and_gestures_move_together(demo):
    demo.view  # noqa: B018 builds the view
    before = demo._regions.value
    demo._controls["erosion"].value = 60
    assert demo.choice.config.erosion == 60 and demo._regions.value != before
    demo._controls["ring"].value = (20, 40)
    assert demo.choice.config.ring == (20, 40)
    demo._controls["n_neg"].value = 12
    assert len(demo.points.points) == 13
    demo._controls["object"].value = MISSING
    assert demo.points.positive_branch == "image_center"
    demo.set_counts(2, 90)  # beyond the slider's end
    assert demo._controls["n_pos"].value == 2 and demo._controls["n_neg"].value == 90
    demo.choose(5)
    assert demo._controls["object"].value == 5 and demo._table.value.count("▶") == 2


def test_a_gesture_during_the_redraw_of_another_thread_is_not_lost(demo, monkeypatch):
    drawing, go_on, draw, number = Event(), Event(), demo._draw, int(demo.ids[-1])
    assert demo.view is not None and demo.choice.instance != number
    monkeypatch.setattr(demo, "_draw", lambda: (drawing.set(), go_on.wait(30), draw()))
    threads = Thread(target=demo.reset), Thread(target=demo._from_browser(demo.choose), args=(number,))
    threads[0].start()
    assert drawing.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # it would end at once if it did not wait for its turn
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert demo.choice.instance == number


def test_a_click_on_the_picture_chooses(demo):
    messages(demo, kind="click", xy=[50.2, 40.7], positive=True)
    assert demo.choice.instance == 5 and isinstance(demo._picture, PointerImage) and demo._picture.answered == 1
    messages(demo, kind="hover", xy=[10, 10])
    messages(demo, kind="click", xy=[0, 0])
    assert demo.choice.instance == 5 and "background" in demo.status and demo._picture.answered == 3


def test_two_explorers_share_nothing():
    first, second = SbrExplorer(scene()), SbrExplorer(scene())
    first.view, second.view  # noqa: B018 builds the views
    first.set_erosion(40)
    assert second.choice.config == SbrConfig() and second._controls["erosion"].value == 10


def test_a_page_without_widgets_gets_a_still_picture(demo):
    bundle = demo._repr_mimebundle_()
    assert "image/png" in bundle or "image/jpeg" in bundle
    assert "Object 3" in bundle["text/plain"] and "application/vnd.jupyter.widget-view+json" in bundle
