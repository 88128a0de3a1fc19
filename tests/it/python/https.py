"""Asks a node's HTTP port over TLS, as a scraper or a probe would.

Usage: https.py HOST:PORT CA CERT KEY PATH...
CERT and KEY may be "-": then no certificate is shown. Prints one JSON object on its last line:
{"answers": [[status, content type, body], ...]} or {"refused": why}.
"""

import http.client
import json
import ssl
import sys


def main():
    address, ca, cert, key = sys.argv[1:5]
    context = ssl.create_default_context(cafile=ca)
    if cert != "-":
        context.load_cert_chain(cert, key)
    answers = []
    for path in sys.argv[5:]:
        connection = http.client.HTTPSConnection(address, timeout=10, context=context)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode()
            answers.append([response.status, response.getheader("content-type"), body])
        except (ssl.SSLError, ConnectionError) as error:
            return {"refused": f"{type(error).__name__}: {error}"}
        finally:
            connection.close()
    return {"answers": answers}


print(json.dumps(main()))
