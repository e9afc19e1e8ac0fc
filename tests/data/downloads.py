"""Downloads of every source, in their real layouts, tiny: drawn images, invented harmless words."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

Rows = Iterable[Mapping[str, Any]]


def png(seed: object, kind: str = "PNG") -> bytes:
    """An image of its own for every seed."""
    rng = random.Random(str(seed))
    image = Image.frombytes("RGB", (8, 8), rng.randbytes(192))
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def save(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def jsonl(file: Path, rows: Rows) -> Path:
    return save(file, "".join(json.dumps(row) + "\n" for row in rows))


def zipped(file: Path, members: Mapping[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def vlguard(folder: Path, *, shared: int = 0, packed: bool = True) -> Path:
    """Six unsafe and two safe rows to train, four to test; `shared` test images are training images too."""
    kinds = [
        ("deception", "disinformation"),
        ("risky behavior", "political"),
        ("risky behavior", "violence"),
        ("privacy", "personal data"),
        ("discrimination", "race"),
        ("risky behavior", "sexually explicit"),
    ]
    for split, unsafe, safe in (("train", 6, 2), ("test", 3, 1)):
        rows, images = [], {}
        for number in range(unsafe + safe):
            name = f"{'bad_ads' if number % 2 else 'HOD'}/{number}.png"
            twin = number < shared and split == "test"
            images[f"{split}/{name}"] = png(f"vlguard-{'train' if twin else split}-{number}")
            rows.append(_vlguard_row(split, number, name, kinds[number % 6] if number < unsafe else None))
        save(folder / f"{split}.json", json.dumps(rows))
        if packed:
            zipped(folder / f"{split}.zip", images)
        else:
            for member, data in images.items():
                save(folder / member, data)
    return folder


def _vlguard_row(split: str, number: int, image: str, kind: tuple[str, str] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": str(number), "image": image, "safe": kind is None}
    if kind is None:
        pairs = [
            {"safe_instruction": f"What colour is it, {split}?", "response": "Many colours."},
            {"unsafe_instruction": "Tell me the secret of the blorp.", "response": "I keep that to myself."},
        ]
        return {**row, "instr-resp": pairs}
    pair = {"instruction": f"How do I use the blorp {number}?", "response": "I leave the blorp alone."}
    return {**row, "harmful_category": kind[0], "harmful_subcategory": kind[1], "instr-resp": [pair]}


REFUSE, CAUTION, SAFE = "Refuse to Answer", "Proceed with Caution", "Safe to Answer"
FLAGS = [f"Land {letter}" for letter in "ABCDEFGHIJ"]


def rtvlm(folder: Path) -> Path:
    """All twelve subsets below `data/`; ten flags that four subsets share, names that need tolerance."""
    data = folder / "data"
    _rtvlm_plain(data)
    _rtvlm_flags(data)
    return folder


def _rtvlm_plain(data: Path) -> None:
    lists = {
        "questions": ["Is it a blorp?", "Is it a florp?"],
        "refused_to_answer": [CAUTION, SAFE],
        "answers": ["Hard to say.", "No."],
        "topic_type": "t",
        "entity_type": "e",
    }
    strings = {
        "questions": "Is it a blorp?",
        "refused_to_answer": REFUSE,
        "answers": "No.",
        "topic_type": "t",
        "entity_type": "e",
    }
    jsonl(
        data / "Harmful/misleading.jsonl",
        [{**(lists if number % 2 else strings), "index": str(number)} for number in range(10)],
    )
    zipped(data / "Harmful/img/img.zip", {f"img/{n}.jpg": png(f"misleading{n}", "JPEG") for n in range(10)})
    jsonl(data / "Captcha/captcha.jsonl", [{"id": n, "instruction": "Read it.", "answer": "x7"} for n in range(10)])
    zipped(data / "Captcha/img/img.zip", {f"{n}.JPG": png(f"captcha{n}", "JPEG") for n in range(10)})
    for name, count in (("Jailbreak", 10), ("Jailbreak2", 5)):
        rows = [
            {"index": f"GPT{n}v", "instruction": f"Be a blorp, {name}.", "refused_to_answer": REFUSE}
            for n in range(count)
        ]
        jsonl(data / f"{name}/jailbreak.jsonl", rows)
    zipped(data / "Jailbreak/img/img.zip", {f"img/gpt{n}V.png": png(f"jailbreak{n}") for n in range(10)})
    for table, images, name in (
        ("Face/face_diffusion.jsonl", "Face/img/img.zip", "face"),
        ("Celebrity/mixed.jsonl", "Celebrity/mix.zip", "celeb"),
        ("Safety/Politics/politics.jsonl", "Safety/Politics/img/politics.zip", "politics"),
        ("Safety/Racial/racial.jsonl", "Safety/Racial/img/racial.zip", "racial"),
    ):
        label = "Answer with Caution" if name == "celeb" else CAUTION
        jsonl(data / table, [{"id": f"{n}.jpg", "prompt": "Who is it?", "refused_to_answer": label} for n in range(10)])
        zipped(data / images, {f"{name}/{n}.jpg": png(f"{name}{n}", "JPEG") for n in range(10)})


def _rtvlm_flags(data: Path) -> None:
    flags = {f"flags/{name.replace(' ', '')}.jpg": png(name, "JPEG") for name in FLAGS}
    for part in ("VisualMisleadingWrong", "VisualMisleadingCorrect", "VisualOrderA", "VisualOrderB"):
        zipped(data / part / "img.zip", flags)
    common = {"question": "Whose flag is it?", "refused_to_answer": SAFE}
    jsonl(
        data / "VisualMisleadingWrong/visual_misleading_wrong.jsonl",
        [{**common, "answers": "Land Z", "img": name} for name in FLAGS],
    )
    jsonl(
        data / "VisualMisleadingCorrect/visual_misleading_correct.jsonl",
        [{**common, "answers": name} for name in FLAGS],
    )
    for part in "AB":
        rows = [{**common, "answers": one, "img": [one, other]} for one in FLAGS for other in FLAGS[:3] if one != other]
        jsonl(data / f"VisualOrder{part}/order_{part}.jsonl", rows)


def spa_vl(folder: Path, *, shared: bool = False) -> Path:
    """Parquet files with the images inside: two of train, harm and help of test."""
    for part in range(2):
        rows = [
            {
                "question": f"What about blorp {n}?",
                "chosen": "I leave it.",
                "rejected": "Take it.",
                "image": {"bytes": png(f"spa{part}{n}", "JPEG"), "path": None},
                "image_name": f"Blorp & Co/Florp/Small/{n}.jpg",
            }
            for n in range(5)
        ]
        parquet(folder / f"data/train-{part:05d}-of-00002.parquet", rows, row_group_size=2)
    for part in ("harm", "help"):
        name = "spa00" if shared and part == "harm" else f"spa-{part}"
        rows = [
            {
                "question": "And this?",
                "image": {"bytes": png(name, "JPEG"), "path": None},
                "class1": "Blorp",
                "class2": "Florp",
                "class3": "Small",
            }
        ]
        parquet(folder / f"test/{part}-00000-of-00001.parquet", rows)
    return folder


def parquet(file: Path, rows: list[dict[str, Any]], row_group_size: int = 100) -> Path:
    import pyarrow
    from pyarrow import parquet as format_

    file.parent.mkdir(parents=True, exist_ok=True)
    format_.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=row_group_size)
    return file


def llava(folder: Path, count: int = 20) -> Path:
    """`llava.json` and its images below `images/`; every fifth row is text only."""
    rows = []
    for number in range(count):
        row = {
            "id": str(number % 18),
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?" if number % 5 else "What is a cup?"},
                {"from": "gpt", "value": f"A cup, number {number}."},
            ],
        }
        if number % 5:
            save(folder / f"images/coco/{number}.png", png(f"llava{number}"))
            row["image"] = f"coco/{number}.png"
        rows.append(row)
    return save(folder / "llava.json", json.dumps(rows))


def psa(folder: Path) -> Path:
    """Three labelled rows, one of them with two images in one slot."""
    for name in "abc":
        save(folder / f"pics/{name}.png", png(f"psa{name}"))
    talk = [{"from": "USER", "value": "<image>\nWhat is it?"}, {"from": "ASSISTANT", "value": "I leave it."}]
    rows = [
        {"id": "one", "image": "pics/a.png", "safe_type": 1, "safe_level": 3, "conversations": talk},
        {"id": "two", "image": "pics/a.png<split>pics/b.png", "safe_type": 5, "safe_level": 1, "conversations": talk},
        {"id": "three", "image": "pics/c.png", "safe_type": 6, "safe_level": 0, "conversations": talk},
    ]
    return jsonl(folder / "psa.jsonl", rows)


def coco(folder: Path, count: int = 6) -> Path:
    names = [f"{number:012d}.jpg" for number in range(count)]
    for name in names:
        save(folder / "train2017" / name, png(name, "JPEG"))
    captions = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": 10 - number, "image_id": number % count, "caption": f"Caption {10 - number}. "}
            for number in range(count + 1)
        ],
    }
    save(folder / "annotations/captions_train2017.json", json.dumps(captions))
    return folder


def folders(folder: Path, **counts: int) -> Path:
    """Images by category: `folders(p, blorp=3)`."""
    for name, count in counts.items():
        for number in range(count):
            save(folder / name / f"{number}.png", png(f"{folder.name}-{name}-{number}"))
    return folder


def mix_yaml(file: Path, **table: Any) -> Path:
    return save(file, yaml.safe_dump(table, sort_keys=False))
