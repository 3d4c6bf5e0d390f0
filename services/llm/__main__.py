"""`python -m services.llm`: the LLM service's process."""

from minmo.rpc.server import serve
from minmo.settings import LlmSettings
from services.llm.service import LlmService


def main() -> None:
    """Runs the service until it is told to stop."""
    serve(LlmSettings.load("minmo-llm"), LlmService)


if __name__ == "__main__":
    main()
