"""A server of this machine that gives one file, whatever is asked for, as pages for downloads do."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(path: Path) -> Iterator[str]:
    """The address of a server that gives the file while the block lasts."""
    contents = path.read_bytes()

    class Download(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(contents)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(contents)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Download) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


#: Addresses that name no file, or one with a query behind its suffix.
WITHOUT_SUFFIX = {"number": "files/123", "query": "download/?id=5&name=my%20counts", "behind": "a.h5ad?download=1"}
#: All cells and genes pass.
READ_ONLY = {"doublets": "off", "n_mads": None, "min_genes": 1, "min_counts": 1, "min_cells": 1}
