"""The door of the hub: JupyterHub's proxy in Python, with TLS where a certificate is given.

JupyterHub's own proxy needs Node. The package ``configurable-http-proxy`` does the same in Python except for TLS, which
Tornado's server has: this gives it a certificate, and tells the seats that a request came over HTTPS.
"""

import argparse
import asyncio
import os
import ssl
import sys

from configurable_http_proxy.configproxy import PythonProxy
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer

LARGEST_BODY_BYTES = 100 * 2**20  # a notebook with all its pictures is far smaller
# By default ten requests at a time, 20 s each: twenty browsers that open at once, on a busy machine, have more.
MOST_REQUESTS, ANSWER_WITHIN_S = 1_000, 300.0


def main() -> None:
    """Serve until the hub ends this process; the arguments are those that JupyterHub gives its proxy."""
    parser = argparse.ArgumentParser(prog="mesh_lab.seats.proxy")
    for name in ("ip", "port", "api-ip", "api-port", "error-target"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("log-level", "ssl-key", "ssl-cert"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--user", type=int, help="id of a user to go on as, once it listens")
    given = parser.parse_args()
    context = None
    if given.ssl_cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(given.ssl_cert, given.ssl_key)
    asyncio.run(serve(given, context))


async def serve(given: argparse.Namespace, context: ssl.SSLContext | None) -> None:
    """Pass requests on, and take the hub's orders about where to, which a token in the environment signs."""
    token = os.environ["CONFIGPROXY_AUTH_TOKEN"]
    # What a browser says of its own protocol and address is replaced; the proxy's own way of saying it is always HTTP.
    said = {"X-Forwarded-Proto": "https" if context else "http"}
    options = {"auth_token": token, "error_target": given.error_target, "proxy_timeout": ANSWER_WITHIN_S}
    proxy = PythonProxy(options | {"custom_headers": said, "x_forward": False})
    AsyncHTTPClient.configure(None, max_clients=MOST_REQUESTS)
    HTTPServer(proxy.proxy_app, ssl_options=context, max_body_size=LARGEST_BODY_BYTES).listen(int(given.port), given.ip)
    HTTPServer(proxy.api_app).listen(int(given.api_port), given.api_ip)
    if given.user and sys.platform != "win32":  # a stranger's request is read by nobody's user, not by root
        os.setgroups([])
        os.setgid(given.user)
        os.setuid(given.user)
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
