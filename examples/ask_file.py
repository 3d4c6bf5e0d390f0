"""Asks with a recording, prints both sides, writes the answer.

python examples/ask_file.py 127.0.0.1:7100 examples/question.wav answer.wav
"""

import sys
from pathlib import Path

from minmo.audio.pcm import write_file
from minmo.client import ClientError, Recording, StatusError, Target, sync
from minmo.client.talk import joined

address, question, answer = sys.argv[1:]
try:
    # Opus needs a tenth of the bytes; codec="pcm" (the default) sounds as it was made.
    with sync.Conversation(Target(address), input_rate_hz=16_000, codec="opus") as conversation:
        turns = conversation.ask(Recording.read(Path(question)))
except (ClientError, StatusError) as error:
    sys.exit(str(error))
for turn in turns:
    print("you:  ", turn.user_text)
    print("minmo:", turn.heard_text)
write_file(Path(answer), joined(turns), 24_000)
