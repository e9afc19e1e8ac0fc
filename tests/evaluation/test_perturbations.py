"""Changed images: the same ones for everybody, told apart from clean ones, and never mixed with them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from safevlm.data import perturbations
from safevlm.data.perturbations import PERTURBATIONS, parse
from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.metrics.comparison import compare, markdown
from safevlm.evaluation.report.gallery import cards
from safevlm.evaluation.report.section import remarks, sections_of
from safevlm.evaluation.runs import changed_images
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.files import read_replies
from safevlm.evaluation.runs.run import read_runs
from safevlm.miniature import drawing
from safevlm.miniature.world import sample_scene
from safevlm.types import Generation, Reply, Request
from tests.evaluation.command import main
from tests.evaluation.world_of_runs import Parrot, helpful, refusing, write_suite

SUITE = "miniature"
CHANGES = list(PERTURBATIONS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A suite whose every image is another scene."""
    folder = write_suite(tmp_path / "data", per_group=2)
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        if row["image"]:
            row["image"] = f"{row['id']}.png"
            image(index).save(folder / row["image"])
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def image(seed: int = 0) -> Image.Image:
    return drawing.draw(sample_scene(random.Random(seed), "any"))


class Witness(Parrot):
    """Keeps the images that it is shown."""

    def __init__(self) -> None:
        super().__init__(helpful)
        self.shown: dict[str, bytes] = {}

    def reply_all(self, requests: Sequence[Request], generation: Generation, *, batch_size: int) -> list[Reply]:
        self.shown |= {one.id: Image.open(str(one.images[0])).tobytes() for one in requests}
        return super().reply_all(requests, generation, batch_size=batch_size)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_visible_and_the_same_every_time(name: str) -> None:
    change = parse(name)
    once, again = change(image()), change(image())
    assert once.mode == "RGB" and once.tobytes() == again.tobytes() != image().tobytes()
    assert once.size == image().size or name == "crop"


@pytest.mark.parametrize(
    ("weak", "strong"),
    [
        ("jpeg:90", "jpeg:5"),
        ("blur:1", "blur:5"),
        ("resize:90", "resize:20"),
        ("noise:2", "noise:40"),
        ("scale:95", "scale:40"),
        ("rotate:3", "rotate:45"),
        ("contrast:90", "contrast:20"),
    ],
)
def test_more_strength_changes_more(weak: str, strong: str) -> None:
    clean = image().tobytes()
    less, more = (
        sum(abs(a - b) for a, b in zip(parse(text)(image()).tobytes(), clean, strict=True)) for text in (weak, strong)
    )
    assert 0 < less < more


def test_the_strength_is_in_the_unit_that_the_table_says() -> None:
    assert parse("crop:50")(image()).size == (32, 32)
    assert parse("blur:0")(image()).tobytes() == image().tobytes() == parse("noise:0")(image()).tobytes()
    half = parse("resize:50")(image())
    assert half.tobytes() == image().resize((32, 32), 2).resize((64, 64), 2).tobytes()
    large = parse("blur:1.5")(image().resize((256, 256), 0)).resize((64, 64), 4)
    small = parse("blur:1.5")(image())
    far = max(abs(a - b) for a, b in zip(large.tobytes(), small.tobytes(), strict=True))
    assert far < 90, "percent of the side: the same blur at another size"


def test_two_images_are_not_cut_or_speckled_alike() -> None:
    grey = [Image.new("RGB", (64, 64), (120, 120, shade)) for shade in (120, 121)]
    noise = [[a - b for a, b in zip(parse("noise")(one).tobytes(), one.tobytes(), strict=True)] for one in grey]
    assert noise[0] != noise[1]
    wide = [Image.linear_gradient("L").convert("RGB").point(lambda value, up=up: value // 2 + up) for up in range(8)]
    places = {parse("crop:50")(one).getpixel((0, 0))[0] - up for up, one in enumerate(wide)}
    assert len(places) > 3, "the place of a crop is drawn from the image"


def test_smaller_and_turned_images_keep_their_middle_and_are_padded_as_llava_pads() -> None:
    """Whole (no edge is cut off) and centred, or the change measures something else than size or direction."""
    dot = Image.new("RGB", (64, 64), (255, 255, 255))
    dot.paste((200, 0, 0), (30, 30, 34, 34))
    for text in ("scale:50", "rotate:45"):
        seen = parse(text)(dot)
        assert seen.getpixel((0, 0)) == perturbations.PADDING and seen.getpixel((32, 32))[1] < 60, text
    assert parse("scale:50")(dot).getpixel((17, 17)) == (255, 255, 255)


def test_less_contrast_keeps_the_mean() -> None:
    faded, clean = (sum(one.convert("L").tobytes()) / 64**2 for one in (parse("contrast:50")(image()), image()))
    assert faded == pytest.approx(clean, abs=2)


@pytest.mark.parametrize("text", ["jpg", "jpeg:0", "jpeg:high", "jpeg:", "crop:101", "noise:nan", ":3"])
def test_an_unknown_change_or_strength_is_an_error_that_names_the_choices(text: str) -> None:
    with pytest.raises(ValueError, match=r"--perturb.*(one of \['jpeg'|must lie in \d)"):
        parse(text)


def test_what_is_asked_is_what_the_row_points_to(tmp_path: Path, data: Path) -> None:
    witness, out = Witness(), tmp_path / "out"
    assert ask(SUITE, data, "m", "none", out, perturb="noise", engine=witness) == 10, "words have no images"
    clean = {path.stem: Image.open(path).tobytes() for path in data.glob("*.png")}
    for row in read_replies(out):
        shown = out / row["request"]["images"][0]
        assert shown.parent == out / "images" and shown.suffix == ".png"
        assert Image.open(shown).tobytes() == witness.shown[row["id"]] != clean[row["id"]]
    assert json.loads((out / "run.json").read_text())["perturb"] == "noise:16"


def test_every_defense_and_every_start_sees_the_same_images(tmp_path: Path, data: Path) -> None:
    first, second = Witness(), Witness()
    ask(SUITE, data, "m", "none", tmp_path / "a", perturb="crop", images=tmp_path / "all", engine=first)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()}
    ask(SUITE, data, "m", "static-prompt", tmp_path / "b", perturb="crop", images=tmp_path / "all", engine=second)
    assert first.shown == second.shown
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "all").iterdir()} == written, "stored once"


def test_a_run_does_not_go_on_with_other_images_or_groups(tmp_path: Path, data: Path) -> None:
    asked = {"suite": SUITE, "data": data, "model": "m", "defense": "none", "out": tmp_path / "out"}
    ask(**asked, perturb="jpeg", groups=["benign"], engine=Parrot(helpful))
    assert ask(**asked, perturb="jpeg:30", groups=["benign"], engine=Parrot(helpful)) == 0, "the default's own strength"
    for change, field in (
        ({"perturb": "jpeg:31"}, "perturb 'jpeg:30', not 'jpeg:31'"),
        ({}, "perturb 'jpeg:30'"),
        ({"perturb": "jpeg", "groups": ["lookalike"]}, "groups"),
    ):
        with pytest.raises(ValueError, match=rf"run\.json: .*{field}.*another --out"):
            ask(**asked, **({"groups": ["benign"]} | change), engine=Parrot(helpful))


def test_only_the_groups_that_are_named_are_asked(tmp_path: Path, data: Path) -> None:
    parrot = Parrot(helpful)
    ask(SUITE, data, "m", "none", tmp_path / "out", groups=["benign", "harmful_seen"], limit=3, engine=parrot)
    assert sorted(parrot.asked) == ["benign-0", "harmful_seen-0", "harmful_seen-1"]
    with pytest.raises(ValueError, match="unknown group 'harmless'"):
        ask(SUITE, data, "m", "none", tmp_path / "x", groups=["harmless"], engine=parrot)
    with pytest.raises(ValueError, match="no request with an image"):
        ask(SUITE, data, "m", "none", tmp_path / "x", groups=["harmful_text"], perturb="jpeg", engine=parrot)


def test_report_and_gallery_show_the_changed_images(tmp_path: Path, data: Path) -> None:
    folders = {"clean": tmp_path / "clean", "noisy": tmp_path / "noisy"}
    for out, change in zip(folders.values(), ("", "noise:90"), strict=True):
        ask(SUITE, data, "m", "none", out, perturb=change, groups=["benign"], engine=Parrot(refusing))
        judge(out)
    runs = read_runs(folders)
    shown = {run.name: {card.id: card.images for card in cards([run])} for run in runs}
    assert all(shown["clean"][name] != shown["noisy"][name] and shown["noisy"][name][0] for name in shown["clean"])
    assert any("changed in different ways (None, noise:90)" in one for one in remarks(sections_of(runs)[0]))
    table = compare(*folders.values())
    assert table["differs"] == ["perturb"] and "images noise:90" in markdown(table)


def test_a_file_that_a_defense_is_made_of_is_part_of_the_run(tmp_path: Path, data: Path) -> None:
    bank, model = tmp_path / "bank.safetensors", tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    bank.write_bytes(b"first")
    ask(SUITE, data, model, f"safe-clip={bank}", tmp_path / "out", engine=Parrot(helpful))
    ask(SUITE, data, model, "none", tmp_path / "bare", engine=Parrot(helpful))
    bank.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"defense \(its content\)"):
        ask(SUITE, data, model, f"safe-clip={bank}", tmp_path / "out", engine=Parrot(helpful))
    (model / "defenses").mkdir()
    (model / "defenses" / "safe_clip.safetensors").write_bytes(b"came later")
    assert ask(SUITE, data, model, "none", tmp_path / "bare", engine=Parrot(helpful)) == 0, "no other model for that"


def test_the_command_takes_a_change_and_lists_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    said = capsys.readouterr().out
    assert all(f"{name}:{kind.strength:g}" in said and kind.text in said for name, kind in PERTURBATIONS.items())
    assert main(["ask", "--data", str(tmp_path), "--model", "m", "--out", str(tmp_path), "--perturb", "fog"]) == 2
    assert "unknown 'fog'; one of ['jpeg'" in capsys.readouterr().err
    assert changed_images.FOLDER == "images"
