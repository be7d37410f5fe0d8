"""DNS of the host: mesh names, and the way of every other question to the host's own resolvers."""
