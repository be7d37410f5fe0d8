"""What agent and istiod say to each other: gRPC over HTTP/2, xDS sessions, identities and certificates.

Imports no other package of ours. The whole public API, by module:

wire.spiffe   SpiffeId(trust_domain, namespace, service_account), str(), SpiffeId.parse(text),
              SpiffeId.of_certificate(certificate | der); SpiffeError
wire.x509     new_key() key_to_pem(key) key_from_pem(pem) make_csr(key, spiffe_id) -> pem
              read_csr(pem) -> (public_key, SpiffeId)
              self_signed_root(key, ttl=, now=, organisation=) -> Certificate
              issue(public_key, ca_cert=, ca_key=, ttl=, now=, uri_sans=, dns_sans=, ip_sans=) -> Certificate
              fingerprint(certificate | der) load_chain(pem) -> list to_pem(certificates) -> bytes
              X509Error
wire.secret_file   write_secret(path, bytes)
wire.private_socket   with private_socket(path) as sock: 0600, removed at the end; refuse_served(path); peer_user(sock)
wire.tls      server_context(cert_chain_pem, key_pem, client_ca_pem=None, client_required=True, alpn=H2)
              client_context(ca_pem, cert_chain_pem=None, key_pem=None, alpn=H2)
              load_identity(context, cert_chain_pem, key_pem)      a renewed certificate into a live context
              await connect(host, port, context, expected: SpiffeId | None) -> stream
              await handshake(transport, context, expected, server_hostname) -> stream
              await pinned_root(transport, fingerprint, server_hostname) -> root PEM    first contact
              peer_certificate(stream) -> DER | None, peer_spiffe_id(stream) -> SpiffeId | None; TlsError
wire.grpc     Server side:
                listeners = await listen(host, port, ssl_context | None); port_of(listener) -> int
                await serve(listeners, {path: handler}, limits=Limits(), shutdown=trio.Event(), grace=5.0)
                async def handler(call: ServerCall): call.metadata, call.peer, await call.send(bytes),
                    await call.receive() -> bytes | None; to fail: raise GrpcError(GrpcStatus.X, "why")
                Peer(address, spiffe_id, cert_der)
              Client side:
                async with open_channel(connect, authority) as channel:      connect: async () -> stream
                    await channel.unary(path, request, metadata=(), deadline=seconds) -> bytes
                    async with channel.stream(path, metadata=()) as call:
                        await call.send(bytes); await call.receive() -> bytes | None; await call.end()
                Backoff(random) .next_delay() .reset()
              Metadata: .get(name) .get_all(name) .binary(name); paths ADS_SOTW ADS_DELTA CREATE_CERTIFICATE
              DEBUG_ATTACH
wire.xds      LISTENER ROUTE CLUSTER ENDPOINT SECRET NAME_TABLE HEALTH, PUSH_ORDER, in_push_order(types)
              EncodedResource(name, version, body, wildcard=True), encode(name, message) -> EncodedResource
              Server, one session for one ADS stream (all types), SotwSession() or DeltaSession():
                session.receive(request bytes) -> Received(type_url, kind, node, nack, error)
                session.update({type_url: {name: EncodedResource}})       the latest of these types
                session.next_response() -> bytes | None    send until None; after either of both
                session.types; XdsError ends the stream (INVALID_ARGUMENT)
                session.interest(type_url) -> Interest(wildcard, names)   what to compile
                session.state(type_url) -> TypeState(interest, sent, acked, nonce, outstanding, nack)
              Agent: DeltaClient(node, {type_url: names or WILDCARD})
                client.start() -> [request bytes]                         on every new stream
                client.receive(response bytes) -> Update(type_url, nonce, resources, removed)
                client.ack(update) / client.nack(update, reason) -> request bytes
                client.subscribe(type_url, names) -> request bytes | None exactly these names from now on
                client.held(type_url) -> {name: EncodedResource}; client.preload(type_url, resources)
                health_request(healthy, message) -> request bytes
              endpoint_names(clusters) route_names(listeners) -> names to subscribe
wire.proto    istio_ca_pb2 (IstioCertificateRequest/Response), name_table_pb2 (NameTable),
              debug_pb2 (DebugRequest/DebugResponse)
"""
