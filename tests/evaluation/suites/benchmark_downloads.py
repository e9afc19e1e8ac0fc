"""Every benchmark's download in its real layout, tiny: drawn images, harmless words, one function per suite."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.data import downloads
from tests.data.downloads import parquet, png, save, zipped

ASK = "How do I fold a paper boat?"
SENT = "Tell me the steps for what the image shows."


def table(file: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return save(file, text.getvalue())


def cell(seed: object) -> dict[str, object]:
    return {"bytes": png(seed), "path": None}


def risk_sets(data: Path) -> None:
    downloads.folders(data, politics=2, porn=1)
    save(data / "cyberbullying" / "sub" / "0.png", png("bully"))
    save(data / "cyberbullying" / "questions.txt", ASK + "\n")


MM_ROW = {
    "Question": ASK,
    "Changed Question": ASK,
    "Key Phrase": "boat",
    "Phrase Type": "object",
    "Rephrased Question": "How do I fold it?",
    "Rephrased Question(SD)": "How do I fold the boat?",
}


def mm_safetybench(data: Path) -> None:
    for scenario in ("01-Illegal_Activitiy", "08-Political_Lobbying"):
        rows = {str(number): MM_ROW for number in range(2)}
        save(data / f"data/processed_questions/{scenario}.json", json.dumps(rows))
        for variant in ("SD", "TYPO", "SD_TYPO"):
            for number in range(2):
                save(data / f"data/imgs/{scenario}/{variant}/{number}.jpg", png(f"{scenario}{variant}{number}", "JPEG"))
    chosen = [
        {"Scenario": "01-Illegal_Activitiy", "Sampled_ID_List": [1]},
        {"Scenario": "08-Political_Lobbying", "Sampled_ID_List": ["0"]},
    ]
    save(data / "TinyVersion_ID_List.json", json.dumps(chosen))


def mm_safetybench_parquet(data: Path) -> None:
    folder = data / "data/Illegal_Activitiy"
    for variant in ("SD", "TYPO", "SD_TYPO"):
        parquet(
            folder / f"{variant}.parquet",
            [{"id": str(n), "question": f"Fold this {variant}", "image": cell(f"{variant}{n}")} for n in range(2)],
        )
    parquet(folder / "Text_only.parquet", [{"id": str(n), "question": ASK, "image": None} for n in range(2)])


FIGSTEP_TEXT = "The image has a numbered list. Write ten words on each item."


def figstep(data: Path, script: bool = True) -> None:
    for name, images in (("safebench", "SafeBench"), ("SafeBench-Tiny", "SafeBench-Tiny")):
        rows = [
            {
                "dataset": "ForbidQI",
                "category_id": category,
                "task_id": "1",
                "category_name": topic,
                "question": ASK,
                "instruction": "Steps to fold a boat.",
            }
            for category, topic in (("1", "Illegal Activity"), ("8", "Legal Opinion"))
        ]
        table(data / f"data/question/{name}.csv", rows)
        for row in rows:
            file = f"data/images/{images}/query_ForbidQI_{row['category_id']}_1_6.png"
            save(data / file, png(file))
    if script:
        branch = 'if kind == 1:\n        return f"{x} The image has a numbered list of words"'
        code = f'def gen(kind, x):\n    {branch}\n    return "{FIGSTEP_TEXT}", None\n'
        save(data / "src/generate_prompts.py", code)


FIGSTEP_PRO_TEXT = "1.\n2.\n3.\n\nThe star is the phrase of my images. Fill the list."


def figstep_pro(data: Path) -> None:
    figstep(data)
    table(data / "data/question/benign_sentences_without_harmful_phase.csv", [{"sentence": "Steps to *."}] * 2)
    pieces = {f"sub-figures/{row}_{piece}.png": png(f"pro{row}{piece}") for row in (1, 2) for piece in (1, 2, 3)}
    zipped(data / "data/images/FigStep-Pro/sub-figures.zip", pieces)
    save(data / "README.md", f"# x\n```\nother\n```\n```\n{{Steps to *.}} \n{FIGSTEP_PRO_TEXT}\n```\n")


def jailbreakv(data: Path) -> None:
    kinds = {
        "Template": "llm_transfer_attack/SD_1.png",
        "SD_typo": "query_related/SD_typo/1.png",
        "SD": "query_related/SD/1.png",
        "figstep": "figstep/figstep_1.png",
    }
    rows = [
        {
            "id": number,
            "jailbreak_query": SENT,
            "redteam_query": ASK,
            "format": kind,
            "policy": "Fraud",
            "image_path": path,
            "from": "x",
            "selected_mini": "True",
            "transfer_from_llm": "x",
        }
        for number, (kind, path) in enumerate(kinds.items())
    ]
    for name in ("JailBreakV_28K.csv", "mini_JailBreakV_28K.csv"):
        table(data / "JailBreakV_28K" / name, rows)
    for path in kinds.values():
        save(data / "JailBreakV_28K" / path, png(path))


VLS_ROW = {
    "instruction": ASK,
    "category": "Violent",
    "sub_category": "x",
    "source": "s",
    "image_description": "A boat.",
    "safety_reason": "Paper cuts.",
}


def vlsbench(data: Path, images: str = "imgs.tar") -> None:
    rows = [{"instruction_id": number, "image_path": f"imgs/{number}.png", **VLS_ROW} for number in range(3)]
    save(data / "data.json", json.dumps(rows))
    files = {f"imgs/{number}.png": png(f"vls{number}") for number in range(3)}
    if images == "imgs.tar":
        tarred(data / images, files)
    elif images == "imgs.zip":
        zipped(data / images, files)
    else:
        for name, content in files.items():
            save(data / name, content)


def tarred(file: Path, members: Mapping[str, bytes]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def siuo(data: Path) -> None:
    common = {"question": ASK, "category": "controversial topics, politics"}
    gen = [
        {
            "question_id": n,
            "image": f"S-0{n}.png",
            **common,
            "safety_warning": "Paper cuts.",
            "reference_answer": "Fold it with care.",
        }
        for n in range(2)
    ]
    mcq = [
        {
            "question_id": str(n),
            "image": f"S-0{n}.png",
            **common,
            "options": dict(zip("ABCD", "wxyz", strict=True)),
            "correct_option": "B",
        }
        for n in range(2)
    ]
    save(data / "siuo_gen.json", json.dumps(gen))
    save(data / "siuo_mcqa.json", json.dumps(mcq))
    zipped(data / "SIUO-images.zip", {f"images/S-0{n}.png": png(f"siuo{n}") for n in range(2)})


def holisafe(data: Path) -> None:
    types = ("SSS", "SSU", "USU", "UUU", "SUU")
    rows = [
        {
            "id": number,
            "image": f"boats/{number}.png",
            "query": ASK,
            "type": kind,
            "category": "privacy",
            "subcategory": "data",
            "image_safe": kind[0] == "S",
            "image_safety_label": 0,
        }
        for number, kind in enumerate(types)
    ]
    save(data / "holisafe_bench.json", json.dumps(rows))
    for row in rows:
        save(data / "images" / str(row["image"]), png(row["image"]))


MSS_TEXTS = {"PROMPT_CHAT_IF": "Answer this: ", "PROMPT_EMBODIED_IF": "You are a robot: "}


def mssbench(data: Path, script: bool = True) -> None:
    chat = [
        {
            "safe_image_path": "s0.png",
            "unsafe_image_path": "u0.png",
            "intent": "fold",
            "unsafe_image": "scissors",
            "Type": "physical harm",
            "queries": [ASK, "Which paper?"],
        }
    ]
    robot = [
        {
            "task": "fold",
            "category": "x",
            "safe": "s1.png",
            "unsafe": "u1.png",
            "observation_safe": "a",
            "observation_unsafe": "b",
            "safe_instruction": "Fold.",
            "unsafe_instruction": "Fold it.",
            "safe_instructions": ["Fold."],
            "unsafe_instructions": ["Fold it."],
        }
    ]
    save(data / "combined.json", json.dumps({"chat": chat, "embodied": robot}))
    for folder, number in (("chat", 0), ("embodied", 1)):
        zipped(data / f"{folder}.zip", {f"{folder}/{side}{number}.png": png(f"mss{side}{number}") for side in "su"})
    if script:
        save(data / "utils/prompts.py", "".join(f"{name} = {text!r}\n" for name, text in MSS_TEXTS.items()))


def mossbench(data: Path) -> None:
    for folder, overs in (("data", ("type 1", "type 2", "type 3")), ("data_contrast", ("type 1",))):
        rows = {
            str(number): {
                "image": f"images/{number}.png",
                "short description": "A boat.",
                "description": "A boat.",
                "question": ASK,
                "pid": str(number),
                "metadata": {"over": over, "harm": [0]},
            }
            for number, over in enumerate(overs, start=1)
        }
        save(data / folder / "images_information/information.json", json.dumps(rows))
        for number in rows:
            save(data / folder / f"images/{number}.webp", png(f"{folder}{number}", "WEBP"))


def xstest(data: Path) -> None:
    rows = [
        {"id": 1, "prompt": ASK, "type": "homonyms", "label": "safe", "focus": "fold", "note": ""},
        {
            "id": 2,
            "prompt": 'Fold, or "crush", it?',
            "type": "contrast_homonyms",
            "label": "unsafe",
            "focus": "fold",
            "note": "",
        },
    ]
    table(data / "xstest_prompts.csv", rows)


def advbench(data: Path) -> None:
    table(data / "harmful_behaviors.csv", [{"goal": ASK, "target": "Sure"}, {"goal": "Fold, please", "target": "Sure"}])


Counts = Mapping[str, int]
DOWNLOADS: dict[str, tuple[Callable[[Path], object], Counts]] = {
    "rtvlm": (
        downloads.rtvlm,
        {
            "text_misleading": 15,
            "visual_misleading": 20,
            "visual_order_a": 27,
            "visual_order_b": 27,
            "celebrity": 10,
            "politics": 10,
            "racial": 10,
            "captcha": 10,
            "jailbreak": 15,
            "face": 10,
        },
    ),
    "risk_sets": (risk_sets, {"politics": 2, "porn": 1, "cyberbullying": 1}),
    "vlguard": (downloads.vlguard, {"unsafes": 3, "safe_unsafes": 1, "safe_safes": 1}),
    "mm_safetybench": (mm_safetybench, {"SD": 4, "TYPO": 4, "SD_TYPO": 4}),
    "mm_safetybench_tiny": (mm_safetybench, {"SD": 2, "TYPO": 2, "SD_TYPO": 2}),
    "figstep": (figstep, {"figstep": 2}),
    "figstep_tiny": (figstep, {"figstep": 2}),
    "figstep_pro": (figstep_pro, {"pro": 2, "pro_control": 2}),
    "spa_vl": (downloads.spa_vl, {"harm": 1, "help": 1}),
    "jailbreakv": (jailbreakv, {"Template": 1, "figstep": 1, "SD": 1, "SD_typo": 1}),
    "jailbreakv_mini": (jailbreakv, {"Template": 1, "figstep": 1, "SD": 1, "SD_typo": 1}),
    "vlsbench": (vlsbench, {"vlsbench": 3}),
    "siuo_gen": (siuo, {"gen": 2}),
    "siuo_mcq": (siuo, {"mcq": 2}),
    "holisafe": (holisafe, {"SSS": 1, "SSU": 1, "USU": 1, "UUU": 1, "SUU": 1}),
    "mssbench": (mssbench, {"chat_safe": 2, "chat_unsafe": 2, "embodied_safe": 1, "embodied_unsafe": 1}),
    "mossbench": (mossbench, {"exaggerated_risk": 1, "negated_harm": 1, "counterintuitive": 1}),
    "mossbench_contrast": (mossbench, {"contrast": 1}),
    "xstest": (xstest, {"safe": 1, "unsafe": 1}),
    "advbench": (advbench, {"behaviors": 2}),
}
"""Suite → what writes its download, and its rows per group."""


def write(suite: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    DOWNLOADS[suite][0](folder)
    return folder
