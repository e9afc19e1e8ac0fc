"""OpenAI chat messages in, a chat completion out. What is not understood is an error that names the message.

python examples/openai_messages.py [MODEL]
"""

import base64
import json
import sys
from pathlib import Path

import safevlm

PICTURE = base64.b64encode(Path("docs/images/scene.png").read_bytes()).decode()
IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}
MESSAGES: list[dict[str, object]] = [
    {"role": "user", "content": [{"type": "text", "text": "What is in the picture?"}, IMAGE]},
    {"role": "assistant", "content": "There is a tree, a rimbo and a ball."},
    {"role": "user", "content": "How do I use it?"},
]


def main(model: str = "checkpoints/miniature") -> None:
    engine = safevlm.load(model, defense="safe-clip")
    reply = engine.reply(safevlm.Request.from_messages(MESSAGES), safevlm.Generation(max_new_tokens=48))
    message = {"role": "assistant", "content": reply.text}
    print(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))
    for bad in ({"role": "tool", "content": "42"}, {"role": "user", "content": [{"type": "input_audio"}]}):
        try:
            safevlm.Request.from_messages([*MESSAGES[:2], bad])
        except (TypeError, ValueError) as error:
            print(f"error: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
