"""As much of the Hugging Face Hub as a push speaks to, on loopback; it keeps what comes."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def fake_hub():
    """Serve; give a dict of `url`, `files` (base64 by path), `requests` and what was created."""
    seen = {"files": {}, "requests": []}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            raw = self.rfile.read(int(self.headers.get("content-length", 0)))
            seen["requests"].append((self.path, self.headers.get("authorization")))
            if self.headers.get("authorization") != "Bearer hf_right":
                self.answer({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/repos/create":
                seen["created"] = json.loads(raw)
                name = seen["created"]["name"]
                url = f"{seen['url']}/me/{name}"
                self.answer({"url": url, "name": f"me/{name}", "id": f"me/{name}"})
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = json.loads(raw)["files"]
                self.answer(
                    {
                        "files": [
                            {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                            for f in files
                        ]
                    }
                )
            elif "/commit/" in self.path:
                for line in map(json.loads, raw.decode().splitlines()):
                    if line["key"] == "file":
                        seen["files"][line["value"]["path"]] = line["value"]["content"]
                    else:
                        seen["commit"] = line["value"]
                url = f"{seen['url']}/me/adapter/commit/abc"
                self.answer(
                    {"success": True, "commitOid": "abc", "commitUrl": url, "hookOutput": ""}
                )
            else:
                self.answer({"error": self.path}, 404)

        def do_GET(self):
            seen["requests"].append((self.path, self.headers.get("authorization")))
            self.answer({"name": "me", "id": "me/x", "sha": "0", "siblings": [], "type": "user"})

        def answer(self, value, status=200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen["url"] = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield seen
    server.shutdown()
    server.server_close()
    thread.join()
