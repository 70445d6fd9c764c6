"""Answers HTTP requests on a socket of its own: one program that goes on."""

import encodings.idna  # Modules are read when the component is built, and the library imports this one later.
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

from wit_world import exports


def answer(path):
    return f"{os.environ.get('GREETING', 'hello')} from {{name}} at {path}\n"


class Web(BaseHTTPRequestHandler):
    def do_GET(self):
        body = answer(self.path).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Run(exports.Run):
    def run(self):
        HTTPServer(("0.0.0.0", 80), Web).serve_forever()
