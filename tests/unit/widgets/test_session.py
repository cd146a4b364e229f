"""The session behind the click widget, driven gesture by gesture; a drawing predictor stands in for a network."""

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st

from ullsam import ULLSAM, InputError, Predictor, sbr_regions
from ullsam.widgets.instances import from_labels, label_map
from ullsam.widgets.session import PRESENT, ClickSession

SIZE = (40, 56)
STATE = ("prompts", "box", "suggested", "model", "vlk", "negatives", "candidate", "page", "channel", "editing")
STATE += ("words", "alone", "presence")


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


@pytest.fixture
def session(image, Discs):
    return ClickSession({"discs": Discs(), "large": Discs("large", 9, vlsa=False)}, image)


def snapshot(session):
    """All that can be read of a session, as values that can be compared."""
    instances = [(i.number, i.name, i.words, i.prompts, i.box, i.model, i.page, i.area) for i in session.instances]
    mask = None if session.mask is None else session.mask.tobytes()
    return [getattr(session.state, name) for name in STATE], mask, session.labels.tobytes(), instances


def fails(session, words, gesture, *args):
    """The gesture is refused with one sentence and leaves everything as it was."""
    before = snapshot(session), session.can_undo, session.can_redo, session.selected
    with pytest.raises(InputError, match=words) as caught:
        gesture(*args)
    assert (snapshot(session), session.can_undo, session.can_redo, session.selected) == before
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- prompts


def test_the_mask_is_what_the_network_says(image):
    model = ULLSAM.from_preset("debug")
    session, predictor = ClickSession(model, image), Predictor(model)
    predictor.set_image(image)
    session.click(30, 20)
    session.click(5, 3, positive=False)
    session.set_box(50, 30, 20, 10)
    expected = predictor.predict([[30, 20], [5, 3]], [1, 0], box=[20, 10, 50, 30])
    np.testing.assert_array_equal(session.mask, expected.masks[0])
    session.set_candidate(3)
    expected = predictor.predict([[30, 20], [5, 3]], [1, 0], box=[20, 10, 50, 30], multimask=True)
    np.testing.assert_array_equal(session.mask, expected.masks[0, 2])
    assert session.size == SIZE and session.models == [session.state.model] == ["debug"]


def test_points_are_added_moved_and_taken_away(session):
    session.click(30, 20)
    session.click(10, 5, positive=False)
    session.move_point(1, 31, 20)
    assert session.state.prompts == ((30, 20, 1), (31, 20, 0))
    assert session.mask[20, 25] and not session.mask[20, 31]
    session.click(31, 21)  # as near as a pixel to the second point only
    assert session.state.prompts == ((30, 20, 1),) and session.mask[20, 31]
    session.click(30, 20)
    assert session.mask is None and session.state.prompts == ()


def test_a_box_may_be_drawn_from_any_corner_and_beyond_the_image(session):
    session.set_box(12, 9, 4, -7)
    assert session.state.box == (4, 0, 12, 9)
    rows, columns = np.nonzero(session.mask)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (4, 0, 12, 9)
    session.clear_box()
    assert session.state.box is None and session.mask is None
    session.undo()
    assert session.state.box == (4, 0, 12, 9) and session.mask.any()


def test_what_cannot_be_done_is_said_and_changes_nothing(session):
    session.click(30, 20)
    session.save_instance()
    session.click(10, 20)
    session.select(1)
    fails(session, "outside", session.click, 56, 20)
    fails(session, "not numbers", session.click, "left", 20)
    fails(session, "no point 1", session.move_point, 1, 3, 3)
    fails(session, "no point True", session.move_point, True, 3, 3)
    fails(session, "outside", session.move_point, 0, 3, -3)
    fails(session, "no instance 2; the saved ones are 1", session.select, 2)
    fails(session, "no instance 2", session.delete, 2)
    fails(session, "no instance 2", session.edit, 2)
    fails(session, "needs a name", session.rename, 1, "  ")
    fails(session, "choose one of discs, large", session.set_model, "huge")
    fails(session, "no mask 4", session.set_candidate, 4)
    fails(session, "no page 1", session.set_page, 1)
    fails(session, "no channel 3", session.set_channel, 3)
    fails(session, "percentiles", session.set_display, 60, 40, 1)
    fails(session, "shape", session.import_labels, np.zeros((3, 3), int))
    fails(session, "float64", session.import_labels, np.zeros(SIZE))
    fails(session, "nothing was imported", session.import_labels, np.zeros(SIZE, int))
    fails(session, "nothing to redo", session.redo)


# ---------------------------------------------------------------- undo


GESTURES = st.one_of(
    st.tuples(st.just("click"), st.integers(0, 55), st.integers(0, 39), st.booleans()),
    st.tuples(st.just("set_box"), *[st.integers(0, 20)] * 2, *[st.integers(21, 39)] * 2),
    st.tuples(st.just("set_candidate"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["set_words", "segment_words"]), st.sampled_from(["", "cells", "absent"])),
    st.tuples(st.just("set_model"), st.sampled_from(["discs", "large"])),
    st.tuples(st.just("set_channel"), st.sampled_from([None, 0, 2])),
    st.tuples(st.just("rename"), st.integers(1, 2), st.sampled_from("ab")),
    *[st.tuples(st.just(name), st.integers(1, 3)) for name in ("delete", "edit", "select")],
    *[
        st.tuples(st.just(name))
        for name in (
            "save_instance",
            "save_instance",
            "clear",
            "clear_box",
            "toggle_vlk",
            "toggle_negatives",
            "undo",
            "redo",
        )
    ],
)


@given(st.lists(GESTURES, max_size=25))
def test_undo_and_redo_walk_the_same_way(Discs, gestures):
    session = ClickSession({"discs": Discs(), "large": Discs("large", 9, vlsa=False)}, np.zeros((*SIZE, 3), np.uint8))
    past, future = [], []  # what undo and redo must lead to
    for name, *values in gestures:
        before = snapshot(session)
        if name in ("undo", "redo"):
            source, target = (past, future) if name == "undo" else (future, past)
            assert bool(source) == (session.can_undo if name == "undo" else session.can_redo)
            if source:
                getattr(session, name)()
                assert snapshot(session) == source.pop()
                target.append(before)
            continue
        try:
            getattr(session, name)(*values)
        except InputError:
            assert snapshot(session) == before
            continue
        if session._past and len(session._past) > len(past):
            past, future = [*past, before], []
        else:
            assert snapshot(session) == before
        numbers = [i.number for i in session.instances]
        assert len(set(numbers)) == len(numbers) and set(np.unique(session.labels)) - {0} == set(numbers)
        assert all(i.area == (session.labels == i.number).sum() for i in session.instances)


def test_a_new_change_ends_what_can_be_done_again(session):
    session.click(30, 20)
    session.undo()
    session.click(10, 10)
    fails(session, "nothing to redo", session.redo)


# ---------------------------------------------------------------- how it is segmented


def test_automatic_negatives_lie_on_the_ring_and_count(session):
    session.click(30, 20)
    plain = session.mask
    session.toggle_negatives()
    ring = sbr_regions(plain.astype(np.uint8)).ring
    assert len(session.state.suggested) == 3 and session.state.prompts == ((30, 20, 1),)
    assert all(ring[int(y), int(x)] and label == 0 for x, y, label in session.state.suggested)
    assert not (session.mask & ~plain).any() and session.mask.sum() < plain.sum()
    first = session.state.suggested
    session.click(45, 20)  # the ring goes round both
    assert len(session.state.suggested) == 3 and session.state.suggested != first
    session.toggle_negatives()
    session.move_point(1, 30, 21)
    session.click(30.2, 21)  # nearer to the second point
    assert session.state.suggested == () and not session.state.negatives
    np.testing.assert_array_equal(session.mask, plain)


@pytest.mark.parametrize(("radius", "count"), [(-2, 3), (100, 0)])
def test_automatic_negatives_of_an_empty_and_of_a_full_mask(image, radius, count, Discs):
    session = ClickSession(Discs(radius=radius), image)
    session.toggle_negatives()
    session.click(30, 20)
    assert len(session.state.suggested) == count  # around the point itself, or none where there is no room
    assert all(1 < np.hypot(x - 30, y - 20) < 5 for x, y, _ in session.state.suggested)
    assert session.mask.any() == (radius > 0)


def test_models_are_switched_and_remembered(session):
    session.click(30, 20)
    areas = [session.mask.sum()]
    assert session.vlk and session.has_vlk
    session.set_model("large")
    areas.append(session.mask.sum())
    assert session.state.model == "large" and not session.vlk and areas[1] > areas[0]
    fails(session, "no vision-language knowledge", session.toggle_vlk)
    session.save_instance()
    session.set_model("discs")
    session.toggle_vlk()
    session.click(5, 5)
    assert session.instances[0].model == "large" and session.state.model == "discs" and not session.vlk


def test_each_candidate_is_another_mask(session):
    session.click(30, 20)
    areas = []
    for k in (0, 1, 2, 3):
        session.set_candidate(k)
        areas.append(int(session.mask.sum()))
    assert areas[0] == areas[1] < areas[2] < areas[3] and session.state.candidate == 3


def test_the_image_is_encoded_once_and_only_when_needed(session, image):
    calls = session.segmenter.models["discs"].model.encoded
    assert not calls and not session.encoded
    session.encode()
    session.click(30, 20)
    session.toggle_negatives()
    session.save_instance()
    assert len(calls) == 1 and session.encoded
    np.testing.assert_array_equal(calls[0], image)
    session.set_channel(2)
    session.click(30, 20)
    np.testing.assert_array_equal(calls[1], image[..., 2])
    session.set_channel(None)
    assert len(calls) == 2


def test_words_grow_and_belong_to_what_was_described(session):
    heard = []
    assert session.description == "" and session.describe(heard.append) == "two discs" == session.description
    assert heard == ["two", "two discs"]
    session.set_channel(0)
    assert session.description == ""
    session.set_channel(None)
    assert session.description == "two discs"


def test_words_of_a_network_grow(image):
    session, heard = ClickSession(ULLSAM.from_preset("debug"), image), []
    assert session.describe(heard.append) == heard[-1] == session.description
    assert len(heard) > 10 and all(len(a) <= len(b) for a, b in zip(heard[:-1], heard[1:], strict=True))


# ---------------------------------------------------------------- words


def test_two_words_give_two_masks_of_the_same_click(image):
    model = ULLSAM.from_preset("debug", trained_with_words=True)
    with torch.no_grad():  # its random knowledge, scaled up until it counts
        for parameter in model.vlsa.parameters():
            parameter.mul_(4).add_(0.1)
    session, predictor = ClickSession(model, image), Predictor(model)
    predictor.set_image(image)
    session.click(30, 20)
    masks = [session.mask]
    for words in ("nucleus", "cell"):
        session.set_words(words)
        masks.append(session.mask)
        expected = predictor.predict([[30, 20]], [1], words=words)
        np.testing.assert_array_equal(session.mask, expected.masks[0])
        assert session.state.presence == expected.presence[0] and session.state.prompts == ((30, 20, 1),)
    assert len({mask.tobytes() for mask in masks}) == 3
    session.segment_words("cells")
    np.testing.assert_array_equal(session.mask, predictor.segment("cells").masks[0])


def test_words_draw_the_current_object_again(session):
    session.set_words(" cells\n of  any size ")
    assert session.words == "cells of any size" and session.mask is None
    session.set_words("cell")
    session.click(30, 20)
    areas = {"cell": session.mask.sum()}
    for words in ("nuclei", ""):
        session.set_words(words)
        areas[words] = session.mask.sum()
    assert areas["nuclei"] > areas["cell"] > areas[""] and session.state.prompts == ((30, 20, 1),)
    past = len(session._past)
    session.set_words("  ")
    session.set_words(None)
    assert len(session._past) == past  # nothing to take back
    session.undo()
    session.undo()
    assert session.words == "cell" and session.mask.sum() == areas["cell"]
    session.set_candidate(3)
    session.toggle_negatives()
    assert len(session.state.suggested) == 3 and session.words == "cell"


def test_words_alone_mean_all_that_they_name(session):
    session.click(30, 20)
    session.segment_words("cells")
    both = session.mask
    assert session.state.alone and session.state.prompts == () and both[20, 14] and both[20, 42] and not both[20, 28]
    session.set_words("cell")
    assert session.state.alone and 0 < session.mask.sum() < both.sum()
    session.click(10, 20)  # from here on one object
    assert not session.state.alone and session.state.prompts == ((10, 20, 1),) and not session.mask[20, 42]
    session.click(10, 20)
    assert session.mask is None and session.words == "cell"
    session.segment_words()
    assert session.state.alone and session.mask[20, 42]
    session.set_words("")
    assert session.mask is None and not session.state.alone and session.state.empty
    session.undo()
    assert session.state.alone and session.mask[20, 42] and not session.state.empty
    session.clear()
    assert session.mask is None and session.words == "cell"


def test_an_instance_keeps_the_words_that_made_it_and_has_them_as_its_name(session):
    session.set_words("nuclei")
    session.click(10, 20)
    session.save_instance()
    session.set_words("")
    session.click(45, 20)
    session.save_instance()
    assert [(i.name, i.words) for i in session.instances] == [("nuclei", "nuclei"), ("object", "")]
    session.edit(1)
    assert session.words == "nuclei"
    session.set_model("large")  # which cannot follow words
    session.undo()
    session.set_words("cell")
    session.save_instance()
    session.rename(1, "mitosis")
    session.edit(1)
    session.set_words("cells")
    session.save_instance()
    assert [(i.name, i.words) for i in session.instances] == [("mitosis", "cells"), ("object", "")]
    session.set_words("")
    session.edit(1)
    session.toggle_vlk()
    session.save_instance()
    assert [(i.name, i.words) for i in session.instances] == [("mitosis", ""), ("object", "")]


def test_an_instance_of_words_alone_can_be_edited_under_a_model_that_cannot_follow_them(session):
    session.segment_words("cell")
    mask = session.mask
    session.save_instance()
    session.set_model("large")
    session.edit(1)
    np.testing.assert_array_equal(session.mask, mask)
    session.save_instance()
    assert [(i.name, i.words) for i in session.instances] == [("cell", "cell")]
    session.set_model("discs")
    session.edit(1)
    session.set_words("cells")
    assert session.mask.sum() > mask.sum()


def test_what_words_name_may_be_absent(session):
    session.click(30, 20)
    assert session.state.presence is None and session.absence == ""
    session.set_words("the absent nuclei")
    assert session.state.presence == 0.2 < PRESENT and session.absence == "I see no absent nuclei here."
    assert session.mask.any()  # it is tried all the same
    session.set_words("nuclei")
    assert session.state.presence == 0.9 and session.absence == ""
    session.clear()
    session.segment_words("absent")
    assert session.absence == "I see no absent here."
    session.clear()
    assert session.absence == ""


def test_words_that_cannot_be_used_are_one_sentence(session):
    session.click(30, 20)
    fails(session, "words has 201 letters", session.set_words, "n" * 201)
    fails(session, "words is empty; say what to segment", session.segment_words)
    fails(session, "words is empty", session.segment_words, " \n")
    for words in ("Zellkerne \u00e9", "\u7d30\u80de\u6838", "\U0001f9a0", "half \ud83e of a letter", "x" * 200, 7):
        session.set_words(words)
        assert session.words and session.mask.any()
    assert session.words == "7" and "not in the training vocabulary" in session.hint
    session.set_words("nuclei")
    assert session.hint == "" == session.no_words
    session.toggle_vlk()
    assert session.words == "" and "switch it on" in session.no_words
    fails(session, "need vision-language knowledge", session.set_words, "cell")
    session.set_model("large")
    assert session.no_words == "large works without a language model and cannot follow words; choose discs."
    fails(session, "choose discs", session.segment_words, "cell")
    session.set_words("")
    session.set_model("discs")
    session.toggle_vlk()
    assert session.words == "" == session.no_words


def test_a_model_that_no_words_were_trained_with_gets_none(image, Discs):
    models = {"discs": Discs(), "plain": Discs()}
    models["plain"].model.config.trained_with_words = False
    session = ClickSession(models, image)
    session.click(30, 20)
    plain = session.mask
    session.set_words("cells")
    session.set_model("plain")
    np.testing.assert_array_equal(session.mask, plain)
    assert session.words == "" and session.state.presence is None
    fails(session, "plain was not trained with words and cannot follow words; choose discs", session.set_words, "cell")
    session.set_model("discs")
    assert session.words == "cells" and session.mask.sum() > plain.sum()


# ---------------------------------------------------------------- instances


def test_saved_instances_keep_their_pixels(session):
    session.click(20, 20)
    first = session.mask
    assert session.save_instance() == 1 and session.mask is None
    session.click(26, 20)
    second = session.mask
    assert (first & second).any() and session.save_instance() == 2
    np.testing.assert_array_equal(session.labels == 1, first)
    np.testing.assert_array_equal(session.labels == 2, second & ~first)
    assert session.labels.dtype == np.int32 and session.instances[1].prompts == ((26, 20, 1),)
    session.click(20, 20)
    fails(session, "saved already", session.save_instance)
    session.clear()
    fails(session, "no mask to save", session.save_instance)


def test_an_instance_can_be_edited_and_stays_safe_until_it_is_replaced(session):
    session.click(20, 20)
    session.save_instance()
    session.rename(1, " nucleus  A")
    before = session.labels
    session.edit(1)
    assert session.state.prompts == ((20, 20, 1),) and session.state.editing == session.selected == 1
    np.testing.assert_array_equal(session.mask, before == 1)
    session.move_point(0, 24, 20)
    np.testing.assert_array_equal(session.labels, before)
    moved = session.mask
    assert session.save_instance() == 1 and session.state.editing is None
    np.testing.assert_array_equal(session.labels == 1, moved)
    assert session.instances[0].name == "nucleus A" and len(session.instances) == 1
    session.edit(1)
    session.clear()
    np.testing.assert_array_equal(session.labels == 1, moved)
    assert session.state.editing is None and session.mask is None


def test_delete_leaves_the_other_numbers(session):
    for x in (8, 28, 48):
        session.click(x, 20)
        session.save_instance()
    session.select(2)
    session.edit(2)
    session.delete(2)
    assert session.selected is None and session.state.editing is None and session.mask is None
    assert [i.number for i in session.instances] == [1, 3] and set(np.unique(session.labels)) == {0, 1, 3}
    session.click(28, 20)
    assert session.save_instance() == 4
    session.select(None)
    assert session.selected is None


def test_two_sessions_share_nothing_but_the_network(image, Discs):
    predictor = Discs()
    first, second = ClickSession(predictor, image), ClickSession(predictor, np.zeros((20, 20), np.uint8))
    first.click(30, 20)
    second.click(5, 5)
    first.save_instance()
    first.set_display(5, 95, 2)
    assert second.mask.shape == (20, 20) and second.instances == [] and not hasattr(predictor, "image")
    first.click(50, 30)
    np.testing.assert_array_equal(first.mask, np.hypot(*np.mgrid[-30:10, -50:6]) <= 7)
    instances = first.instances
    instances.clear()
    assert len(first.instances) == 1
    assert second.display_image().shape == (20, 20, 3)


def test_label_images_come_in_to_be_corrected(session):
    labels = np.zeros(SIZE, np.uint16)
    labels[2:10, 3:20], labels[20:30, 30:50], labels[5, 8], labels[0, 55] = 70, 9, 0, 300
    assert session.import_labels(labels) == 3
    np.testing.assert_array_equal(session.labels, labels)
    session.edit(300)
    session.clear()
    session.edit(70)
    np.testing.assert_array_equal(session.mask, labels == 70)
    session.click(11, 4)
    assert session.mask[5, 8] and session.state.box == (2.5, 1.5, 19.5, 9.5)
    assert session.save_instance() == 70
    session.undo()
    session.undo()
    np.testing.assert_array_equal(session.labels, labels)


def test_imported_objects_do_not_cover_saved_ones(session, tmp_path):
    session.click(10, 10)
    session.save_instance()
    first = session.labels
    tifffile.imwrite(tmp_path / "labels.tif", np.ones(SIZE, np.uint8) * 5)
    assert session.import_labels(tmp_path / "labels.tif") == 1
    np.testing.assert_array_equal(session.labels, np.where(first == 1, 1, 5))
    session.delete(5)
    session.import_labels(np.where(np.arange(56) < 30, 1, 9) * np.ones(SIZE, int))  # the number 1 is taken
    np.testing.assert_array_equal(session.labels, np.where(first == 1, 1, np.where(np.arange(56) < 30, 2, 3)))


@given(st.integers(0, 2**31 - 1), st.integers(1, 6))
def test_label_maps_survive_the_way_through_instances(seed, kinds):
    rng = np.random.default_rng(seed)
    ids = np.append(0, rng.choice(2**16 - 1, kinds, replace=False) + 1)
    labels = rng.choice(ids, (7, 9)).astype(np.int32)
    np.testing.assert_array_equal(label_map(from_labels(labels, 0, (), "cell"), 0, labels.shape), labels)


def test_numbers_stay_within_what_a_label_image_holds(session, tmp_path):
    labels = np.zeros(SIZE, np.int64)
    labels[:4, :4], labels[:4, 8:12] = 2**31 - 1, 70000
    session.import_labels(labels)
    np.testing.assert_array_equal(session.labels, np.where(labels == 70000, 1, np.where(labels > 0, 2, 0)))
    session.import_labels(np.where(np.arange(56) > 40, 65535, 0) * np.ones(SIZE, int))
    session.click(30, 20)
    assert session.save_instance() == 3 and session.labels.max() == 65535  # the first free number
    session.import_labels(np.where(np.arange(56) < 3, 65535, 0) * np.ones(SIZE, int))
    assert [i.number for i in session.instances] == [1, 2, 65535, 3, 4]
    assert session.export(tmp_path, ["tiff"])["tiff"].is_file()
