"""Networks over the nodes of graphs: a kind is a file, see `parts.graph.Network`."""
