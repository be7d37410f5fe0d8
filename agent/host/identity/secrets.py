"""An identity as the SDS resources that the workers' TLS names: `default` and `ROOTCA` (Istio's names).

Rule: the bodies hold a private key: they go to workers over their socketpair and nowhere else; what is shown
to people is `redacted`. Source: Envoy extensions.transport_sockets.tls.v3.Secret.
"""

from __future__ import annotations

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from agent.host.identity.identity import Identity

IDENTITY = "default"
ROOTS = "ROOTCA"


def bodies(identity: Identity, roots: bytes) -> dict[str, bytes]:
    """Both secrets, each a serialised google.protobuf.Any."""
    certificate = secret_pb2.Secret(name=IDENTITY)
    certificate.tls_certificate.certificate_chain.inline_bytes = identity.chain_pem
    certificate.tls_certificate.private_key.inline_bytes = identity.key_pem
    validation = secret_pb2.Secret(name=ROOTS)
    validation.validation_context.trusted_ca.inline_bytes = roots
    return {IDENTITY: _packed(certificate), ROOTS: _packed(validation)}


def redacted(body: bytes) -> bytes:
    """The same secret without its private key."""
    secret = secret_pb2.Secret()
    AnyMessage.FromString(body).Unpack(secret)
    if secret.HasField("tls_certificate"):
        secret.tls_certificate.private_key.inline_bytes = b"[redacted]"
    return _packed(secret)


def _packed(secret: secret_pb2.Secret) -> bytes:
    packed = AnyMessage()
    packed.Pack(secret)
    return packed.SerializeToString(deterministic=True)
