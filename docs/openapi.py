"""Write docs/openapi.json, which clients are made from: `make openapi`."""

import json
from pathlib import Path

from support_rag.service.app import create_app
from support_rag.state.settings import ServiceSettings

PATH = Path(__file__).parent / "openapi.json"


def described() -> str:
    "Return the description as it is committed."
    document = create_app(ServiceSettings()).openapi()
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(described(), encoding="utf-8")
