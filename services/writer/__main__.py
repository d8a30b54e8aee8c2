"""Run the writer: `python -m services.writer`."""

from services.writer.app import SERVICE, build_app
from services.writer.settings import WriterSettings
from shared.service import run

if __name__ == "__main__":
    run(SERVICE, WriterSettings, build_app)
