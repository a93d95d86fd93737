"""One study: networks, data and attacks, each network run once."""
