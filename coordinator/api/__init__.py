"""How users reach the service: the protocol, its stubs, the gateway and the client."""
