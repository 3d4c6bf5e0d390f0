"""`python -m services.orchestrator`: serves MinMo's public API."""

from minmo.rpc.server import serve
from minmo.settings import OrchestratorSettings
from services.orchestrator.service import OrchestratorService


def main() -> None:
    """Serves until SIGTERM or Ctrl-C."""
    serve(OrchestratorSettings.load("minmo-orchestrator"), OrchestratorService)


if __name__ == "__main__":
    main()
