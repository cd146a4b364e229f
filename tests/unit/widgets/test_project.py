"""Work is kept in a project file, and a later session goes on from it."""

import base64
import json
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from ullsam import Corpus, InputError
from ullsam.widgets import ClickToSegment, project
from ullsam.widgets.export import EXPORT_FORMATS
from ullsam.widgets.instances import Instance, Region, State, file_name, label_map
from ullsam.widgets.pages import Pages
from ullsam.widgets.project import load_project, save_project
from ullsam.widgets.session import ClickSession

SIZE = (40, 56)


@pytest.fixture
def file(tmp_path):
    """An image of three pages."""
    stack = np.random.default_rng(0).integers(0, 4000, (3, *SIZE), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "cells.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path / "cells.tif"


def project_of(file):
    return file.with_name(file.name + ".ullsam.json")


def seen(session):
    return [(i.number, i.name, i.words, i.prompts, i.box, i.model, i.page, i.area) for i in session.instances]


def save_two(session):
    session.click(10, 10)
    session.click(20, 12, positive=False)
    session.save_instance()
    session.set_page(2)
    session.set_words("cells")
    session.set_box(30, 5, 50, 20)
    session.save_instance()
    session.rename(2, "nucleus é")


def test_a_later_session_goes_on_where_the_last_one_was(file, Discs):
    models = {"discs": Discs(), "large": Discs("large", 9)}
    first = ClickSession(models, file)
    assert not project_of(file).exists()
    save_two(first)
    second = ClickSession(models, file)
    assert seen(second) == seen(first) and second.state.page == 2 and not second.can_undo
    for page in (2, 0, 1):
        first.set_page(page)
        second.set_page(page)
        np.testing.assert_array_equal(second.labels, first.labels)
    second.edit(1)
    assert second.state.prompts == ((10, 10, 1), (20, 12, 0)) and second.mask[10, 10]
    second.clear()
    second.click(45, 30)
    assert second.save_instance() == 3
    second.set_model("large")
    second.delete(2)
    assert ClickSession(models, file).state.model == "large"
    assert ClickSession(Discs("another"), file).state.model == "another"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.delete(1),
        lambda s: s.rename(1, "new"),
        lambda s: s.undo(),
        lambda s: (s.undo(), s.redo()),
        lambda s: (s.edit(1), s.move_point(0, 14, 14), s.save_instance()),
        lambda s: s.import_labels(np.full(SIZE, 4)),
    ],
)
def test_every_change_of_an_instance_is_on_disk_at_once(file, change, Discs):
    session = ClickSession(Discs(), file)
    save_two(session)
    change(session)
    assert seen(ClickSession(Discs(), file)) == seen(session)


def test_points_alone_write_nothing(file, Discs):
    session = ClickSession(Discs(), file)
    save_two(session)
    before = project_of(file).stat()
    session.click(20, 30)
    session.select(1)
    session.set_display(1, 99)
    assert project_of(file).stat() == before


def test_a_project_behind_a_link_is_written_where_it_lies(file, tmp_path, Discs):
    (tmp_path / "shared").mkdir()
    project_of(file).symlink_to(tmp_path / "shared" / "work.json")
    first = ClickSession(Discs(), file)
    save_two(first)
    assert project_of(file).is_symlink() and (tmp_path / "shared" / "work.json").is_file()
    assert seen(ClickSession(Discs(), file)) == seen(first)


def test_an_array_has_a_project_only_when_told(tmp_path, file, Discs):
    image = tifffile.imread(file)
    session = ClickSession(Discs(), image, stack=True)
    session.click(10, 10)
    session.save_instance()
    assert session.project is None and os.listdir(tmp_path) == ["cells.tif"]
    session = ClickSession(Discs(), file, project=False)
    session.click(10, 10)
    session.save_instance()
    assert os.listdir(tmp_path) == ["cells.tif"]
    named = ClickSession(Discs(), image, stack=True, project=tmp_path / "mine.json")
    save_two(named)
    assert sorted(os.listdir(tmp_path)) == ["cells.tif", "mine.json"]
    assert seen(ClickSession(Discs(), file, project=tmp_path / "mine.json")) == seen(named)  # the same pixels in a file


def test_a_project_of_another_image_or_version_is_refused(file, tmp_path, Discs):
    save_two(ClickSession(Discs(), file))
    other = tifffile.imread(file)
    other[2, 0, 0] += 1
    with pytest.raises(InputError, match=r"another image \(cells.tif\)"):
        ClickSession(Discs(), other, stack=True, project=project_of(file))
    values = json.loads(project_of(file).read_text())
    assert values["version"] == 1 and values["format"] == "ullsam project"
    project_of(file).write_text(json.dumps({**values, "version": 2}))
    with pytest.raises(InputError, match="version 2 .* reads up to 1; install a newer ullsam"):
        ClickSession(Discs(), file)
    assert json.loads(project_of(file).read_text())["version"] == 2


def bomb():
    """A PNG of 60,000 x 60,000 pixels in 30 bytes, as its header says."""
    return base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000) + b"\1\0\0\0\0").decode()


DAMAGES = [  # where in the file, and what stands there
    *((("instances", 0, "pixels"), v) for v in ("no base64", "", "aaaa", bomb(), None)),
    *((("instances", 1, "corner"), v) for v in ([3], [50, 30], [-1, 5], [0.5, 1], None)),
    *((("instances", 1, "number"), v) for v in (-3, 0, 1, 2**31, 2.5, True, "2", None)),
    *((("instances", 1, "page"), v) for v in (3, -1, 1.5, "0")),
    *((("instances", 0, "prompts"), v) for v in (None, [[1, 2]], [[1, 2, 5]], [[1, 10**400, 1]], [[1, float("nan"), 1]])),
    *((("instances", 1, "box"), v) for v in ([1, 2, 3], [1, 2, float("inf"), 4], [9, 2, 3, 4], "abcd", 7)),
    *((("instances", 1, "area"), v) for v in (1, 0, None)),
    *((("instances", 0, k), v) for k in ("name", "model", "words") for v in (None, 3)),
    *((("page",), v) for v in (3, -1, None, "1")),
    *((("channel",), v) for v in (0, "red", -1)),
    *((("model",), v) for v in (None, 1)),
    *((("instances",), v) for v in (None, {}, [None], 3)),
    *((("image",), v) for v in (None, [], {})),
]


@pytest.mark.parametrize(("place", "value"), DAMAGES, ids=lambda x: str(x)[:40])
def test_a_damaged_project_is_refused_and_kept(file, place, value, Discs):
    save_two(ClickSession(Discs(), file))
    values = json.loads(project_of(file).read_text())
    part = values
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    project_of(file).write_text(json.dumps(values))
    before = project_of(file).read_bytes()
    with pytest.raises(InputError, match="damaged .* move it away") as error:
        ClickSession(Discs(), file)
    assert "\n" not in str(error.value) and project_of(file).read_bytes() == before


def test_words_are_kept_and_a_project_of_a_time_without_them_is_read(file, Discs):
    session = ClickSession(Discs(), file)
    session.segment_words("cells \u00e9")
    session.save_instance()
    again = ClickSession(Discs(), file)
    assert seen(again)[0][:3] == (1, "cells \u00e9", "cells \u00e9") and again.words == ""
    again.edit(1)
    assert again.words == "cells \u00e9" and again.state.alone
    values = json.loads(project_of(file).read_text())
    del values["instances"][0]["words"]
    project_of(file).write_text(json.dumps(values))
    assert seen(ClickSession(Discs(), file))[0][:3] == (1, "cells \u00e9", "")


@pytest.mark.parametrize("key", ["model", "page", "channel", "instances", "image"])
def test_a_project_without_a_part_is_damaged(file, key, Discs):
    save_two(ClickSession(Discs(), file))
    values = json.loads(project_of(file).read_text())
    del values[key]
    project_of(file).write_text(json.dumps(values))
    with pytest.raises(InputError, match="damaged .* move it away"):
        ClickSession(Discs(), file)


NAMES = [b"img_0.3\xb5m.tif", *(b"a" * n + b".tif" for n in (234, 235, 251)), "\u00fc".encode() * 125 + b".tif"]


@pytest.mark.parametrize("name", NAMES, ids=lambda x: f"{len(x)} bytes")
def test_a_file_of_any_name_keeps_its_work_and_is_exported(file, tmp_path, name, Discs):
    image = tmp_path / os.fsdecode(name)
    file.rename(image)
    save_two(ClickSession(Discs(), image))
    again = ClickToSegment(Discs(), image)
    assert seen(again.session)[1][1] == "nucleus \u00e9" and again.session.project.parent == tmp_path
    for path in again.export(formats=EXPORT_FORMATS).values():
        assert path.exists() and path.name.encode()
    assert again.export_folder.parent == tmp_path and len(Corpus(again.export_folder / "corpus")) == 2


def test_names_of_exports_stay_apart():
    names = ["cells", "img_\udcb5m", "img_\udcb6m", "a" * 250, "a" * 249 + "b", "\u00fc" * 120, "\u00fc" * 121]
    made = [file_name(name) for name in names]
    assert made[0] == "cells" and len(set(made)) == len(names)
    assert all(len(name.encode()) <= 189 for name in made) and made[1].startswith("img__m-")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "no project file"),
        ('{"format": "other", "version": 1}', "no project file"),
        ('{"format": "ullsam project"}', "no project file"),
    ],
)
def test_other_files_are_not_taken_for_a_project(file, content, words, Discs):
    project_of(file).write_text(content)
    with pytest.raises(InputError, match=words):
        ClickSession(Discs(), file)


def test_a_session_does_not_write_over_what_another_one_saved(file, Discs):
    first, second = ClickSession(Discs(), file), ClickSession(Discs(), file)
    save_two(first)
    second.click(40, 30)
    with pytest.raises(InputError, match="changed by another session"):
        second.save_instance()
    assert second.mask is not None and second.instances == [] and not second.can_redo
    assert len(ClickSession(Discs(), file).instances) == 2
    first.delete(1)
    project_of(file).unlink()
    first.undo()
    assert seen(ClickSession(Discs(), file)) == seen(first)


def test_of_sessions_that_save_at_the_same_instant_one_is_told(file, monkeypatch, Discs):
    write = project.write_json

    def slowly(path, values):
        time.sleep(0.002)
        write(path, values)

    def saved(session, x, start):
        session.click(x, 20)
        start.wait()
        try:
            return bool(session.save_instance())
        except InputError:
            return False

    monkeypatch.setattr(project, "write_json", slowly)
    for _ in range(20):
        sessions, start = [ClickSession(Discs(), file) for _ in range(3)], threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            confirmed = list(pool.map(saved, sessions, (10, 25, 40), [start] * 3))
        assert sum(confirmed) == 1
        assert seen(ClickSession(Discs(), file)) == seen(sessions[confirmed.index(True)])
        project_of(file).unlink()


def test_what_cannot_be_written_is_said_before_work_is_lost(file, tmp_path, monkeypatch, Discs):
    with pytest.raises(InputError, match="project=False"):
        ClickSession(Discs(), file, project=tmp_path / "absent" / "p.json")
    session = ClickSession(Discs(), file)
    session.click(10, 10)
    session.save_instance()
    kept = project_of(file).read_bytes()
    session.click(40, 30)
    mask = session.mask

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        session.save_instance()
    assert session.mask is mask and len(session.instances) == 1 and project_of(file).read_bytes() == kept
    monkeypatch.undo()
    assert session.save_instance() == 2


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(2, 12), st.integers(2, 12))
def test_pixels_and_prompts_survive_exactly(tmp_path_factory, seed, count, height, width):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, height, width)) < rng.random()
    instances = tuple(
        Instance(
            70000 + i,
            f"n{i}",
            ((rng.random(), float(i), 1),) * i,
            None if i else (0.5, 1.0, 2.0, 3.25),
            "m",
            i,
            Region.of(mask),
            f"w{i}" * i,
        )
        for i, mask in enumerate(masks)
        if mask.any()
    )
    path = tmp_path_factory.getbasetemp() / "project.json"
    pages = Pages(np.zeros((count, height, width), np.uint8), stack=True)
    save_project(path, State("m", instances=instances), pages.sha)
    back = load_project(path, pages).instances
    assert [(i.number, i.name, i.words, i.prompts, i.box, i.page) for i in back] == [
        (i.number, i.name, i.words, i.prompts, i.box, i.page) for i in instances
    ]
    for page in range(count):
        np.testing.assert_array_equal(*(label_map(x, page, (height, width)) for x in (back, instances)))


def test_nothing_but_the_project_is_left_beside_the_image(file, Discs):
    session = ClickSession(Discs(), file)
    save_two(session)
    assert session.project == project_of(file)
    assert [p.name for p in sorted(file.parent.iterdir())] == ["cells.tif", "cells.tif.ullsam.json"]
