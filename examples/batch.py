"""Ask one question about many images, and write a JSON line for each: the answer, the verdict, who refused.

python examples/batch.py FOLDER_OF_PNG [MODEL]
"""

import json
import sys
from pathlib import Path

import safevlm


def main(folder: str = "docs/images", model: str = "checkpoints/miniature") -> None:
    policy = {"levels": {"careful": "hint", "may_refuse": "refuse", "must_refuse": "refuse"}}
    engine = safevlm.load(model, defense="safe-clip", policy=policy)
    files = sorted(Path(folder).glob("*.png"))
    requests = [safevlm.Request("What is in the picture?", images=[file], id=file.name) for file in files]
    for reply in engine.reply_all(requests, safevlm.Generation(max_new_tokens=64), batch_size=16):
        row = {"id": reply.request.id, "answer": reply.text, "refused_by": reply.refused_by}
        print(json.dumps(row | {"verdict": reply.verdict.to_dict()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
