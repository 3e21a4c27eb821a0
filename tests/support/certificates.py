"""An authority of our own, and a server's certificate by it, made by the openssl program."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

HAS_OPENSSL = shutil.which("openssl") is not None
NAMES = "IP:127.0.0.1,DNS:localhost,DNS:*.corp.invalid"


@dataclass(frozen=True)
class Authority:
    """`file` is what clients are to trust; `tls` is what a server shows."""

    file: Path
    tls: ssl.SSLContext


def make_authority(folder: Path) -> Authority:
    """Make an authority and a certificate of loopback by it."""
    ca, ca_key, key, request, certificate = (
        folder / name for name in ("ca.pem", "ca.key", "server.key", "server.csr", "server.pem")
    )
    (folder / "names").write_text(f"subjectAltName={NAMES}\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for arguments in (
        ("req", "-x509", *curve, "-subj", "/CN=Corp CA", "-days", "2", "-keyout", ca_key, "-out", ca),
        ("req", *curve, "-subj", "/CN=server", "-keyout", key, "-out", request),
        (
            *("x509", "-req", "-in", request, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial"),
            *("-days", "2", "-extfile", folder / "names", "-out", certificate),
        ),
    ):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return Authority(ca, tls)
