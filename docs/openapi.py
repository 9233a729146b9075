"""Write docs/openapi.json and the client that is made from it: `make openapi`."""

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
    from client import written

    text = described()
    PATH.write_text(text, encoding="utf-8")
    for path, source in written(json.loads(text)).items():
        path.write_text(source, encoding="utf-8")
