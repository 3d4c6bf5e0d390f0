"""`python -m services.encoder`: the encoder's process."""

from minmo.rpc.server import serve
from minmo.settings import EncoderSettings
from services.encoder.service import EncoderService


def main() -> None:
    """Runs the encoder until it is told to stop."""
    serve(EncoderSettings.load("minmo-encoder"), EncoderService)


if __name__ == "__main__":
    main()
