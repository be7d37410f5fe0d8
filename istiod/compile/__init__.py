"""From one snapshot to the xDS resources of one proxy; pure."""
