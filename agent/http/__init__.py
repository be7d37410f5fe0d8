"""HTTP codecs behind one interface, header maps, upgrades; bytes in, events out."""
