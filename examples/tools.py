"""Lets the assistant look at a clock, and prints what it makes of it.

python examples/tools.py 127.0.0.1:7100 "What time is it in Rome?"
"""

import json
import sys
from datetime import UTC, datetime, timedelta

from minmo.client import ClientError, SessionSettings, StatusError, Target, Tool, ToolChoice, sync
from minmo.client.events import Refused, ToolCall, TurnReport

HOURS_AHEAD = {"London": 0, "Rome": 1, "Tokyo": 9}  # of UTC, in winter
CLOCK = Tool(
    name="clock",
    description="Tells the time in a city.",
    parameters_json=json.dumps(
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    ),
)
SETTINGS = SessionSettings(
    tools=[CLOCK],
    # A model as small as the default one calls a tool only if it must.
    tool_choice=ToolChoice(kind=ToolChoice.KIND_REQUIRED),
    text_only=True,
)


def clock(city: str) -> str:
    """What the tool returns."""
    if city not in HOURS_AHEAD:
        return json.dumps({"error": f"I know the time in {', '.join(HOURS_AHEAD)} only"})
    there = datetime.now(UTC) + timedelta(hours=HOURS_AHEAD[city])
    return json.dumps({"time": there.strftime("%I:%M %p").lstrip("0")})


def ask(address: str, question: str) -> None:
    """The first answer is the call, the second what follows from it."""
    with sync.Conversation(Target(address), input_rate_hz=16_000, settings=SETTINGS) as talk:
        talk.send_text(question)
        called = False
        for event in talk:
            match event:
                case ToolCall(call_id=call_id, name=name, arguments_json=arguments):
                    print("call: ", name, arguments)
                    result = clock(**json.loads(arguments))
                    print("tool: ", result)
                    talk.tool_result(call_id, result)
                    called = True
                case TurnReport() if called:
                    talk.create_response(tool_choice=ToolChoice(kind=ToolChoice.KIND_NONE))
                    called = False
                case TurnReport(generated_text=text):
                    print("minmo:", text)
                    return
                case Refused(reason=reason, message=message):
                    sys.exit(f"{reason}: {message}")


try:
    ask(*sys.argv[1:])
except (ClientError, StatusError) as error:
    sys.exit(str(error))
