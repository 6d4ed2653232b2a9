"""Ports for servers that are killed and come back."""

import socket

from shared.ports import RANGE_FILE, free_ports


def test_they_are_different_free_and_never_a_clients_own():
    ports = free_ports(20)
    assert len(set(ports)) == 20
    outgoing = int(RANGE_FILE.read_text().split()[0])
    assert all(port < outgoing for port in ports)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
