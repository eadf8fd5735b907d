"""Planning: who takes which layers, what it costs. Pure: no sockets, no clock, no framework."""
