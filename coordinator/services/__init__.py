"""The gRPC services: decode, hand over a command, encode. If a method needs an "if", the core wants to know."""
