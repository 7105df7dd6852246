"""A stand-in for Neuronpedia's upload, on loopback."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Neuronpedia(BaseHTTPRequestHandler):
    """The upload's door: key, schema and answers as the real one has them."""

    key, busy, received = "np-secret-key-1", 0, ()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[str]:
        """Address of a server that has received nothing yet."""
        cls.busy, cls.received = 0, ()
        server = ThreadingHTTPServer(("127.0.0.1", 0), cls)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = type(self)
        if self.headers["X-Api-Key"] != self.key:
            return self.answer(401, {"error": "Unauthorized"})
        if self.path != "/api/feature/upload-batch":
            return self.answer(404, {"error": "Not found"})
        if server.busy:
            server.busy -= 1
            return self.answer(503, {"error": "busy"})
        if wrong := self.wrong(body):
            return self.answer(400, {"error": wrong})
        server.received = (*server.received, body)
        return self.answer(200, {"message": f"{len(body['features'])} features created."})

    @staticmethod
    def wrong(body):
        if not 1 <= len(body["features"]) <= 128:
            return "features must have 1 to 128 items"
        for feature in body["features"]:
            if not isinstance(feature["density"], float) or not 0 <= feature["density"] <= 1:
                return "density must be a `number` type"
            if not feature["activations"]:
                return "activations field must have at least 1 items"
            for activation in feature["activations"]:
                if not 1 <= len(activation["tokens"]) <= 1024 or not all(activation["tokens"]):
                    return "tokens is a required field"
                if len(activation["tokens"]) != len(activation["values"]):
                    return "lengths do not match"
        return None

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass
